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
    ("conversations", "says", "answer", "reward"),
    [
        ([("memory", "stop"), ("answer", "stop")], None, RIGHT, 1.0),
        ([("memory", "stop"), ("answer", "length")], None, RIGHT, 0.0),
        ([("memory", "length"), ("answer", "stop")], None, RIGHT, 1.0),  # a cut memory is no cut answer
        # Agents of one's own: the conversation begun last counts, whatever its role, unless the agent says otherwise.
        ([("answer", "length"), ("answer", "stop")], None, RIGHT, 1.0),
        ([("answer", "length"), ("answer", "stop")], True, RIGHT, 0.0),
        ([("draft", "length")], None, RIGHT, 0.0),
        ([("draft", "length")], False, RIGHT, 1.0),
        ([("answer", "length")], None, WRONG, 0.0),
        ([("answer", "stop")], None, WRONG, 0.0),
    ],
)
def test_a_cut_answer_is_wrong_in_training_and_in_evaluation(conversations, says, answer, reward, tmp_path):
    from actors.scoring.scorer import Scorer
    from actors.trials import answer_row
    from pipeline.evaluation.answers import AnswerRecorder
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import Question, Trial
    from pipeline.rollout.answer import Answer
    from pipeline.rollout.episodes import run_episode
    from pipeline.rollout.memory_counts import MemoryCounts

    cut = says if says is not None else conversations[-1][1] == "length"

    class Agent:
        async def run(self, tokenized, llm):
            for role, _ in conversations:
                await llm([1], 1, role)
            return answer if says is None else Answer(answer, cut=says)

    def responses():
        waiting = iter(conversations)

        async def generate(*arguments):
            return Completion([5], [-1.0], [0], next(waiting)[1], max_tokens=1)

        return generate

    def trained():
        episode = asyncio.run(run_episode(Agent(), None, responses()))
        other = [Conversation("answer", [1], Completion([5], [-1.0], [0], "stop"))]
        group = pack_group("p", [episode, Episode(other, RIGHT)])
        scorer = Scorer.__ray_metadata__.modified_class(ObjectiveSection())
        return scorer.score(group, asked("qa"))

    async def evaluated():
        recorder = AnswerRecorder(responses(), Sampling(0.0), transcript=False)
        returned = recorder.answer(await Agent().run(None, recorder))
        trial, problem = Trial(Question(0, "s", 1, "q", 1), "direct", 0), Problem("q", "city Rex", ("Paris",), "Rex")
        recorded = recorder.record(returned, None, None, 0, MemoryCounts())
        return await answer_row(EvaluationConfig(), trial, problem, recorded, None, 1.0)

    record, row = trained(), asyncio.run(evaluated())
    assert record.rewards.tolist() == [reward, 1.0] and record.cut_answers == cut
    assert row["score"] == row["exact_match"] == reward and row["cut"] == cut
