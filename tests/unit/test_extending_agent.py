"""The agent and the prompt templates of the tutorials and of docs/extending.md, from outside the packages."""

import asyncio

import pytest

from jobs.support.inputs import check_model
from pipeline.agents import load_agent
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.memory_trace import trace_memories
from pipeline.data.documents.synthetic import tiny_tokenizer
from pipeline.errors import ConfigError
from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, run_episode
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from pipeline.run.config import load_training_config
from pipeline.sections import AgentSection
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.examples import write_examples

METHOD = "my_agent:GatedAgent"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    return write_examples(tmp_path, monkeypatch)


@pytest.fixture
def config(examples):
    return load_training_config(["preset=tiny", f"agent.prompt_template={examples / 'my_prompts.yaml'}"])


def test_a_gated_agent_keeps_its_memory_where_a_chunk_adds_nothing(config):
    tokenizer = tiny_tokenizer()
    agent = load_agent(METHOD)(tokenizer, config.agent)
    facts = ["Sam Rex .", *["Adam Luna ."] * 11, "Rex Paris .", *["Adam Luna ."] * 5]  # three chunks of six
    metadata = {"needed": ["Sam Rex .", "Rex Paris ."], "needed_at": [0, 36], "hops": 2}
    problem = Problem("p", "city pet Sam", ("Paris",), " ".join(facts), metadata=metadata)
    responses = iter(["Sam Rex .", "none", "Sam Rex . Rex Paris .", "\\boxed{ Paris }"])
    asked = []

    async def generate(prompt, max_tokens):
        asked.append(tokenizer.decode(prompt))
        tokens = [*tokenizer.encode(next(responses), add_special_tokens=False), tokenizer.eos_token_id]
        return Completion(tokens, [-1.0] * len(tokens), [0] * len(tokens), "stop")

    tokenized = agent.tokenize(problem)
    episode = asyncio.run(run_episode(agent, tokenized, generate))
    assert [c.role for c in episode.conversations] == ["gate", "gate", "gate", "answer"]
    assert ["<memory> none" in prompt for prompt in asked] == [True, False, False, False]
    assert "<memory> Sam Rex . <section>" in asked[1] and "<memory> Sam Rex . <section>" in asked[2]
    assert episode.answer == "\\boxed{ Paris }" and not episode.cut
    # The facts are followed through the memory that stayed as it was.
    (trace,) = trace_memories(problem, tokenized, tokenizer, config.agent, [episode.memories])
    assert trace.counts == MemoryCounts(Ratio(2, 2), Ratio(2, 2), Ratio(0, 1), Ratio(0, 12), Ratio(12, 3))


def test_its_window_and_its_template_are_checked_before_anything_starts(config, examples):
    check_model(config, [METHOD])
    config.agent.window = 40
    with pytest.raises(ConfigError, match="with the prompt gate of .*my_prompts.yaml .*lower agent.chunk_tokens by "):
        check_model(config, [METHOD])
    config.agent.prompt_template = "tiny"
    with pytest.raises(ConfigError, match="tiny.yaml: the prompt gate is missing; the file has memory, answer, "):
        check_model(config, [METHOD])
    config.agent.prompt_template = str(examples / "my_prompts.yaml")
    with pytest.raises(ConfigError, match="my_prompts.yaml: the prompt memory is missing; the file has gate, answer"):
        check_model(config, ["memory"])


def test_a_template_decides_the_wording_and_the_order(examples):
    tokenizer = byte_tokenizer()
    agent = MemoryAgent(tokenizer, AgentSection(prompt_template=str(examples / "notes.yaml")))
    question, chunk = tokenizer.encode("Who?"), tokenizer.encode("Ann went home.")
    first, second = (
        tokenizer.decode(agent.prompts.fill("memory", problem=question, memory=memory, chunk=chunk))
        for memory in (agent.prompts.empty_memory, tokenizer.encode("It was Ann."))
    )
    assert first.index("Who?") < first.index("Ann went home.") < first.index("- nothing yet") < first.rindex("Who?")
    assert "one fact a line" in first
    shared = second[: second.index("It was Ann.")]
    assert "Ann went home." in shared and first.startswith(shared)
