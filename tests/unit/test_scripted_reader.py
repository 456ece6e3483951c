"""The scripted reader: its prompts are the agent's; one that makes no mistakes is always right, others forget and note
what is useless."""

import asyncio
import functools
import json
import random
from dataclasses import replace

import pytest

from jobs.prepare import main
from jobs.support import demonstrations
from pipeline.agents.memory import MemoryAgent
from pipeline.data.documents.facts.problem import hidden_facts_problem
from pipeline.data.documents.facts.relations import RELATIONS
from pipeline.data.documents.ruler import load_essay
from pipeline.data.rows import row_of
from pipeline.errors import BadRow
from pipeline.fine_tuning.conversations import conversation_example
from pipeline.fine_tuning.scripted_reader import Conversation, Habits, ScriptedReader
from pipeline.problems import Problem
from pipeline.rewards.scoring import reward
from pipeline.rollout.episodes import Completion
from pipeline.sections import AgentSection
from pipeline.text import token_starts
from tests.support.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
TOKENIZER.end_tokens = {TOKENIZER.eos_token_id}
CHUNK = 450
AGENT = AgentSection(prompt_template="facts", chunk_tokens=CHUNK, memory_tokens=400, problem_tokens=200, window=2000)


@functools.cache
def problem(index: int, hops: int = 2) -> Problem:
    prose, starts = load_essay("configs/prose/training.txt"), functools.partial(token_starts, TOKENIZER)
    return hidden_facts_problem(0, index, 2000, hops, RELATIONS, prose, CHUNK, starts)


FAULTLESS, FORGETFUL, CARELESS = Habits(1), Habits(0.75), Habits(0.75, slip_share=0.5)


def read(asked: Problem, habits: Habits, seed: int = 0) -> list[Conversation]:
    reader = ScriptedReader(MemoryAgent(TOKENIZER, AGENT), habits)
    return list(reader.read(asked, random.Random(seed)))


@pytest.mark.parametrize("habits", [FAULTLESS, FORGETFUL, CARELESS])
def test_its_prompts_are_those_of_the_agent_that_gets_its_responses(habits):
    for index in range(8):
        conversations = read(problem(index), habits, seed=index)
        agent, waiting = MemoryAgent(TOKENIZER, AGENT), iter(conversations)

        async def llm(prompt, max_tokens, role, waiting=waiting):
            scripted = next(waiting)
            assert prompt == scripted.prompt and len(scripted.response) <= max_tokens
            response = scripted.response
            return Completion(response, [0.0] * len(response), [0] * len(response), "stop")

        asyncio.run(agent.run(agent.tokenize(problem(index)), llm))
        assert next(waiting, None) is None


@pytest.mark.parametrize("hops", [1, 2])
def test_one_without_mistakes_is_always_right_and_notes_nothing_else(hops):
    for index in range(15):
        asked = problem(index, hops)
        *memories, answer = read(asked, FAULTLESS)
        assert reward("qa", text_of(answer), asked.answers, {}) == 1.0
        assert answer.response[-1] == TOKENIZER.eos_token_id
        assert text_of(memories[-1]) == " ".join(asked.metadata["needed"])


def test_a_forgetful_one_is_right_now_and_then_and_notes_only_what_is_needed():
    right = 0
    for seed in range(150):
        asked = problem(seed % 15)
        *memories, answer = read(asked, FORGETFUL, seed)
        facts = asked.metadata["needed"]
        for memory in memories:
            prompt, text = TOKENIZER.decode(memory.prompt), text_of(memory)
            assert (memory.kind in ("idle", "tempted")) == (text == "None" and "\nMemory: None\n" in prompt)
            useless = any(fact in section_of(memory) for fact, needed in asked.metadata["facts"] if not needed)
            assert memory.kind == "" or memory.kind == ("tempted" if useless else "idle")
            rest = functools.reduce(lambda left, fact: left.replace(fact, ""), facts, text)
            assert text == "None" or not rest.strip()
            assert facts[1] not in text or any(fact in prompt.partition("\nMemory:")[2] for fact in facts)
        text = text_of(answer)
        right += (scored := reward("qa", text, asked.answers, {})) == 1.0
        assert scored or text == "\\boxed{unknown}"
    assert 0.08 < right / 150 < 0.6


def test_a_careless_one_drops_useless_facts_at_the_next_section_and_treats_the_needed_as_ever():
    """Shares are counted from the texts of the memories."""
    seen = slips = held = kept = 0
    for seed in range(150):
        asked = problem(seed % 15)
        *memories, answer = read(asked, CARELESS, seed)
        needed, before = asked.metadata["needed"], ""
        for memory in memories:
            text, section = text_of(memory), section_of(memory)
            useless = [fact for fact, is_needed in asked.metadata["facts"] if not is_needed and fact in section]
            noted = [fact for fact, is_needed in asked.metadata["facts"] if not is_needed and fact in text]
            assert set(noted) <= set(useless) and (memory.kind == "slip") == bool(noted)
            seen, slips = seen + len(useless), slips + len(noted)
            for fact in needed:
                if fact in before and fact not in section:
                    held, kept = held + 1, kept + (fact in text)
            before = text
        assert answer.kind == "" and (asked.answers[0] in text_of(answer)) == all(fact in before for fact in needed)
    assert seen > 300 and slips / seen == pytest.approx(0.5, abs=0.05)
    assert held > 150 and kept / held == pytest.approx(0.75, abs=0.08)


def test_useless_facts_are_noted_only_where_there_is_room():
    everything = Habits(1, slip_share=1)
    roomy = max(len(memory.response) for memory in read(problem(0), everything))
    least = max(len(memory.response) for memory in read(problem(0), FAULTLESS))
    assert least < roomy
    agent = MemoryAgent(TOKENIZER, replace(AGENT, memory_tokens=least))
    *memories, answer = ScriptedReader(agent, everything).read(problem(0), random.Random(0))
    assert max(len(memory.response) for memory in memories) <= least
    assert reward("qa", text_of(answer), problem(0).answers, {}) == 1.0


def section_of(conversation: Conversation) -> str:
    return TOKENIZER.decode(conversation.prompt).partition("\nText:")[2].partition("\nMemory:")[0]


def text_of(conversation: Conversation) -> str:
    return TOKENIZER.decode(conversation.response[:-1])


def test_problems_without_facts_are_refused():
    with pytest.raises(BadRow, match="jobs.prepare facts"):
        read(Problem("p", "q", ("a",), "A text."), FAULTLESS)


SHORT = replace(AGENT, chunk_tokens=120)  # many of these sections have no fact


def read_seeded(index: int, habits: Habits) -> list[Conversation]:
    """A problem read in short sections, with the random choices of the command with seed=0."""
    reader = ScriptedReader(MemoryAgent(TOKENIZER, SHORT), habits)
    return list(reader.read(problem(index), random.Random(f"0/{problem(index).id}")))


@pytest.fixture
def model(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 256}))
    return tmp_path / "model"


def test_the_command_writes_conversations_that_fine_tuning_reads(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demonstrations, "start_ray", lambda: False)
    bad = {"id": "bad", "question": "q", "answers": ["a"], "document": "A text."}
    rows = [row_of(problem(index)) for index in range(5)] + [bad]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"model.path={model}", f"path={tmp_path / 'facts.jsonl'}", f"output={tmp_path / 'out'}"]
    arguments += [f"agent.{name}={getattr(SHORT, name)}" for name in ("prompt_template", "chunk_tokens", "window")]
    arguments += ["agent.problem_tokens=200", "agent.memory_tokens=400", "agent.answer_tokens=60"]
    assert main(["demonstrations", *arguments]) == 1  # one of six rows is bad
    assert "1 of 6 rows are bad" in capsys.readouterr().err
    all_of = (*arguments, "max_bad_share=0.2", "slip_share=0", "idle_share=1", "tempted_share=1")
    assert main(["demonstrations", *all_of]) == 0
    lines = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
    assert f"{len(lines)} conversations in" in capsys.readouterr().out
    shown = [conversation for index in range(5) for conversation in read_seeded(index, FORGETFUL)]
    assert list(map(json.loads, lines)) == [{"prompt_tokens": c.prompt, "response_tokens": c.response} for c in shown]
    for line in lines:
        assert any(conversation_example(json.loads(line), TOKENIZER, 2000).learned)
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["kind"] == "demonstrations" and record["settings"]["idle_share"] == 1
    assert record["conversations"] == len(lines) and record["quarantined"] == 1
    assert main(["demonstrations", *all_of, f"output=file://{tmp_path / 'uri'}"]) == 0
    assert (tmp_path / "uri" / "conversations.jsonl").read_text().splitlines() == lines
    for left_out in ("idle", "tempted"):
        assert main(["demonstrations", *all_of, f"{left_out}_share=0"]) == 0
        there = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
        assert there == [line for line, of in zip(lines, shown, strict=True) if of.kind != left_out] != lines
    assert main(["demonstrations", *all_of, "slip_share=0.5"]) == 0
    count = len((tmp_path / "out" / "conversations.jsonl").read_text().splitlines())
    shown = [conversation for index in range(5) for conversation in read_seeded(index, CARELESS)]
    assert 0 < count == sum(conversation.kind != "slip" for conversation in shown) < len(shown)
    quarantined = (tmp_path / "out" / "quarantine" / "conversations.jsonl").read_text()
    assert "jobs.prepare facts" in quarantined and '"bad"' in quarantined
    assert main(["demonstrations", *arguments, "keep_share=75"]) == 2
    assert "keep_share=75" in capsys.readouterr().err
    assert main(["demonstrations", *arguments, "output=s3://bucket/x"]) == 2
    assert "written to a local folder" in capsys.readouterr().err


@pytest.mark.parametrize("facts", [[{}], "a", [], None, [3], [["a"]], [[1, True]], [["a", 1]], [["a", False]]])
def test_malformed_facts_are_a_bad_row(facts):
    asked = problem(0)
    with pytest.raises(BadRow, match="lacks the facts"):
        read(replace(asked, metadata=asked.metadata | {"facts": facts}), FAULTLESS)


def test_memories_and_answers_keep_the_agents_limits():
    def reader(**limits: int) -> ScriptedReader:
        return ScriptedReader(MemoryAgent(TOKENIZER, replace(AGENT, **limits)), FAULTLESS)

    longest = max(len(memory.response) for memory in read(problem(0), FAULTLESS))
    list(reader(memory_tokens=longest).read(problem(0), random.Random(0)))
    with pytest.raises(BadRow, match=r"do not fit agent\.memory_tokens"):
        list(reader(memory_tokens=longest - 1).read(problem(0), random.Random(0)))
    with pytest.raises(BadRow, match=r"over agent\.answer_tokens"):
        list(reader(answer_tokens=5).read(problem(0), random.Random(0)))
