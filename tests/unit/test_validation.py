"""The validation of a training run without an engine: when it asks, how much at a time, and what it reports."""

import asyncio
from pathlib import Path

import pytest

from actors import validation as module
from actors.generation.generator_pool import GeneratorLost
from actors.validation import Validation
from pipeline.data.documents.synthetic import EVALUATION_SEED, VALIDATION_SEED
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.answers import AnswerRecord
from pipeline.evaluation.questions import Question, Trial
from pipeline.run.checkpoints import Scores
from pipeline.run.config import load_training_config
from pipeline.run.ledger import SUSPECT_DEATHS, Entry, Ledger
from pipeline.run.report import validation_line
from pipeline.run.rules import check_config
from pipeline.run.validation import digest_of, score_curves, validation_config, validation_metrics, validation_row
from pipeline.storage import LineFile
from tests.support.result_rows import row

QUESTIONS = 6
ARGUMENTS = (
    *("preset=tiny", "train.evaluate_every=4", "validation.data.synthetic_chunks=[3,6]"),
    *(f"validation.data.synthetic_count={QUESTIONS // 2}", "generator.max_sequences=20"),
)


class Pool:
    """A pool whose generators answer when the test lets them, all of them right."""

    def __init__(self):
        self.versions = {"generator-0": 0}
        self.asked: list[tuple] = []
        self.let = asyncio.Event()
        self.deadly: dict[str, int] = {}  # how often a question's generator dies, by the question's id
        self.failing: Exception | None = None
        self.done = 0

    @property
    def sequences(self) -> int:
        return 20 * len(self.versions)

    async def answer(self, problem, method, sampling, *others, usable):
        while not any(usable(name, version) for name, version in self.versions.items()):
            await asyncio.sleep(0.005)
        self.asked.append((problem, method, sampling, others[-1]))
        await self.let.wait()
        if self.failing:
            raise self.failing
        if self.deadly.get(problem.id):
            self.deadly[problem.id] -= 1
            raise GeneratorLost("generator-0 died", blame=True)
        text = f"\\boxed{{ {problem.answers[0]} }}"
        version = self.versions["generator-0"]
        return AnswerRecord(text, ("memory",), 3, 2, 10, 5, False, 0, None, (), None, 4, (version, version + 1))

    def work_done(self):
        self.done += 1


class Run:
    """A run without learners: its ledger, its validation, and what the validation reported."""

    def __init__(self, folder: Path, *arguments: str):
        self.pool, self.said, self.reports = Pool(), [], []
        self.config = load_training_config([*ARGUMENTS, *arguments])
        self.ledger = Ledger(20, 1, 80, numbered=7)
        quarantine = LineFile(folder / "quarantine-validation.jsonl")
        self.validation = Validation(self.config, self.said.append, quarantine, self.pool, self.ledger, self._report)

    async def _report(self, row: dict, answers: list[dict]) -> None:
        self.reports.append((row, answers))

    def begin(self, step: int) -> None:
        """Train up to a step, load its weights, and begin a validation if one is due."""
        self.ledger.step = self.ledger.version = step
        self.pool.versions["generator-0"] = step
        self.validation.begin()

    async def validate(self, step: int) -> None:
        self.begin(step)
        await turns(lambda: self.validation._running is None)

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row, _ in self.reports]


async def turns(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def live(scenario):
    """Run an asynchronous test."""
    asyncio.run(scenario)


def test_it_begins_when_it_is_due_and_answers_name_their_versions(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.pool.let.set()
        for step in range(9):
            await run.validate(step)
        assert run.steps == [0, 4, 8] == [row["step"] for row in run.validation.rows]
        shown, answers = run.reports[1]
        assert (shown["version"], shown["version_min"], shown["version_max"]) == (4, 4, 5)
        assert shown["score"] == 1.0 and shown["answers"] == QUESTIONS == len(answers) and shown["errors"] == 0
        assert [(cell["length"], cell["questions"], cell["version_mean"]) for cell in shown["cells"]] == [
            (54, 3, 4.5),
            (108, 3, 4.5),
        ]
        assert shown["tokens_computed"] == QUESTIONS * (10 - 4 + 5) == run.validation.tokens_computed / 3
        assert all(answer["versions"] == (4, 5) and answer["memories"] == ["memory"] for answer in answers)
        assert {(method, priority) for _, method, _, priority in run.pool.asked} == {("memory", 7)}
        assert {(sampling.temperature, sampling.top_p) for _, _, sampling, _ in run.pool.asked} == {(0.7, 0.95)}
        assert run.pool.done == 3 * QUESTIONS

    live(scenario())


def test_every_validation_asks_the_same_questions_with_the_same_seeds_and_none_of_the_evaluation(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.pool.let.set()
        for step in (0, 4):
            await run.validate(step)
        asked = [(problem.id, sampling.seed) for problem, _, sampling, _ in run.pool.asked]
        assert sorted(asked[:QUESTIONS]) == sorted(asked[QUESTIONS:]) and len(set(asked)) == QUESTIONS
        assert all(f"-{VALIDATION_SEED}-" in name and str(EVALUATION_SEED) not in name for name, _ in asked)

    live(scenario())


def test_only_generators_with_the_weights_to_validate_answer_and_none_that_is_reserved_for_a_suspect(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.pool.let.set()
        run.ledger.step = run.ledger.version = 4
        run.validation.begin()
        await asyncio.sleep(0.05)
        assert not run.pool.asked  # the generator still has version 0
        run.ledger.entries["suspect"] = Entry(0, "generator-0", 0, reserved="generator-0")
        run.pool.versions["generator-0"] = 4
        await asyncio.sleep(0.05)
        assert not run.pool.asked
        del run.ledger.entries["suspect"]
        await turns(lambda: run.steps == [4])
        assert run.reports[0][0]["version_min"] == 4

    live(scenario())


@pytest.mark.parametrize(
    "generators, share, under_way", [(1, 0.1, 2), (2, 0.1, 4), (0, 0.1, 0), (1, 0.01, 1), (1, 1, 6)]
)
def test_its_questions_take_a_share_of_the_sequences(tmp_path, generators, share, under_way):
    async def scenario():
        run = Run(tmp_path, f"validation.max_share={share}")
        run.pool.versions = {f"generator-{number}": 0 for number in range(generators)}
        await run.validation.open()
        run.validation.begin()
        await turns(lambda: len(run.pool.asked) >= under_way)
        await asyncio.sleep(0.05)
        assert len(run.pool.asked) == under_way
        run.validation.cancel()

    live(scenario())


def test_at_the_end_it_has_all_sequences_and_the_last_step_is_validated(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKING_S", 0.01)
    monkeypatch.setattr(module, "PROGRESS_S", 0.02)

    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.begin(4)
        run.begin(7)
        finishing = asyncio.create_task(run.validation.finish())
        await turns(lambda: len(run.pool.asked) == QUESTIONS)  # two were under way
        await turns(lambda: run.said)
        assert run.said[0] == f"· validation after step 4: 0 of {QUESTIONS} answers"
        run.pool.let.set()
        await finishing
        assert run.steps == [4, 7]
        await run.validation.finish()  # of a resumed run whose last step was validated
        assert run.steps == [4, 7]

    live(scenario())


def test_one_that_is_not_complete_is_not_joined_by_another(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.begin(0)
        run.begin(4)
        assert len(run.said) == 1 and "no validation after step 4, since the one after step 0" in run.said[0]
        assert run.validation.scores() == Scores({}, frozenset({0}))
        run.pool.let.set()
        await turns(lambda: run.steps)
        await run.validate(8)
        assert run.steps == [0, 8] and run.validation.scores() == Scores({0: 1.0, 8: 1.0})

    live(scenario())


def test_scores_of_other_questions_do_not_count(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        run.validation.rows = [{"step": 4, "score": 0.5, "questions": "others"}]
        await run.validation.open()
        assert run.validation.scores() == Scores({})
        run.pool.let.set()
        await run.validate(4)
        assert run.steps == [4] and run.validation.scores() == Scores({4: 1.0})
        assert (
            [row["score"] for row in run.validation.rows]
            == [1.0]
            == [row["score"] for row in run.validation.comparable_rows()]
        )

    live(scenario())


def test_at_the_end_nobody_waits_for_weights_that_nobody_publishes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_S", 0.02)

    async def scenario():
        run = Run(tmp_path, "generator.stall_s=0.1")
        await run.validation.open()
        run.ledger.step = run.ledger.version = 8  # the generator has version 0, and the learners are gone
        await asyncio.wait_for(run.validation.finish(), 20)
        assert run.said[-2:] == [
            "· no generator has the weights of version 8",
            "· the validation after step 8 ends without a result",
        ]
        assert not run.reports

    live(scenario())


def test_after_a_roll_back_it_begins_again(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.pool.let.set()
        await run.validate(4)
        run.pool.let.clear()
        run.begin(8)
        run.validation.roll_back(3)
        assert run.validation.rows == []
        assert run.said == ["· the validation after step 8 ends without a result"]
        run.pool.let.set()
        await run.validate(4)
        assert run.steps == [4, 4]
        run.begin(4)  # is done
        assert run.validation._running is None

    live(scenario())


def test_a_generator_that_dies_costs_no_answer_and_a_question_that_fails_is_an_error(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        name = f"synthetic-{VALIDATION_SEED}-0"
        run.pool.deadly = {name: 1}
        run.pool.let.set()
        await run.validate(0)
        assert run.reports[0][0]["errors"] == 0 and len(run.pool.asked) > QUESTIONS
        run.pool.failing = TimeoutError("no response")
        await run.validate(4)
        row, answers = run.reports[1]
        assert row["errors"] == QUESTIONS and row["score"] == 0.0 and row["version_min"] is None
        assert all(cell["version_mean"] is None for cell in row["cells"]) and score_curves([row]) == {}
        assert {answer["error"] for answer in answers} == {"TimeoutError: no response"}
        assert "versions -  errors 6" in validation_line(row)

    live(scenario())


def test_a_deadly_question_kills_two_generators_and_is_not_asked_again(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        name = f"synthetic-{VALIDATION_SEED}-0"  # at both lengths
        run.pool.deadly = {name: 1000}
        run.pool.let.set()
        await run.validate(0)
        killed = 1000 - run.pool.deadly[name]
        row, answers = run.reports[0]
        assert killed == 2 * SUSPECT_DEATHS and row["errors"] == 2 and row["score"] == pytest.approx(2 / 3)
        assert {answer["error"] for answer in answers if answer["error"]} == {
            "2 generators died under it, so it is not asked again"
        }
        run.pool.deadly = {}  # by the next validation it is harmless, and was perhaps only beside the culprit
        await run.validate(4)
        assert run.reports[1][0]["errors"] == 0

    live(scenario())


def test_a_validation_that_fails_ends_neither_the_run_nor_the_next_one(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        await run.validation.open()
        run.pool.let.set()
        there, run.validation._source = run.validation._source, None
        await run.validate(0)
        assert run.said[0].startswith("· the validation after step 0 failed, and the run continues: ")
        run.validation._source = there
        await run.validate(4)
        assert run.steps == [4]

    live(scenario())


def test_without_it_nothing_is_read_or_asked(tmp_path):
    async def scenario():
        run = Run(tmp_path, "train.evaluate_every=0", "validation.data.source=file")
        await run.validation.open()
        run.begin(0)
        await run.validation.finish()
        assert not run.pool.asked and not run.said and run.validation.scores() == Scores({})

    live(scenario())


def test_questions_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    run = Run(tmp_path, "validation.data.source=file", f"validation.data.path={tmp_path / 'empty.jsonl'}")
    with pytest.raises(DataError, match=r"validation\.data: .*empty\.jsonl"):
        asyncio.run(run.validation.open())


DATA = ("data", "validation.data")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["validation.data.source=file", "validation.data.synthetic_chunks=[8]"], "set validation.data.path"),
        (["validation.data.path=x.jsonl"], "validation.data.path=x.jsonl is not read"),
        (["validation.data.source=web"], "validation.data.source='web' must be one of"),
        (["validation.data.synthetic_chunks=[1]"], "validation.data.synthetic_chunks"),
        (["validation.max_share=0"], "validation.max_share=0.0 must be above 0"),
        (["validation.top_p=0"], "validation.top_p=0.0 must be above 0"),
        (["validation.samples=0"], "validation.samples=0 must be greater than 0"),
        (["train.evaluate_every=30"], "train.checkpoint_every=40 must be a multiple of train.evaluate_every=30"),
        (["run.seed=9", "validation.data.synthetic_seed=9"], "its questions are not held out"),
        (
            [*(f"{data}.source=file" for data in DATA), *(f"{data}.path=q.jsonl" for data in DATA)],
            "validation.data.path=q.jsonl is also data.path",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(arguments, said):
    with pytest.raises(ConfigError) as refused:
        check_config(load_training_config(["preset=tiny", *arguments]))
    assert said in str(refused.value)


def test_it_asks_as_the_run_does(tmp_path):
    config = load_training_config(["preset=tiny", "train.method=concat", "scorer.modules.mine=a:b", "run.seed=5"])
    asks = validation_config(config)
    assert asks.agent == config.agent and asks.model == config.model and asks.run.seed == 5
    assert asks.evaluate.methods == ["concat"] and asks.scorer.modules == {"mine": "a:b"}


def answers(*scores: float, version: int = 3, **fields) -> list[dict]:
    return [
        row(score, id=f"q{number}", **fields) | {"versions": (version, version), "prompt_tokens_computed": 2}
        for number, score in enumerate(scores)
    ]


def test_a_row_weighs_sets_and_lengths_equally():
    rows = [*answers(1, 1, 0, length=144), *answers(1, length=576, version=6)]
    found = validation_row(8, 2, "digest", rows, 2.5)
    assert found["score"] == pytest.approx((2 / 3 + 1) / 2) and found["seconds"] == 2.5 and found["answers"] == 4
    assert (found["version_min"], found["version_max"], found["questions"]) == (3, 6, "digest")
    assert [cell["version_mean"] for cell in found["cells"]] == [3, 6]
    assert found["tokens_computed"] == 4 * (2 + 5)
    shown = validation_metrics(found)
    assert shown["validation_score_144"] == pytest.approx(2 / 3) and shown["validation_score"] == found["score"]
    assert "validation_step" not in shown and all(isinstance(value, int | float) for value in shown.values())
    assert "(144: 0.667  576: 1.000)  versions 3–6  4 answers in 2 s" in validation_line(found)
    other = validation_row(8, 2, "digest", [*rows, *answers(0, set="vt: two", length=8192)], 2.5)
    assert {"validation_score_niah_144", "validation_score_vt__two_8K"} <= validation_metrics(other).keys()
    curves = score_curves([found])
    assert {label: [place for place, _ in points] for label, points in curves.items()} == {"144": [9], "576": [12]}


def test_the_digest_changes_with_the_questions_and_with_how_they_are_asked():
    config = validation_config(load_training_config(["preset=tiny"]))
    asked = [Trial(Question(0, "s", 144, f"q{number}", 9), "memory", 0) for number in range(3)]
    warmer = validation_config(load_training_config(["preset=tiny", "validation.temperature=1"]))
    found = {digest_of(asked, config), digest_of(asked[:2], config), digest_of(asked, warmer)}
    assert len(found) == 3 and digest_of(list(asked), config) in found
