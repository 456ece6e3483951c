"""The questions of an evaluation, and what of them is still to be answered."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.agents.prompts import is_template_path
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles, read_samples, sample_files
from pipeline.data.samples import JoinedSamples, SampleSource
from pipeline.errors import BadRow, DataError
from pipeline.evaluation.config import EvaluationConfig, EvaluationData, synthetic_settings
from pipeline.evaluation.results import LARGEST_LENGTH, Length, as_length
from pipeline.files import exists, file_state, is_local, list_files
from pipeline.problems import Problem

LONGEST_NAME = 200  # characters of a set or a length, which head tables
CHARACTERS_OF_A_PASSAGE = 600  # about, to tell long documents from short ones before they are read


@dataclass(frozen=True)
class Question:
    """One sample of the data, without its document."""

    index: int  # in its source
    set: str
    length: int | float | str | None
    id: str
    size: int  # of the document in characters, about
    passage_file: str = ""  # of a document by reference


@dataclass(frozen=True)
class Trial:
    """One answer to be given: a question, by a method, once."""

    question: Question
    method: str
    sample: int

    @property
    def key(self) -> tuple:
        """As pipeline/evaluation/results.py has it."""
        return (self.question.set, self.question.length, self.question.id, self.method, self.sample)

    @property
    def work(self) -> int:
        """How much there is to read, to tell the time that is left."""
        return 1 if self.method == "closed_book" else 1 + self.question.size

    def seed(self, run_seed: int) -> int:
        """Of the answer's first response; 48 bits, of the seed of the run and the key alone."""
        digest = hashlib.blake2b(repr((run_seed, *self.key)).encode(), digest_size=6)
        return int.from_bytes(digest.digest(), "big")


def set_and_length(problem: Problem) -> tuple[str, Length]:
    """The set and the length that the sample's metadata name; "questions" and None where they name none. A length that
    is a number in text is a number.

    Raises:
        BadRow: the set is no text, or the length neither text nor a number that can be one, or either is too long.
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
    """The samples that the questions are chosen from.

    Raises:
        FileNotFoundError, DataError: no such file, another format, or no row at all.
    """
    data = config.data
    if data.source == "synthetic":
        return JoinedSamples(tuple(synthetic_settings(data).sets("", anew=True)))
    return SampleFiles.open(data.path, row_rules(config))


def read_questions(source: SampleSource, config: EvaluationConfig, quarantine: Quarantine) -> list[Question]:
    """The questions that the configuration asks for, in the order of the data; bad rows go to `quarantine`.

    Raises:
        DataError: too many rows were bad, or no question is asked for.
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
    """Size and time of change of the files that the answers depend on, by path: the samples', the passages', those of a
    model that is a folder, and that of a prompt template that is a path. A passage file that cannot be looked at has
    none; its questions will say why."""
    samples = sample_files(data.path) if data.source == "file" else ()
    paths = {*samples, *([template] if is_template_path(template) else [])}
    if is_local(model) and Path(model).is_dir():
        paths.update(list_files(model, (".json", ".safetensors")))
    states = {path: file_state(path) for path in paths if exists(path)}
    for path in {q.passage_file for q in questions if q.passage_file}:
        with contextlib.suppress(Exception):  # OSErrors, DataErrors, and what the clients of the stores raise
            states[path] = file_state(path)
    return dict(sorted(states.items()))


def trials(questions: list[Question], config: EvaluationConfig) -> Iterator[Trial]:
    """All that is to be answered: all methods of a question together, so that the methods are compared early."""
    for question in questions:
        for sample in range(config.evaluate.samples):
            for method in config.evaluate.methods:
                yield Trial(question, method, sample)
