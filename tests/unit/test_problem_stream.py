"""Bad rows in a training run's passes over its data. The data are few enough to be read without Ray Data."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from pipeline.data.problem_stream import Cursor, problem_stream
from pipeline.data.quarantine import Quarantine
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import DataError
from tests.support.samples import jsonl, row

ROWS = 50


def source_with(path: Path, bad: Iterable[int]) -> SampleFiles:
    """Samples of which those at the positions `bad` of the first pass are bad; the seed is 0."""
    order = SampleFiles.open(str(jsonl(path, [{}] * ROWS))).order(0, 0)
    indices = {order[position] for position in bad}
    rows = [row(i, **({"answers": []} if i in indices else {})) for i in range(ROWS)]
    return SampleFiles.open(str(jsonl(path, rows)))


def test_bad_rows_are_a_share_of_the_whole_first_pass_wherever_the_run_resumes(tmp_path):
    source = source_with(tmp_path / "a.jsonl", bad=(47, 49))
    whole = list(islice(problem_stream(source, 0, Quarantine(tmp_path / "one", 0.06)), ROWS + 5))
    resumed = Quarantine(tmp_path / "two", 0.06)
    resumed.resume(["q1"])  # a problem that was withdrawn before
    read = list(islice(problem_stream(source, 0, resumed, Cursor(46, (3,))), 8))
    assert read == [whole[3], *whole[46:53]] and resumed.bad == 3


@pytest.mark.parametrize("position", [0, 30])
def test_data_without_one_good_row_are_an_error_whatever_the_share(tmp_path, position):
    """A run that resumes within a pass cannot tell before the next one is over."""
    quarantine = Quarantine(tmp_path / "q", 1.0)
    stream = problem_stream(source_with(tmp_path / "a.jsonl", range(ROWS)), 0, quarantine, Cursor(position))
    with pytest.raises(DataError, match="all 50 rows are bad; their reasons are in .*q. Correct the rows"):
        next(stream)
    assert quarantine.bad == ROWS


def test_one_good_row_is_enough(tmp_path):
    source = source_with(tmp_path / "a.jsonl", range(1, ROWS))  # the first of the first pass
    stream = problem_stream(source, 0, Quarantine(tmp_path / "q", 1.0))
    assert [position // ROWS for position, _ in islice(stream, 4)] == [0, 1, 2, 3]
    resumed = problem_stream(source, 0, Quarantine(tmp_path / "q", 1.0), Cursor(1))
    assert [position // ROWS for position, _ in islice(resumed, 2)] == [1, 2]
