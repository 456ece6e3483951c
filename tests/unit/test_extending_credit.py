"""The examples of the pages: a reward for each conversation, and an advantage estimator."""

import numpy as np
import pytest

from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.problems import Problem
from pipeline.rewards.advantages import estimator_for
from pipeline.rewards.group_scores import score_group
from pipeline.rewards.scoring import check_scorers
from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, pack_group
from pipeline.sections import ModelSection, ObjectiveSection
from pipeline.text import encode_text, load_tokenizer
from tests.support.examples import write_examples

MODEL = ModelSection(path=str(CONFIGS / "models" / "tiny"))
MODULES = {"keeps": "my_rewards:keeps_the_answer"}
PROBLEM = Problem("p", "city Rex", ("Paris",), task="keeps")
RIGHT, WRONG = "\\boxed{ Paris }", "\\boxed{ Rome }"
# Memories and the answer of each episode; the second one leaves a turn earlier.
EPISODES = [(["none", "Rex Paris ."], RIGHT), (["Rex Paris ."], WRONG), (["Rex Paris .", "none"], WRONG)]


@pytest.fixture(autouse=True)
def examples(tmp_path, monkeypatch):
    write_examples(tmp_path, monkeypatch)


def group_of(episodes: list) -> EpisodeGroup:
    tokenizer = load_tokenizer(MODEL.path)

    def conversation(role: str, text: str) -> Conversation:
        tokens = [*encode_text(tokenizer, text), tokenizer.eos_token_id]
        return Conversation(role, [1], Completion(tokens, [-1.0] * len(tokens), [0] * len(tokens), "stop"))

    return pack_group(
        "p",
        [
            Episode([*(conversation("memory", m) for m in memories), conversation("answer", answer)], answer)
            for memories, answer in episodes
        ],
    )


def test_the_scorer_rewards_the_answer_and_each_memory():
    check_scorers(MODULES)
    scores = score_group(group_of(EPISODES), PROBLEM, ObjectiveSection(), MODULES, MODEL)
    assert scores.rewards.tolist() == [1, 0, 0]
    assert scores.conversation_rewards.tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert scores.conversation_rewards.dtype == scores.advantages.dtype == np.float32


def test_the_estimator_compares_each_turn_with_the_episodes_still_running():
    objective = ObjectiveSection(advantage="my_advantages:outcome_and_state")
    scores = score_group(group_of(EPISODES), PROBLEM, objective, MODULES, MODEL)
    # By hand. Turn 0 has 0, 1, 1; turn 1 has 1, 0 (an answer), 0; turn 2 only the two that are left, 0 and 0.
    state = [-2 / 3, 2 / 3, 0, 1 / 3, -1 / 3, 1 / 3, -1 / 3, 0]
    outcome = [2 / 3] * 3 + [-1 / 3] * 2 + [-1 / 3] * 3
    expected = [0.8 * o + 0.2 * s for o, s in zip(outcome, state, strict=True)]
    assert scores.advantages.tolist() == pytest.approx(expected)


def test_a_name_that_leads_nowhere_is_refused():
    with pytest.raises(ConfigError, match=r"objective.advantage 'my_advantages:none' is none of mean, .*gru_mem"):
        estimator_for("my_advantages:none")
