"""The questions of an evaluation, and the trials (question, method, sample number) that they make."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import names_file
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles, read_samples, sample_files
from pipeline.data.samples import JoinedSamples, SampleSource
from pipeline.errors import BadRow, DataError
from pipeline.evaluation.config import EvaluationConfig, EvaluationData, synthetic_settings
from pipeline.evaluation.results import LARGEST_LENGTH, Length, as_length
from pipeline.files import exists, file_state, is_local, list_files
from pipeline.problems import Problem

LONGEST_NAME = 200  # characters of a set's name or a length: both are table headings
CHARACTERS_OF_A_PASSAGE = 600  # rough average, to estimate a document's size before it is read


@dataclass(frozen=True)
class Question:
    """One sample of the data, without its document."""

    index: int  # position in its source
    set: str
    length: int | float | str | None
    id: str
    size: int  # approximate size of the document in characters
    passage_file: str = ""  # path, if the document is given by reference


@dataclass(frozen=True)
class Trial:
    """One answer to produce: a question, a method and a sample number."""

    question: Question
    method: str
    sample: int
    number: int = 0  # place in the order of all trials

    @property
    def key(self) -> tuple:
        """The key of the trial's row, `row_key` in pipeline/evaluation/results.py."""
        return (self.question.set, self.question.length, self.question.id, self.method, self.sample)

    @property
    def work(self) -> int:
        """Estimated amount of reading, for the remaining time. Arbitrary units."""
        return 1 if self.method == "closed_book" else 1 + self.question.size

    def seed(self, run_seed: int) -> int:
        """48-bit seed of the answer's first response, a function of the run's seed and the key alone."""
        digest = hashlib.blake2b(repr((run_seed, *self.key)).encode(), digest_size=6)
        return int.from_bytes(digest.digest(), "big")


def set_and_length(problem: Problem) -> tuple[str, Length]:
    """The set and the length in the sample's metadata; the defaults are "questions" and None.

    A length written as text becomes a number if it is one.

    Raises:
        BadRow: the set is not text, the length is neither text nor a valid number, or either is too long.
    """
    name, length = problem.metadata.get("set"), problem.metadata.get("length")
    if name is not None and not isinstance(name, str):
        raise BadRow(f"the set in 'metadata' must be text, not {type(name).__name__}")
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float, str))):
        raise BadRow(f"the length in 'metadata' must be a number or text, not {type(length).__name__}")
    for what, value in (("set", name), ("length", length)):
        if isinstance(value, str) and len(value) > LONGEST_NAME:
            raise BadRow(f"the {what} in 'metadata' has {len(value)} characters, over {LONGEST_NAME}")
    length = as_length(length)
    if isinstance(length, (int, float)):
        if not 0 <= length <= LARGEST_LENGTH:  # NaN is not
            raise BadRow(f"the length in 'metadata' must be from 0 to {LARGEST_LENGTH:.0e}, not {str(length)[:20]}")
    return name or "questions", length


def open_source(config: EvaluationConfig) -> SampleSource:
    """Open the samples from which the questions are chosen.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file has another format or no rows.
    """
    data = config.data
    if data.source == "synthetic":
        return JoinedSamples(tuple(synthetic_settings(data).sets("", rebuild=True)))
    return SampleFiles.open(data.path, row_rules(config))


def read_questions(source: SampleSource, config: EvaluationConfig, quarantine: Quarantine) -> list[Question]:
    """The questions that the configuration selects, in data order; bad rows go to `quarantine`.

    Raises:
        DataError: too many rows are bad, or the configuration selects no question.
    """
    data = config.data
    questions: list[Question] = []
    counts: Counter[tuple[str, Length]] = Counter()
    seen: set[tuple[str, Length, str]] = set()
    for index, problem in read_samples(source, quarantine):
        try:
            name, length = set_and_length(problem)
            if (name, length, problem.id) in seen:
                where = name if length is None else f"{name} at {length}"
                raise BadRow(f"the id {problem.id!r} occurs twice in {where}")
        except BadRow as error:
            row_id, row = source.row(index)
            quarantine.add(row_id, str(error), row)
            continue
        seen.add((name, length, problem.id))
        wanted = (not data.sets or name in data.sets) and (not data.lengths or str(length) in data.lengths)
        if wanted and not (data.limit and counts[name, length] >= data.limit):
            counts[name, length] += 1
            size = len(problem.document) or CHARACTERS_OF_A_PASSAGE * len(problem.passages)
            questions.append(Question(index, name, length, problem.id, size, problem.passage_file))
    quarantine.finish()
    there = {"sets": {name for name, _, _ in seen}, "lengths": {str(length) for _, length, _ in seen}}
    for which, found in there.items():
        if missing := set(getattr(data, which)) - found:
            raise DataError(
                f"data.{which}: there is no {', '.join(sorted(missing))}; there are: {', '.join(sorted(found))}"
            )
    if not questions:
        raise DataError(f"no question has data.sets={data.sets} and data.lengths={data.lengths} together")
    return questions


def input_states(data: EvaluationData, questions: list[Question], model: str, template: str) -> dict[str, dict]:
    """Size and modification time of the files that the answers depend on, by path.

    These are the sample files, the passage files, the files of a model in a local folder, and a prompt template given
    as a path. A passage file that cannot be examined is left out; its questions will report why.
    """
    samples = sample_files(data.path) if data.source == "file" else ()
    paths = {*samples, *([template] if names_file(template) else [])}
    if is_local(model) and Path(model).is_dir():
        paths.update(list_files(model, (".json", ".safetensors")))
    states = {path: file_state(path) for path in paths if exists(path)}
    for path in {q.passage_file for q in questions if q.passage_file}:
        with contextlib.suppress(Exception):  # OSError, DataError, and the errors of the object stores' clients
            states[path] = file_state(path)
    return dict(sorted(states.items()))


def trials(questions: list[Question], config: EvaluationConfig) -> Iterator[Trial]:
    """Yield all trials. The methods of a question come together, so that they can be compared early."""
    e = config.evaluate
    each = itertools.product(questions, range(e.samples), e.methods)
    for number, (question, sample, method) in enumerate(each):
        yield Trial(question, method, sample, number)
