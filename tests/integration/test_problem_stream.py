"""The problems of a training run through Ray Data: every row in every pass, in one order whoever reads."""

import json
from dataclasses import dataclass
from itertools import islice

import pytest

from pipeline.data.documents.synthetic import SyntheticRecipe, synthetic_problem
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START, Cursor, problem_stream
from pipeline.data.quarantine import Quarantine
from pipeline.data.sample_files import SampleFiles
from pipeline.data.samples import sample_rows, sample_rows_here
from pipeline.errors import DataError
from pipeline.problems import Problem
from pipeline.run.source import training_source
from tests.support.samples import jsonl, row

ROWS = 150  # more than one task's


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> SampleFiles:
    """Of every ten rows the last is bad."""
    rows = [row(i, **({"answers": []} if i % 10 == 9 else {})) for i in range(ROWS)]
    return SampleFiles.open(str(jsonl(tmp_path_factory.mktemp("data") / "a.jsonl", rows)))


def stream(source, tmp_path, seed=0, cursor=START, share=0.2):
    return problem_stream(source, seed, Quarantine(tmp_path / "quarantine.jsonl", share), cursor)


def test_samples_come_in_the_order_asked_for_whatever_the_number_of_workers(ray_session, source):
    indices = source.order(3, 0)
    one, three = (list(sample_rows(source, indices, workers, num_cpus=0.5)) for workers in (1, 3))
    assert one == three and [r.index for r in one] == indices.tolist()
    assert [r.error is not None for r in one] == [i % 10 == 9 for i in indices]
    good = [r for r in one if r.error is None]
    assert all(r.problem() == source.sample(r.index) for r in good)
    assert json.loads(next(r for r in one if r.error).line)["answers"] == []


def test_rows_that_are_read_without_workers_are_the_same(ray_session, source):
    indices = source.order(4, 1)
    assert list(sample_rows_here(source, indices)) == list(sample_rows(source, indices, workers=2, num_cpus=0.5))


def test_a_source_that_fails_as_a_whole_says_so_in_its_own_words(ray_session):
    @dataclass(frozen=True)
    class Broken:
        def __len__(self):
            return 3

        def sample(self, index):
            raise DataError("the passages are gone")

    with pytest.raises(DataError, match="^the passages are gone$"):
        list(sample_rows(Broken(), [0, 1], workers=1))
    with pytest.raises(DataError, match="^the passages are gone$"):
        list(sample_rows_here(Broken(), [0, 1]))


def test_text_that_is_no_unicode_comes_through_as_its_escape(ray_session, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ['{"id": "x", "question": "\\ud800"}', json.dumps(row(1, metadata={"a": "é"}))])
    bad, good = sample_rows(SampleFiles.open(str(path)), [0, 1], workers=1)
    assert "not valid Unicode" in bad.error and "\\ud800" in bad.line
    assert "é" in good.line


def test_every_pass_has_every_row_once_in_an_order_of_its_own(ray_session, source, tmp_path):
    good = ROWS - ROWS // 10
    read = list(islice(stream(source, tmp_path), 2 * good))
    passes = [[problem.id for _, problem in read[:good]], [problem.id for _, problem in read[good:]]]
    assert set(passes[0]) == set(passes[1]) == {f"q{i}" for i in range(ROWS) if i % 10 != 9}
    assert passes[0] != passes[1]
    positions = [position for position, _ in read]
    assert positions == sorted(positions) and positions[good] >= ROWS > positions[good - 1]
    quarantined = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert len(quarantined) == ROWS // 10 and all(q["row"]["answers"] == [] for q in quarantined)


@pytest.mark.parametrize("after", [3, 60, 200, 300])
def test_a_run_that_is_taken_up_sees_what_the_stopped_one_would_have_seen(ray_session, source, tmp_path, after):
    whole = list(islice(stream(source, tmp_path), 420))  # into the fourth pass
    read = whole[:after]
    open_positions = [position for position, _ in read[-3:]]  # read, but not trained yet
    again = stream(source, tmp_path, cursor=Cursor(read[-1][0] + 1, tuple(open_positions)))
    assert list(islice(again, 420 - after + 3)) == whole[after - 3 :]


def test_reading_needs_a_tenth_of_a_cpu_and_no_more(ray_session, source, tmp_path):
    """All other CPUs are the pools': a task that asked for more would wait for ever, and nobody would say why."""

    @ray_session.remote
    class Pool:
        def ready(self):
            return True

    pool = Pool.options(num_cpus=ray_session.cluster_resources()["CPU"] - 0.2).remote()
    assert ray_session.get(pool.ready.remote())
    assert len(list(islice(stream(source, tmp_path), 200))) == 200
    ray_session.kill(pool)


def test_another_seed_gives_another_order(ray_session, source, tmp_path):
    first, second = (list(islice(stream(source, tmp_path, seed), 20)) for seed in (0, 1))
    assert [p.id for _, p in first] != [p.id for _, p in second]


def test_too_many_bad_rows_stop_the_reading(ray_session, source, tmp_path):
    with pytest.raises(DataError, match="max_bad_share"):
        list(islice(stream(source, tmp_path, share=0.05), 2 * ROWS))


def test_synthetic_problems_come_in_the_order_of_their_numbers(ray_session, tmp_path, tiny_config):
    read = list(islice(stream(training_source(tiny_config), tmp_path), 5))
    assert [position for position, _ in read] == list(range(5))
    for position, problem in read:
        expected = synthetic_problem(tiny_config.run.seed, position, tiny_config.data.synthetic_chunks)
        assert (problem.id, problem.document) == (expected.id, expected.document)


def test_a_short_source_starts_again(ray_session, tmp_path):
    ids = [problem.id for _, problem in islice(stream(SyntheticRecipe(0, 2, count=2), tmp_path), 5)]
    assert ids == [f"synthetic-0-{i}" for i in (0, 1, 0, 1, 0)]


def test_a_problem_survives_the_way_through_a_worker(ray_session):
    problem = Problem('é\n"', "q\u2028?", ("a\\", "b"), "<eos> \x00", "values", {"deep": {"list": [1, None, 2.5]}})

    @dataclass(frozen=True)
    class One:
        def __len__(self):
            return 1

        def sample(self, index):
            return problem

    (row,) = sample_rows(One(), [0], workers=1)
    assert row.problem() == problem


# The queue.


@pytest.fixture
def queue(ray_session, source, tmp_path):
    def make(cursor=START) -> ProblemQueue:
        return ProblemQueue(source, 0, Quarantine(tmp_path / "quarantine.jsonl", 0.5), cursor)

    return make


def test_problems_that_are_run_again_come_first_and_in_order(queue, source, tmp_path):
    queue = queue()
    read = [queue.next() for _ in range(5)]
    for position in (read[3], read[1]):
        queue.again(position)
    assert [queue.next(), queue.next()] == [read[1], read[3]] and queue.next() > read[-1]
    expected = dict(islice(stream(source, tmp_path), 6))
    assert all(queue.problem(position) == expected[position] for position in read)


def test_the_cursor_has_all_that_is_not_done_with(queue):
    first = queue()
    read = [first.next() for _ in range(6)]
    first.done(read[0])
    first.withdraw(read[2])
    first.again(read[4])
    cursor = first.cursor()
    assert cursor == Cursor(read[-1] + 1, (read[1], read[3], read[4], read[5]))
    second = queue(cursor)
    assert [second.next(), second.next()] == [read[1], read[3]]
    assert second.cursor() == cursor  # those that were not yet read again are open too
    assert [second.next(), second.next()] == [read[4], read[5]] and second.next() > read[5]


def test_a_rollback_hands_out_what_was_done_with_since_and_nothing_else(queue):
    queue = queue()
    read = [queue.next() for _ in range(3)]
    queue.done(read[0])
    before = queue.cursor()
    read += [queue.next() for _ in range(9)]
    problems = [queue.problem(position) for position in read[1:5]]
    for position in read[1:5]:
        queue.done(position)
    queue.withdraw(read[5])
    queue.again(read[6])  # as well as what is open anyway
    queue.roll_back(before)
    assert [queue.next() for _ in range(5)] == [*read[1:5], read[6]]
    assert [queue.problem(position) for position in read[1:5]] == problems
    assert queue.next() > read[-1]
    queue.done(read[1])
    queue.roll_back(START)  # that checkpoint was found broken
    assert [queue.next(), queue.next()] == read[:2]


def test_bad_rows_stay_away_after_a_rollback(queue):
    queue = queue()
    read = [queue.next() for _ in range(40)]
    for position in read:
        queue.done(position)
    assert len(read) < read[-1] + 1  # some were bad
    queue.roll_back(START)
    assert [queue.next() for _ in range(40)] == read
