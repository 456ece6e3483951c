"""Writes sets of samples to a folder, so that a stopped job can resume where it stopped.

A file holds a fixed range of a set's samples and appears once it is complete; a job makes the files that are missing.
A file's bad rows are in the file of the same name in the folder `quarantine`, written just before. So nothing is
written or counted twice, and the bytes depend neither on the number of workers nor on how often the job was stopped. A
folder without any such file starts fresh, with any settings.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.credentials import without_credentials
from pipeline.data.recipes import BAD_PASSAGES, BAD_QUESTIONS, QUARANTINE, SampleSet, Settings, input_files
from pipeline.data.samples import JoinedSamples, SampleRow, sample_rows
from pipeline.errors import ConfigError, DataError
from pipeline.files import atomic_output, exists, file_state, join, list_files, make_folder, open_input, write_text
from pipeline.summary import duration

RECORD = "prepare.json"
NOT_COMPARED = ("output", "workers", "max_bad_share")  # settings that change no sample
PROGRESS_S = 3.0

Show = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    samples: int
    quarantined: int  # unusable rows, distractors and questions
    files: int
    most_tokens: int  # upper limit of all documents' tokens together; 0 if their lengths are not in tokens


@dataclass(frozen=True)
class PlannedFile:
    """The samples `first` to `first + count - 1` of all sets joined."""

    name: str
    first: int
    count: int


def prepare_samples(kind: str, settings: Settings, folder: str, workers: int, show: Show) -> Prepared:
    """Make the samples that `settings` of this kind describe, in `folder`, with Ray Data; `show` prints a line.

    Raises:
        ConfigError: the folder holds other files, or was made with other settings or from other inputs.
        FileNotFoundError, DataError: an input is missing, has another format or is too small; or too many rows were
            bad.
    """
    record = {
        "kind": kind,
        "settings": _comparable(settings),
        "inputs": {p: file_state(p) for p in input_files(settings)},
    }
    begun = open_folder(folder, record)
    show(f"· writing to {folder}")
    sets = settings.sets(folder, rebuild=not begun)
    files = planned_files(sets, settings.rows_per_file)
    counts = write_files(folder, JoinedSamples(tuple(sets)), files, workers, settings.max_bad_share, show)
    quarantined = counts.bad + sum(_quarantined(folder, name) for name in (BAD_PASSAGES, *BAD_QUESTIONS.values()))
    of_sets = {f"{each.name}-{each.length}": {"samples": each.count, "unit": each.unit} for each in sets}
    write_text(join(folder, RECORD), _record_text(record | {"sets": of_sets, "quarantined": quarantined}))
    in_tokens = all(each.unit == "tokens" for each in sets)
    most_tokens = sum(each.count * each.length for each in sets) if in_tokens else 0
    return Prepared(counts.rows - counts.bad, quarantined, len(files), most_tokens)


def open_folder(folder: str, record: dict) -> bool:
    """Create the folder and record what its samples are made from, or check the record that is there.

    Returns whether the folder holds samples. If not, anything that a failed attempt left there does not count.

    Raises:
        ConfigError: the folder holds other files, or has another record; the message says what differs.
    """
    path = join(folder, RECORD)
    if not exists(path):
        if exists(folder) and list_files(folder, [""]):
            raise ConfigError(f"output={folder} holds files that are not from this job; choose another output")
        make_folder(folder)
    elif list_files(folder, [".jsonl"]):
        with open_input(path) as file:
            there = json.load(file)
        if found := _differences(there, json.loads(_record_text(record))):
            raise ConfigError(
                "\n".join([f"output={folder} was made with other settings or inputs; choose another output", *found])
            )
        return True
    quarantine = join(folder, QUARANTINE)
    for left in list_files(quarantine, [".jsonl"]) if exists(quarantine) else ():
        write_text(left, "")  # else its rows would count among those of the new samples
    write_text(path, _record_text(record))
    return False


def planned_files(sets: Sequence[SampleSet], rows_per_file: int) -> list[PlannedFile]:
    files, first = [], 0
    for each in sets:
        for number, start in enumerate(range(0, each.count, rows_per_file)):
            count = min(rows_per_file, each.count - start)
            files.append(PlannedFile(f"{each.name}-{each.length}-{number:05d}.jsonl", first + start, count))
        first += each.count
    return files


@dataclass
class Counts:
    """Rows done, by this job or an earlier one, out of `total`."""

    total: int
    rows: int = 0
    bad: int = 0

    def check(self, max_share: float, folder: str) -> None:
        """Raise `DataError` if there are too many bad rows, even if all rows to come are good."""
        if self.bad > max_share * self.total:
            raise DataError(
                f"{self.bad} of {self.total} rows are bad, more than max_bad_share={max_share}; their reasons are in "
                f"{join(folder, QUARANTINE)}"
            )


def write_files(
    folder: str, source: JoinedSamples, files: Sequence[PlannedFile], workers: int, max_bad_share: float, show: Show
) -> Counts:
    """Make the missing files, in order; return the counts of all files. Each row is held only until it is written.

    Raises:
        DataError: the source as a whole cannot be used, or too many rows were bad.
    """
    there = {path.rpartition("/")[2] for path in list_files(folder, [".jsonl"])}
    missing = [file for file in files if file.name not in there]
    counts = Counts(len(source))
    for file in files:
        if file.name in there:
            counts.rows += file.count
            counts.bad += _quarantined(folder, file.name)
    if len(missing) < len(files):
        show(f"· {len(files) - len(missing)} of {len(files)} files are there already")
    indices = np.concatenate([np.arange(0), *(np.arange(f.first, f.first + f.count) for f in missing)])
    progress = Progress(counts.rows, len(source), show)
    with contextlib.closing(sample_rows(source, indices, workers)) as rows:
        for file in missing:
            _write_file(folder, file, itertools.islice(rows, file.count), counts, max_bad_share, progress)
    counts.check(max_bad_share, folder)
    return counts


class Progress:
    """Shows a line every few seconds: the samples done, their rate, and the time left."""

    def __init__(self, done: int, total: int, show: Show):
        self._first, self._total, self._show = done, total, show
        self._start: float | None = None  # time of the first sample: workers take seconds to start
        self._shown = 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._first, self._start, self._shown = done, now, now
        if done < self._total and now - self._shown < PROGRESS_S:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-3)
        left = f"  {duration((self._total - done) / rate)} left" if rate and done < self._total else ""
        self._show(f"sample {done}/{self._total}  {rate:.0f}/s{left}")


def _write_file(
    folder: str, file: PlannedFile, rows: Iterator[SampleRow], counts: Counts, max_bad_share: float, progress: Progress
) -> None:
    bad: list[str] = []
    try:
        with atomic_output(join(folder, file.name)) as partial, partial.open("w", encoding="utf-8") as output:
            for row in rows:
                counts.rows += 1
                if row.error is None:
                    output.write(row.line + "\n")
                else:
                    counts.bad += 1
                    bad.append(_aside(row))
                    counts.check(max_bad_share, folder)
                progress(counts.rows)
            _put_aside(folder, file, bad)
    except DataError:
        _put_aside(folder, file, bad)  # the bad rows so far say why
        raise


def _aside(row: SampleRow) -> str:
    aside = {"id": row.id, "reason": row.error, "row": json.loads(row.line)}
    line = without_credentials(json.dumps(aside, ensure_ascii=False))  # a password is struck out as it is spelled
    return line.encode(errors="backslashreplace").decode()  # half a surrogate pair becomes its JSON escape


def _put_aside(folder: str, file: PlannedFile, bad: list[str]) -> None:
    if bad:
        write_text(join(join(folder, QUARANTINE), file.name), "".join(line + "\n" for line in bad))


def _quarantined(folder: str, name: str) -> int:
    path = join(join(folder, QUARANTINE), name)
    if not exists(path):
        return 0
    with open_input(path) as lines:
        return sum(1 for _ in lines)


def _comparable(settings: Settings) -> dict:
    return {name: value for name, value in asdict(settings).items() if name not in NOT_COMPARED}


def _differences(there: dict, now: dict) -> list[str]:
    if there.get("kind") != now["kind"]:
        return [f"  kind: {there.get('kind')}, now {now['kind']}"]
    before, after = there.get("settings", {}), now["settings"]
    found = [
        f"  {name} was {before.get(name)!r}, is now {after.get(name)!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    before, after = there.get("inputs", {}), now["inputs"]
    for path in sorted({*before, *after}):
        if path not in before:
            found.append(f"  {path} is new among the inputs")
        elif path not in after:
            found.append(f"  {path} is gone from the inputs")
        elif before[path] != after[path]:
            found.append(f"  {path} has another size or modification time than before")
    return found


def _record_text(record: dict) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
