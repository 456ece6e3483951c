"""The kinds of samples that jobs.prepare can make: each kind's settings, and the sets of samples they describe.

Units are in the comments. Paths may be URIs (pipeline/files.py).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.data.documents.facts.recipe import FactsRecipe
from pipeline.data.documents.facts.relations import FORMS
from pipeline.data.documents.hotpotqa import HotpotqaRecipe, build_passages, is_built
from pipeline.data.documents.ruler import RULER_TASKS, load_questions
from pipeline.data.documents.ruler_recipe import RulerRecipe
from pipeline.data.documents.synthetic import SYNTHETIC_TASKS, SyntheticRecipe
from pipeline.data.filtered_sets import kept_file, kept_ids
from pipeline.data.quarantine import Quarantine
from pipeline.data.samples import SampleSource
from pipeline.errors import BadRow, DataError
from pipeline.files import atomic_output, exists, is_file, join, list_files
from pipeline.named_code import SPELLING
from pipeline.problems import Problem
from pipeline.sections import from_repository
from pipeline.text import load_tokenizer

QUARANTINE = "quarantine"  # folder in the output
PROSE = ("configs/prose/training.txt", "configs/prose/held_out.txt")  # of the repository, so the same everywhere
BAD_PASSAGES = "passages.jsonl"  # in that folder: the distractors that cannot be used
BAD_QUESTIONS = {task: f"{task}-questions.jsonl" for task in ("qa_1", "qa_2")}  # and the questions


@dataclass(frozen=True)
class SampleSet:
    """The first `count` samples of a source, as a source: a set of questions at one document length."""

    name: str
    length: int
    unit: str  # of the length
    source: SampleSource
    count: int

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Problem:
        return self.source.sample(index)

    def row(self, index: int) -> tuple[str, object]:
        return self.source.row(index)


@dataclass
class Settings:
    """The settings that all kinds share."""

    output: str = MISSING  # folder, or URI of one; inside a Ray job a relative path starts at ~/palimpsest
    seed: int = 0  # of everything drawn at random
    rows_per_file: int = 1000  # samples per file
    workers: int = 0  # Ray Data tasks at a time, one CPU each; 0: one per CPU of the cluster
    max_bad_share: float = 0.05  # the job stops if more than this share of the rows is quarantined

    def faults(self) -> list[str]:
        """The faults of the settings, found without reading any file."""
        found = [f"{name} must be at least 0" for name in ("workers", "max_bad_share") if getattr(self, name) < 0]
        return found + ["rows_per_file must be at least 1"] * (self.rows_per_file < 1)

    def inputs(self) -> list[str]:
        """The files that are read."""
        return []

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        """The sets of samples. Files that they share are written into `folder`.

        Existing files are kept, unless `rebuild` is set.

        Raises:
            FileNotFoundError, DataError: an input is missing, has another format or is too small.
        """
        raise NotImplementedError


@dataclass
class HotpotqaSettings(Settings):
    """HotpotQA questions, each among paragraphs of other questions: the paper's training data."""

    path: str = MISSING  # HotpotQA's own JSON
    distractors: str = ""  # paragraphs to add, .jsonl, .parquet or .arrow; empty: those of all questions
    documents: int = 200  # paragraphs per document
    tokens: int = 0  # instead of documents: as many paragraphs as fit in a document of this many tokens
    tokenizer: str = ""  # counts tokens: Hugging Face folder or name
    trust_remote_code: bool = False  # run the tokenizer's own code, if it brings any
    task: str = "qa"  # scorer: qa (one answer, exact match) or values
    only: list[str] = field(default_factory=list)  # filtered sets: questions that all of them kept; none: all questions
    limit: int = 0  # the first this many of these questions; 0: all

    def faults(self) -> list[str]:
        found = super().faults() + _at_least(self, 0, "tokens", "limit")
        if self.tokens > 0 and not self.tokenizer:
            found.append("tokens needs a tokenizer to count them by")
        if self.task not in ("qa", "values"):
            found.append(f"task={self.task!r}; there are: qa, values")
        return found + ([] if self.tokens else _at_least(self, 1, "documents"))

    def inputs(self) -> list[str]:
        return [path for path in (self.path, self.distractors, *map(kept_file, self.only)) if path]

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        documents = 0 if self.tokens else self.documents
        tokenizer = _from_anywhere(self.tokenizer)
        recipe = HotpotqaRecipe(
            folder,
            documents,
            self.tokens,
            tokenizer,
            self.seed,
            self.task,
            trust_remote_code=self.trust_remote_code,
        )
        return _hotpotqa_sets(self, folder, rebuild, [recipe])


@dataclass
class RulerHqaSettings(Settings):
    """RULER-HQA, the paper's main test: the same HotpotQA questions in documents of several lengths."""

    path: str = MISSING  # HotpotQA's own JSON; the paper takes hotpot_dev_distractor_v1.json
    distractors: str = ""  # paragraphs to add, .jsonl, .parquet or .arrow; empty: those of all questions
    documents: list[int] = field(default_factory=lambda: [50, 100, 200, 400])  # paragraphs; the paper goes to 25600
    only: list[str] = field(default_factory=list)  # filtered sets: questions that all of them kept; none: all questions
    limit: int = 128  # the first this many of these questions; 0: all

    def faults(self) -> list[str]:
        return super().faults() + _at_least(self, 0, "limit") + _lengths(self, "documents", 1)

    def inputs(self) -> list[str]:
        return [path for path in (self.path, self.distractors, *map(kept_file, self.only)) if path]

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        recipes = [HotpotqaRecipe(folder, n, seed=self.seed, set_name="ruler_hqa") for n in self.documents]
        return _hotpotqa_sets(self, folder, rebuild, recipes)


@dataclass
class RulerSettings(Settings):
    """RULER (arXiv 2404.06654): the tasks besides HotpotQA that the paper tests on, and two more."""

    tokenizer: str = MISSING  # counts lengths: Hugging Face folder or name
    trust_remote_code: bool = False  # run the tokenizer's own code, if it brings any
    # some of niah_single_1, niah_single_2, niah_single_3, niah_multikey_1, niah_multikey_2, niah_multikey_3,
    # niah_multivalue, niah_multiquery, vt, cwe, fwe, qa_1, qa_2
    tasks: list[str] = field(default_factory=lambda: [t for t in RULER_TASKS if t not in ("cwe", "qa_2")])
    tokens: list[int] = field(default_factory=lambda: [2**k for k in range(13, 20)])  # per document: 8K … 512K
    count: int = 128  # samples per task and length
    essay: str = ""  # haystack of most niah tasks: a text file, a folder of .txt files, .json or .jsonl
    questions: str = ""  # for qa_1: SQuAD's JSON
    hotpotqa: str = ""  # for qa_2: HotpotQA's own JSON

    def faults(self) -> list[str]:
        found = _tasks(self.tasks, RULER_TASKS)
        for task, name in (("qa_1", "questions"), ("qa_2", "hotpotqa")):
            if task in self.tasks and not getattr(self, name):
                found.append(f"the task {task} needs {name}; give it, or leave {task} out of tasks")
        return super().faults() + found + _at_least(self, 1, "count") + _lengths(self, "tokens", 1)

    def inputs(self) -> list[str]:
        return [path for path in (self.essay, self.questions, self.hotpotqa) if path]

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        files = {"qa_1": self.questions, "qa_2": self.hotpotqa}
        for task in self.tasks:
            if task in files:
                _check_questions(task, files[task], self.max_bad_share, folder)
        made, tokenizer = [], _from_anywhere(self.tokenizer)
        for task in self.tasks:
            sources = {"essay": _from_anywhere(self.essay), "questions": _from_anywhere(files.get(task, ""))}
            for tokens in self.tokens:
                recipe = RulerRecipe(
                    task, self.seed, tokens, tokenizer, self.count, trust_remote_code=self.trust_remote_code, **sources
                )
                made.append(SampleSet(task, tokens, "tokens", recipe, self.count))
                # Fail at once if a source is missing or too small for the longest document, or a length is too small.
                if tokens == min(self.tokens) or (tokens == max(self.tokens) and task in files):
                    recipe.sample(0)
        return made


@dataclass
class SyntheticSettings(Settings):
    """Problems in the tiny language (pipeline/data/documents/synthetic.py), which need no input."""

    chunks: list[int] = field(default_factory=lambda: [8])  # per document, 18 tokens each
    count: int = 1000  # samples per task and length
    tasks: list[str] = field(default_factory=lambda: ["chains"])  # some of chains, needles, values, long_chains
    # scorer that the rows name: qa, values, or a name in scorer.modules of the run that reads them; empty: values for
    # the task values, else qa
    task: str = ""

    def faults(self) -> list[str]:
        needed = [SYNTHETIC_TASKS[task].most_needed for task in self.tasks if task in SYNTHETIC_TASKS]
        found = _at_least(self, 1, "count") + _lengths(self, "chunks", max(needed, default=1))
        if SPELLING.fullmatch(self.task):
            found.append(f"task={self.task!r} names code, which rows may not; name it in scorer.modules of the run")
        return super().faults() + found + _tasks(self.tasks, SYNTHETIC_TASKS)

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        made = [SyntheticRecipe(self.seed, n, self.count, task, self.task) for task in self.tasks for n in self.chunks]
        return [SampleSet(recipe.set_name, recipe.length, "tokens", recipe, self.count) for recipe in made]


@dataclass
class FactsSettings(Settings):
    """Made-up facts hidden in real prose, asked for in one hop or two: ordinary English, for a small model."""

    tokenizer: str = MISSING  # counts lengths: Hugging Face folder or name
    trust_remote_code: bool = False  # run the tokenizer's own code, if it brings any
    tokens: list[int] = field(default_factory=lambda: [600])  # per document
    hops: list[int] = field(default_factory=lambda: [1, 2])  # facts that a question needs: 1, 2, or both
    count: int = 1000  # samples per number of hops and length
    forms: str = "trained"  # what the facts say: trained, held_out (seven relations), or all
    prose: str = PROSE[0]  # a text file, a folder of .txt files, .json or .jsonl
    chunk_tokens: int = 112  # agent.chunk_tokens of the run: no needed fact is cut by the end of a chunk

    def faults(self) -> list[str]:
        found = _at_least(self, 1, "count", "chunk_tokens") + _lengths(self, "tokens", 1) + _lengths(self, "hops", 1)
        found += [f"hops={hops}; there are: 1, 2" for hops in self.hops if hops > 2]
        if self.forms not in FORMS:
            found.append(f"forms={self.forms!r}; there are: {', '.join(FORMS)}")
        return super().faults() + found

    def inputs(self) -> list[str]:
        return [] if self.prose in PROSE else [from_repository(self.prose)]

    def sets(self, folder: str, rebuild: bool) -> list[SampleSet]:
        made, prose, tokenizer = [], _from_anywhere(from_repository(self.prose)), _from_anywhere(self.tokenizer)
        if not load_tokenizer(tokenizer, self.trust_remote_code).is_fast:
            raise DataError(f"tokenizer={self.tokenizer} does not say where its tokens begin; facts needs a fast one")
        for hops in self.hops:
            for tokens in self.tokens:
                recipe = FactsRecipe(
                    *(self.seed, tokens, hops, self.forms, prose, self.chunk_tokens, tokenizer, self.count),
                    trust_remote_code=self.trust_remote_code,
                )
                recipe.sample(0)  # fail at once if the prose cannot be used, or a length is too small
                made.append(SampleSet(recipe.set_name, tokens, "tokens", recipe, self.count))
        return made


RECIPES: dict[str, type[Settings]] = {
    "facts": FactsSettings,
    "hotpotqa": HotpotqaSettings,
    "ruler_hqa": RulerHqaSettings,
    "ruler": RulerSettings,
    "synthetic": SyntheticSettings,
}


def input_files(settings: Settings) -> list[str]:
    """The input files. A folder, which only an essay may be, stands for its .txt files.

    Raises:
        FileNotFoundError: an input is missing.
        DataError: a URI's kind of store is not supported.
    """
    found = []
    for path in settings.inputs():
        found += list_files(path, [".txt"]) if exists(path) and not is_file(path) else [path]
    return found


def _hotpotqa_sets(
    settings: HotpotqaSettings | RulerHqaSettings, folder: str, rebuild: bool, recipes: list[HotpotqaRecipe]
) -> list[SampleSet]:
    if rebuild or not is_built(folder):
        with _quarantine(folder, BAD_PASSAGES, settings.max_bad_share) as quarantine:
            only = kept_ids(settings.only) if settings.only else None
            build_passages(settings.path, settings.distractors, folder, quarantine, only)
    sets = []
    for recipe in recipes:
        count = min(settings.limit, len(recipe)) if settings.limit else len(recipe)
        unit = "tokens" if recipe.tokens else "documents"
        sets.append(SampleSet(recipe.set_name, recipe.tokens or recipe.documents, unit, recipe, count))
        _try_first(recipe)
    return sets


def _try_first(recipe: HotpotqaRecipe) -> None:
    """Fail at once if there are too few paragraphs, or no tokenizer."""
    try:
        recipe.sample(0)
    except BadRow:
        pass


def _check_questions(task: str, path: str, max_bad_share: float, folder: str) -> None:
    """Quarantine the malformed questions of a file, once. Raises: as `load_questions`."""
    with _quarantine(folder, BAD_QUESTIONS[task], max_bad_share) as quarantine:
        load_questions(task, path, quarantine)


@contextmanager
def _quarantine(folder: str, name: str, max_bad_share: float) -> Iterator[Quarantine]:
    """Yield a quarantine whose rows end up in the file `name` of the folder's own, even if the block fails."""
    path = join(join(folder, QUARANTINE), name)
    with tempfile.TemporaryDirectory() as here:  # the folder may be in an object store
        quarantine = Quarantine(Path(here) / name, max_bad_share)
        try:
            yield quarantine
        except DataError as error:
            raise DataError(str(error).replace(str(quarantine.path), path)) from None
        finally:
            if quarantine.path.exists():
                with atomic_output(path) as partial:
                    shutil.copyfile(quarantine.path, partial)


def _from_anywhere(path: str) -> str:
    """An existing local path as an absolute one, so that workers find it; a name or a URI as it is."""
    return str(Path(path).resolve()) if path and "://" not in path and exists(path) else path


def _at_least(settings: Settings, least: int, *names: str) -> list[str]:
    return [f"{name} must be at least {least}" for name in names if getattr(settings, name) < least]


def _tasks(tasks: list[str], valid: Collection[str]) -> list[str]:
    """The faults of a list of tasks."""
    found = [f"tasks: there is no {task!r}; there are: {', '.join(valid)}" for task in tasks if task not in valid]
    found += [f"tasks: {task} comes twice" for task, times in Counter(tasks).items() if times > 1]
    return found + ["tasks is empty"] * (not tasks)


def _lengths(settings: Settings, name: str, least: int) -> list[str]:
    """The faults of a list of lengths."""
    lengths = getattr(settings, name)
    found = [f"{name}={length} must be at least {least}" for length in lengths if length < least]
    found += [f"{name}: {length} comes twice" for length, times in Counter(lengths).items() if times > 1]
    return found or ([] if lengths else [f"{name} is empty"])
