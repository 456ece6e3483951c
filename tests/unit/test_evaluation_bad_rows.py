"""An evaluation from its questions to its tables, without engines: whatever a row is, it costs itself at most."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from actors.generation.generator_pool import GeneratorLeft, GeneratorLost
from pipeline.config import load_config
from pipeline.data.documents.passages import document_text
from pipeline.evaluation.answers import AnswerRecord
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import read_results
from pipeline.lease import take_lease

GOOD = 20
MARKS = "\u0301\u0316" * 20_000


class Readers:
    """Stands for the generators: reads each document, and answers with what its question asks it to say."""

    engine_version = "none"
    room = 8

    def __init__(self, config, say):
        self.done = 0

    async def run(self):
        await asyncio.Event().wait()

    async def ready(self):
        pass

    async def answer(self, problem, method, sampling, memories, transcript, *_):
        document_text(problem)
        return AnswerRecord(problem.question.removeprefix("say "), (), 3, 1, 10, 5, False, 0, None, (([1], [2]),))

    def work_done(self):
        self.done += 1

    async def tokens_done(self):
        return self.done

    async def close(self):
        pass


def good(number: int) -> dict:
    row = {"id": f"good-{number}", "question": "say \\boxed{Paris}", "answers": ["Paris"], "document": "Rex Paris ."}
    return row | {"metadata": {"set": "good", "length": 8192}}


def evaluate(
    tmp_path: Path, monkeypatch, *bad: dict | str, methods: str = "direct", pool=Readers
) -> tuple[dict, Counter, dict]:
    """Evaluate the good rows and these; returns the summary, the errors by id and the reasons in quarantine by id."""
    from actors import evaluator as module

    monkeypatch.setattr(module, "GeneratorPool", pool)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8})
    lines = [json.dumps(good(i)) for i in range(GOOD)]
    lines[GOOD // 2 : GOOD // 2] = [row if isinstance(row, str) else json.dumps(row) for row in bad]
    if not (data := tmp_path / "data.jsonl").exists():
        data.write_text("\n".join(lines) + "\n")
    overrides = ["preset=eval_tiny", "data.source=file", f"data.path={data}", "wandb.mode=disabled"]
    overrides += [f"evaluate.methods=[{methods}]", "data.max_bad_share=0.5", "evaluate.successes=true"]
    config = load_config(overrides, EvaluationConfig)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    summary = asyncio.run(
        module.Evaluator.__ray_metadata__.modified_class(config, str(folder), take_lease(folder)).run()
    )
    assert summary["status"] == "completed", summary["error"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    rows = read_results(folder / "results.jsonl")
    assert sum(row["score"] == 1 for row in rows if row["id"].startswith("good-")) == GOOD
    quarantine = folder / "quarantine.jsonl"
    turned_away = [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []
    assert summary["rows_quarantined"] == len(turned_away) and summary["answers"] == len(rows)
    assert summary["errors"] == sum(row["error"] is not None for row in rows)
    assert all((folder / name).exists() for name in ("table.md", "table.csv", "accuracy.png"))
    errors = Counter({row["id"]: row["error"] for row in rows if row["error"]})
    return summary, errors, {entry["id"]: entry["reason"] for entry in turned_away}


def with_metadata(metadata: str) -> str:
    return json.dumps(good(99) | {"id": "bad"}).replace('{"set": "good", "length": 8192}', metadata)


NO_SET_OR_LENGTH = {
    '{"set": "good", "length": 1e999}': "length in 'metadata' must be from 0 to 1e+15, not inf",
    '{"set": "good", "length": -1e999}': "length in 'metadata' must be from 0 to 1e+15, not -inf",
    '{"set": "good", "length": NaN}': "must be from 0 to 1e+15, not nan",
    '{"set": "good", "length": -5}': "must be from 0 to 1e+15, not -5",
    '{"set": "good", "length": 1e300}': "must be from 0 to 1e+15, not 1e+300",
    '{"set": "good", "length": ' + "9" * 4000 + "}": "must be from 0 to 1e+15, not 9999",
    '{"set": "good", "length": "9999999999999999"}': "must be from 0 to 1e+15, not 9999",
    '{"set": "good", "length": true}': "must be a number or text, not bool",
    '{"set": "good", "length": [8192]}': "must be a number or text, not list",
    '{"set": "good", "length": {"tokens": 8192}}': "must be a number or text, not dict",
    '{"set": "good", "length": "' + "9" * 201 + '"}': "has 201 characters, over 200",
    '{"set": 5}': "set in 'metadata' must be text, not int",
    '{"set": ["good"]}': "set in 'metadata' must be text, not list",
    '{"set": false}': "set in 'metadata' must be text, not bool",
    '{"set": "' + "x" * 10000 + '"}': "set in 'metadata' has 10000 characters, over 200",
    '{"set": "a\\ud800"}': "not valid Unicode",
}


def test_a_set_or_a_length_that_heads_no_table_is_quarantined(tmp_path, monkeypatch):
    summary, errors, quarantined = evaluate(tmp_path, monkeypatch, *map(with_metadata, NO_SET_OR_LENGTH))
    assert list(quarantined) == [f"data.jsonl:{GOOD // 2 + 1 + i}" for i in range(len(NO_SET_OR_LENGTH))]
    for reason, expected in zip(quarantined.values(), NO_SET_OR_LENGTH.values(), strict=True):
        assert expected in reason
    assert [(cell["set"], cell["length"], cell["questions"]) for cell in summary["cells"]] == [("good", 8192, GOOD)]
    assert not errors


CELLS = {
    "null": ("questions", None),
    '{"set": null, "length": null}': ("questions", None),
    '{"set": "", "length": ""}': ("questions", ""),
    '{"set": "good", "length": "long"}': ("good", "long"),  # beside numbers
    '{"set": "good", "length": 8192.0}': ("good", 8192),
    '{"set": "good", "length": "8192"}': ("good", 8192),
    '{"set": "good", "length": " 50.0 "}': ("good", 50),
    '{"set": "good", "length": "0.5"}': ("good", 0.5),
    '{"set": "good", "length": "8K"}': ("good", "8K"),
    '{"set": "good", "length": "1e3"}': ("good", "1e3"),
    '{"set": "good", "length": "nan"}': ("good", "nan"),
    '{"set": "good", "length": "²"}': ("good", "²"),
    '{"set": "good", "length": 0}': ("good", 0),
    '{"set": "good", "length": 1e-300}': ("good", 1e-300),
    '{"set": "good", "length": 1e15}': ("good", 10**15),
    '{"set": "|\\n\\u001b[31m$\\\\frac$", "length": 8192}': ("|\n\x1b[31m$\\frac$", 8192),
}


def test_sets_and_lengths_of_all_kinds_are_cells(tmp_path, monkeypatch):
    rows = [json.loads(with_metadata(metadata)) | {"id": f"q{i}"} for i, metadata in enumerate(CELLS)]
    summary, errors, quarantined = evaluate(tmp_path, monkeypatch, *rows)
    assert not errors and not quarantined
    expected = Counter({("good", 8192): GOOD}) + Counter(CELLS.values())
    assert {(cell["set"], cell["length"]): cell["questions"] for cell in summary["cells"]} == expected
    assert "\x1b" not in (tmp_path / "run/table.md").read_text()


def bad(**fields) -> dict:
    return good(99) | {"id": "bad"} | fields


PASSAGE_FILES = {
    "no-such-file.arrow": "no such file",
    "data.jsonl": "data.jsonl:1",  # of another kind
    "foo://bucket/x.arrow": "Unrecognized filesystem",
    "nul\0.arrow": "NUL",
    "x" * 5000 + ".arrow": "File name too long",
    ".": "ends in .arrow",
}


def test_a_passage_file_that_is_none_is_an_error_of_its_question(tmp_path, monkeypatch):
    """Or, where that is seen as the row is read, a reason for the quarantine."""
    rows = [bad(id=f"q{i}", passages=[0], passage_file=file, document=None) for i, file in enumerate(PASSAGE_FILES)]
    _, errors, quarantined = evaluate(tmp_path, monkeypatch, *rows)
    for i, expected in enumerate(PASSAGE_FILES.values()):
        assert expected in errors.get(f"q{i}", "") or f"data.jsonl:{GOOD // 2 + 1 + i}" in quarantined
    assert len(errors) + len(quarantined) == len(PASSAGE_FILES)


def test_a_strange_answer_is_scored_like_any_other(tmp_path, monkeypatch):
    strange = [
        bad(question="say " + MARKS),
        bad(question="say \\boxed{" + MARKS + "}", answers=["Paris" + MARKS]),
        bad(question="say " + "\\boxed{" * 5000),
        bad(question="say " + "{}" * 5000, answers=["{" * 5000]),
        bad(question="say \0\x1b[2J"),
        bad(answers=["x"] * 1000),
    ]
    begin = time.monotonic()
    _, errors, quarantined = evaluate(tmp_path, monkeypatch, *(row | {"id": f"q{i}"} for i, row in enumerate(strange)))
    assert not errors and not quarantined and time.monotonic() - begin < 15


def test_half_a_surrogate_pair_in_an_answer_comes_back_as_it_was(tmp_path, monkeypatch):
    """No tokenizer writes one; an agent of one's own may."""

    async def answer(self, problem, *arguments):
        text = "\ud800 \\boxed{Paris}" if problem.id == "bad" else "\\boxed{Paris}"
        return AnswerRecord(text, ("\udfff",), 3, 1, 10, 5, False, 0, None, ())

    monkeypatch.setattr(Readers, "answer", answer)
    for _ in range(2):  # the second finds all answers there
        evaluate(tmp_path, monkeypatch, bad())
        (row,) = [row for row in read_results(tmp_path / "run/results.jsonl") if row["id"] == "bad"]
        assert row["answer"] == "\ud800 \\boxed{Paris}" and row["memories"] == ["\udfff"] and row["score"] == 1


class Dying(Readers):
    """One generator, which dies under the questions that `deadly` names, with all that it answers; before that, it is
    lost in ways that no question is to blame for."""

    deadly = ("bad-0", "bad-1")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.running, self.lost = {}, [GeneratorLeft("left"), GeneratorLost("died")] * 3

    async def answer(self, problem, *arguments):
        dying = self.running[problem.id] = asyncio.get_running_loop().create_future()
        together.append(sorted(self.running))
        await asyncio.sleep(0.01)
        if not dying.done() and (problem.id in self.deadly or self.lost):
            error = self.lost.pop() if self.lost else GeneratorLost("died", blame=True)
            for other in self.running.values():
                other.set_exception(error)
            self.running.clear()
        if dying.done():
            raise dying.exception()
        del self.running[problem.id]
        return await super().answer(problem, *arguments)


together: list[list[str]] = []  # what the generator answered each time that a question came


def test_a_deadly_question_is_an_error_and_those_beside_it_are_answered(tmp_path, monkeypatch):
    """Also if it is one of few, so that all are beside it whenever it is asked."""
    together.clear()
    begin = time.monotonic()
    summary, errors, _ = evaluate(tmp_path, monkeypatch, *(bad(id=name) for name in Dying.deadly), pool=Dying)
    assert errors == dict.fromkeys(Dying.deadly, "3 generators died under it")
    assert summary["answers"] == GOOD + 2 and time.monotonic() - begin < 10
    for name in Dying.deadly:
        assert [names for names in together if name in names][-1] == [name]


class Prioritised(Readers):
    async def answer(self, problem, *arguments):
        *_, priority = arguments
        priorities.append((priority, problem.id))
        return await super().answer(problem, *arguments)


priorities: list[tuple[int, str]] = []


def test_earlier_questions_go_first(tmp_path, monkeypatch):
    priorities.clear()
    evaluate(tmp_path, monkeypatch, pool=Prioritised)
    assert sorted(priorities) == [(number, f"good-{number}") for number in range(GOOD)]


def test_an_agent_whose_answer_is_no_text_is_an_error():
    from pipeline.evaluation.answers import AnswerRecorder
    from pipeline.rollout.episodes import Sampling

    with pytest.raises(TypeError, match="the agent's answer must be text, not NoneType"):
        AnswerRecorder(None, Sampling(0.0), transcript=False).answer(None)


def test_the_loop_turns_while_answers_are_scored_and_a_scorer_that_hangs_is_an_error(monkeypatch):
    from actors.scoring import answer_scoring

    def slow(answer, answers, task):
        time.sleep(0.5)
        return {"f1": 1.0}

    monkeypatch.setattr(answer_scoring, "answer_scores", slow)

    async def scenario(limit_s):
        monkeypatch.setattr(answer_scoring, "SCORER_LIMIT_S", limit_s)
        scoring = asyncio.ensure_future(answer_scoring.scores_of("qa", "\\boxed{Paris}", ("Paris",)))
        turns = 0
        while not scoring.done():
            await asyncio.sleep(0.01)
            turns += 1
        return scoring.result(), turns

    scored, turns = asyncio.run(scenario(60.0))
    assert scored == ({"f1": 1.0, "score": 1.0}, None) and turns > 10
    (scores, error), _ = asyncio.run(scenario(0.1))
    assert scores == {} and error == "the scorer of task 'qa' took longer than 0 s"


def test_tables_that_cannot_be_made_do_not_take_the_answers_with_them(tmp_path, monkeypatch):
    rows = [bad(id=f"{i}", metadata={"set": f"set {i}"}) for i in range(70)]
    with contextlib.suppress(AssertionError):  # there is no figure
        evaluate(tmp_path, monkeypatch, *rows)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "completed" and summary["answers"] == 70 + GOOD
    assert (tmp_path / "run/table.md").exists() and not (tmp_path / "run/accuracy.png").exists()


def test_a_question_that_cannot_be_read_again_ends_the_evaluation_with_a_reason(tmp_path, monkeypatch):
    from actors import evaluator as module

    async def answer(self, problem, *arguments):
        raise AssertionError("nothing is asked")

    monkeypatch.setattr(Readers, "answer", answer)
    monkeypatch.setattr(module, "open_source", lambda data: Vanishing())
    with pytest.raises(AssertionError, match="'good-0' was read before and cannot be read any more: FileNotFoundError"):
        evaluate(tmp_path, monkeypatch)


class Vanishing:
    """A source whose file is there for one reading only."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 1

    def sample(self, index):
        from pipeline.data.rows import problem_from_row

        self.read += 1
        if self.read > 1:
            raise FileNotFoundError("gone")
        return problem_from_row(good(0), "x")
