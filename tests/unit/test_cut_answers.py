"""An answer that reached its limit is wrong, in training and in evaluation."""

import asyncio

import pytest

from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, Conversation, Episode, Sampling, pack_group
from pipeline.sections import ObjectiveSection


def asked(task: str) -> Problem:
    return Problem("p", "city Rex", ("Paris",), task=task)


RIGHT, WRONG = "\\boxed{ Paris }", "\\boxed{ Rome }"


@pytest.mark.parametrize(
    ("conversations", "answer", "reward"),
    [
        ([("memory", "stop"), ("answer", "stop")], RIGHT, 1.0),
        ([("memory", "stop"), ("answer", "length")], RIGHT, 0.0),
        ([("memory", "length"), ("answer", "stop")], RIGHT, 1.0),  # a cut memory is no cut answer
        ([("answer", "length"), ("answer", "stop")], RIGHT, 0.0),  # an agent of one's own that asks twice
        ([("draft", "length")], RIGHT, 1.0),
        ([("answer", "length")], WRONG, 0.0),
        ([("answer", "stop")], WRONG, 0.0),
    ],
)
def test_a_cut_answer_is_wrong_in_training_and_in_evaluation(conversations, answer, reward, tmp_path):
    from actors.evaluator import Evaluator
    from actors.scoring.scorer import Scorer
    from pipeline.evaluation.answers import AnswerRecorder
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import Question, Trial
    from pipeline.lease import Lease
    from pipeline.rollout.memory_counts import MemoryCounts

    responses = [(role, Completion([5], [-1.0], [0], reason, max_tokens=1)) for role, reason in conversations]
    cut = reward == 0 and answer == RIGHT or conversations == [("answer", "length")]

    def trained():
        of_episode = [Conversation(role, [1], response) for role, response in responses]
        other = [Conversation("answer", [1], Completion([5], [-1.0], [0], "stop"))]
        group = pack_group("p", [Episode(of_episode, answer), Episode(other, RIGHT)])
        scorer = Scorer.__ray_metadata__.modified_class(ObjectiveSection())
        return scorer.score("id", group, asked("qa"), "g", 1.0)

    async def evaluated():
        waiting = iter(responses)

        async def generate(prompt, max_tokens, sampling):
            return next(waiting)[1]

        async def follow(memory):
            pass

        recorder = AnswerRecorder(generate, Sampling(0.0), 0, False, follow)
        for role, _ in responses:
            await recorder([1], 1, role)
        evaluator = Evaluator.__ray_metadata__.modified_class(
            EvaluationConfig(), str(tmp_path), Lease(str(tmp_path), "run", "token")
        )
        trial, problem = Trial(Question(0, "s", 1, "q", 1), "direct", 0), Problem("q", "city Rex", ("Paris",), "Rex")
        recorded = recorder.answer(answer, None, None, MemoryCounts())
        return await evaluator._row(trial, problem, recorded, None, 1.0)

    record, row = trained(), asyncio.run(evaluated())
    assert record.rewards.tolist() == [reward, 1.0] and record.cut_answers == cut
    assert row["score"] == row["exact_match"] == reward and row["cut"] == cut
