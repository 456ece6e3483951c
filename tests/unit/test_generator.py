"""What a generator does beside its engine."""

import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest

from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from tests.support.groups import record_of


def test_agents_are_made_in_turn_with_the_encoding_of_documents(tiny_config, monkeypatch):
    """Both switch the tokenizer between plain text and special tokens: at once, one would spoil the other."""
    from actors.generation import generator as module

    seen = []

    class Agent:
        def __init__(self, tokenizer, config):
            seen.append((generator._tokenizing.locked(), threading.current_thread() is threading.main_thread()))

        def tokenize(self, problem):
            seen.append((generator._tokenizing.locked(), threading.current_thread() is threading.main_thread()))
            return problem.document

    monkeypatch.setattr(module, "load_agent", lambda method: Agent)
    generator = module.Generator.__ray_metadata__.modified_class("generator-0", tiny_config, 0)
    generator._tokenizer = None

    async def tokenize():
        problems = [Problem(str(i), "q", ("a",), f"document {i}") for i in range(6)]
        return await asyncio.gather(*(generator._tokenize(p, f"method {i % 2}") for i, p in enumerate(problems)))

    done = asyncio.run(tokenize())
    assert [document for _, document in done] == [f"document {i}" for i in range(6)]
    assert len({id(agent) for agent, _ in done}) == 2
    assert set(seen) == {(True, False)} and len(seen) == 6 + 2


def generator_with(config, monkeypatch, respond):
    """A generator with the tiny language's tokenizer, whose engine answers by `respond(prompt)`."""
    from actors.generation import generator as module
    from pipeline.data.documents.synthetic import tiny_tokenizer

    class Engine:
        is_dead = False
        begun = 0

        def __init__(self):
            self.priorities = set()

        async def generate(self, prompt, max_tokens, sampling, priority):
            self.begun += 1
            self.priorities.add(priority)
            cached = self.begun  # no two are equal
            await asyncio.sleep(0.001 * self.begun)  # no two responses take as long
            tokens = respond(prompt)
            return Completion(
                tokens, [-0.1] * len(tokens), [0] * len(tokens), "stop", cached_tokens=cached, preemptions=cached % 2
            )

    class Journal(list):
        async def write(self, finished):
            self.append(finished)

    generator = module.Generator.__ray_metadata__.modified_class("generator-0", config, 0)
    generator._tokenizer, generator.engine, generator._journal = tiny_tokenizer(), Engine(), Journal()
    return generator


def chain() -> Problem:
    """Two hops in the first and the third of three chunks."""
    needed, other = ["Sam Rex .", "Rex Paris ."], ["Adam Luna ."]
    facts = [needed[0], *other * 11, needed[1], *other * 5]
    metadata = {"needed": needed, "needed_at": [0, 36], "hops": 2}
    return Problem("p", "city pet Sam", ("Paris",), " ".join(facts), metadata=metadata)


@pytest.fixture
def forgetful(tiny_config, monkeypatch):
    """It writes the bridge, adds junk to it, then has the second fact alone, and answers right."""
    memories = ["Sam Rex .", "Sam Rex . Adam Luna .", "Rex Paris ."]

    def respond(prompt):
        tokenizer = generator._tokenizer
        text = tokenizer.decode(prompt)
        if "<answer>" in text:
            response = "\\boxed{ Paris }"
        elif "<memory> none" in text:
            response = memories[0]
        else:
            response = memories[2] if "Adam Luna . <section>" in text else memories[1]
        return tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id]

    generator = generator_with(tiny_config, monkeypatch, respond)
    return generator


COUNTS = MemoryCounts(written=Ratio(2, 2), kept=Ratio(1, 2), junk=Ratio(3, 12), tokens=Ratio(12, 3))


def test_a_group_tells_what_the_memories_of_each_episode_did(forgetful):
    group, _ = asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0)))
    assert group.memory == (COUNTS, COUNTS) and group.roles[:4] == ("memory",) * 3 + ("answer",)
    assert record_of(group, "g", [1, 0]).memory == COUNTS + COUNTS


def test_an_answer_tells_what_its_memories_did(forgetful):
    async def answer(method):
        return await forgetful.answer(chain(), method, Sampling(0.0, seed=1), 2)

    assert asyncio.run(answer("memory")).memory_trace == COUNTS
    concat = asyncio.run(answer("concat"))  # each chunk by itself: its memories are no chain
    assert concat.memory_trace == MemoryCounts(tokens=Ratio(9, 3))
    assert asyncio.run(answer("closed_book")).memory_trace is None


def test_a_group_goes_on_from_the_journal_and_generates_only_what_is_missing(forgetful):
    """Of two episodes, one was finished but for its answer, the other had not begun."""
    whole, notes = asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0)))
    assert notes.resumed_episodes == 0 and notes.preemptions == 4  # one for each second of eight conversations
    journal = [f for f in forgetful._journal if f.episode == 0][:3]
    forgetful._journal.clear()

    async def read(group_id):
        return journal if group_id == "g" else []

    forgetful._read_journal = read
    group, notes = asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0), resumed=True))
    assert notes.resumed_episodes == 2 and notes.preemptions == 3  # of those numbered 9 to 13
    assert [f.episode for f in forgetful._journal].count(0) == 1 and len(forgetful._journal) == 1 + 4
    assert group.episode_answers == whole.episode_answers and group.memory == whole.memory
    assert all((getattr(group, name) == getattr(whole, name)).all() for name in ("tokens", "offsets", "logprobs"))


def test_a_conversation_from_the_journal_counts_what_was_computed_when_it_was_generated(forgetful):
    whole, _ = asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0)))
    journal = [f for f in forgetful._journal if f.episode == 0][:3]

    async def read(group_id):
        return journal

    forgetful._read_journal, forgetful.engine.begun = read, 100
    group, _ = asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0), resumed=True))
    assert group.cached_tokens[:3].tolist() == whole.cached_tokens[:3].tolist()
    assert sorted(group.cached_tokens[3:].tolist()) == [101, 102, 103, 104, 105]


def test_the_requests_of_a_group_or_an_answer_have_its_priority(forgetful):
    asyncio.run(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0), priority=7))
    assert forgetful.engine.priorities == {7}
    asyncio.run(forgetful.answer(chain(), "memory", Sampling(0.0), 2, priority=5))
    assert forgetful.engine.priorities == {7, 5}


def test_an_answer_tells_what_of_its_prompts_was_cached(forgetful):
    answer = asyncio.run(forgetful.answer(chain(), "memory", Sampling(0.0), 2))
    assert answer.cached_tokens == 1 + 2 + 3 + 4


def test_a_generator_that_is_drained_ends_what_is_open_and_begins_nothing(forgetful):
    from actors.generation.generator import Draining

    async def run():
        rolling = asyncio.create_task(forgetful.rollout("g", chain(), "memory", 2, Sampling(1.0)))
        while forgetful.engine.begun < 2:
            await asyncio.sleep(0)
        await forgetful.drain()
        with pytest.raises(Draining):
            await asyncio.wait_for(rolling, 10)

    asyncio.run(run())
    assert len(forgetful._journal) == forgetful.engine.begun  # whatever was open came to its end
    assert {f.episode for f in forgetful._journal} == {0, 1}


def test_what_a_killed_generator_left_is_removed_when_one_starts(tiny_config, monkeypatch):
    done = []

    class Engine:
        is_dead = False

        def __init__(self, *arguments):
            done.append("engine")

        async def start(self): ...

    generator = generator_with(tiny_config, monkeypatch, lambda prompt: [])
    monkeypatch.setitem(sys.modules, "actors.generation.vllm_engine", SimpleNamespace(VllmEngine=Engine))
    monkeypatch.setattr("pipeline.weights.bucket_files.remove_orphans", lambda: done.append("orphans"))
    asyncio.run(generator._start(check_room=False))
    assert done == ["orphans", "engine"]
