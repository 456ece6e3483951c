"""The timeline of a run: a valid trace in which no spans of a row overlap, also after a resume."""

import json
import random
from collections import defaultdict

import pytest

from pipeline.run.timeline import Timeline
from pipeline.storage import LineFile, has_lines


def events(path) -> list[dict]:
    text = path.read_text()
    assert text.startswith("[\n") and text.endswith("},\n")
    return json.loads(text.rstrip(",\n") + "]")


@pytest.fixture
def timeline(tmp_path):
    lives = [0, 60]

    def make() -> Timeline:
        path = tmp_path / "timeline.json"
        made = Timeline(LineFile(path))
        made._life += lives.pop(0)  # seconds later
        made.begin(continues=has_lines(path))
        return made

    return make


def test_spans_that_overlap_are_in_rows_of_their_own(timeline, tmp_path):
    made, rng = timeline(), random.Random(0)
    spans = sorted(((begin, begin + rng.uniform(0, 9)) for begin in range(60)), key=lambda span: span[1])
    for number, (begin, end) in enumerate(spans):  # they are known when they end
        made.add(f"generator-{number % 2}", "generate", begin, end, group=str(number))
    made.write()
    made.file.write()
    found = events(tmp_path / "timeline.json")
    names = {event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"}
    assert {"generator-0", "generator-0 (2)", "generator-1"} <= set(names.values()) and len(names) < 20
    rows = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            begin, end = spans[int(event["args"]["group"])]
            assert (event["ts"], event["dur"]) == (round(begin * 1e6), round((end - begin) * 1e6))
            assert names[event["tid"]].startswith(f"generator-{int(event['args']['group']) % 2}")
            rows[event["tid"]].append((begin, end))
    assert sum(map(len, rows.values())) == 60
    for row in rows.values():
        row.sort()
        assert all(end <= begin for (_, end), (begin, _) in zip(row, row[1:], strict=False))


def test_a_span_ends_however_its_work_ends_and_a_resumed_run_goes_on_in_the_file(timeline, tmp_path):
    first = timeline()
    with pytest.raises(ValueError), first.span("learners", "train", step=1):
        raise ValueError
    first.add("scorers", "score", 1.0, 2.0)
    first.write()
    first.file.write()
    second = timeline()
    second.add("scorers", "score", 3.0, 4.0)
    with second.span("learners", "train", step=2):
        pass
    second.write()
    second.file.write()
    found = events(tmp_path / "timeline.json")
    rows = {(event["pid"], event["tid"]): event["args"]["name"] for event in found if event["name"] == "thread_name"}
    done = [event for event in found if event["ph"] == "X"]
    shown = [(event["name"], rows[event["pid"], event["tid"]], event["args"]) for event in done]
    train = [("train", "learners", {"step": step}) for step in (1, 2)]
    score = ("score", "scorers", {})
    assert shown == [train[0], score, score, train[1]]
    assert sum(event["name"] == "process_name" for event in found) == 2 == len({event["pid"] for event in found})
