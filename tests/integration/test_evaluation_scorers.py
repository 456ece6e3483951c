"""Scorers of a user's own in an evaluation, on Ray: what hangs, raises or is missing costs its answer alone."""

import asyncio

from pipeline.config import load_config
from pipeline.evaluation.config import EvaluationConfig
from pipeline.problems import Problem
from tests.support.bad_scorers import ARGUMENTS, MODULES


def test_a_scorer_of_ones_own_that_hangs_raises_or_is_missing_costs_its_answer(ray_session, monkeypatch):
    from actors.scoring import answer_scoring

    async def scored(*scorers):
        scoring = (answer_scoring.scores_of(s, "\\boxed{x}", ("x",), MODULES) for s in scorers)
        return await asyncio.gather(*scoring)

    raised, nan, missing, right = asyncio.run(scored("raises", "returns_nan", "no_such_scorer", "half_are_right"))
    monkeypatch.setattr(answer_scoring, "SCORER_LIMIT_S", 1.0)
    (hung,) = asyncio.run(scored("hangs"))
    assert "took longer than 1 s" in hung[1] and "always raises" in raised[1]
    assert "not a finite number" in nan[1] and "no scorer" in missing[1]
    assert right[1] is None and right[0]["score"] in (0.0, 1.0)
    for scores, _ in (hung, raised, nan, missing):  # its metrics do not depend on its scorer
        assert scores["exact_match"] == 1.0 and "score" not in scores


def test_a_scorer_that_fails_on_a_cut_answer_costs_that_answer(ray_session, tmp_path, monkeypatch):
    from actors.scoring import answer_scoring
    from actors.trials import answer_row
    from pipeline.evaluation.answers import AnswerRecord
    from pipeline.evaluation.questions import Question, Trial

    config = load_config(["preset=eval_tiny", *ARGUMENTS], EvaluationConfig)
    answer = AnswerRecord("\\boxed{x}", (), 3, 1, 10, 5, True, 0, None, ())

    async def rows(*scorers):
        problems = [Problem("q", "city Rex", ("x",), "Rex Paris .", scorer) for scorer in scorers]
        task = Trial(Question(0, "s", 1, "q", 1), "closed_book", 0)
        return await asyncio.gather(*(answer_row(config, task, problem, answer, None, 1.0) for problem in problems))

    raised, nan, fine = asyncio.run(rows("raises", "returns_nan", "counts_letters"))
    # Not for the others, which wait for processes to start.
    monkeypatch.setattr(answer_scoring, "SCORER_LIMIT_S", 1.0)
    (hung,) = asyncio.run(rows("hangs"))
    assert "always raises" in raised["error"] and "not a finite number" in nan["error"]
    assert "took longer than 1 s" in hung["error"]
    assert all(row["score_if_not_cut"] is None and row["score"] == 0.0 for row in (raised, nan, hung))
    assert fine["error"] is None and fine["score_if_not_cut"] == 1.0 and fine["score"] == 0.0


def test_whether_a_scorer_wants_whole_episodes_is_known_without_importing_it_here(ray_session):
    from actors.scoring.answer_scoring import EpisodeTasks

    modules = MODULES | {"longer_gates": "tests.unit.test_credit_mistakes:longer_gates", "gone": "no_such_module:score"}

    async def answers(*tasks):
        known = EpisodeTasks(modules)
        return [await known.has(task) for task in tasks]

    assert asyncio.run(answers("longer_gates", "half_are_right", "gone", "qa", "unknown")) == [True, *[False] * 4]
