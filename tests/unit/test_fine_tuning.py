"""Supervised fine-tuning: examples, conversations in files, demonstrations, and the gang against plain torch."""

import itertools
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.data.documents.synthetic import PEOPLE
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import RowRules
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import BadRow, ConfigError, DataError
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.fine_tuning.conversations import COLUMNS, conversation_example, conversation_examples, open_conversations
from pipeline.fine_tuning.demonstrations import (
    ATTENTIVE,
    CURRICULA,
    DISTRACTED,
    KEEPS_USELESS,
    TEMPLATES,
    Examples,
    demonstrations,
)
from pipeline.fine_tuning.examples import Example, build_example_micro_batch, pack_examples, respond
from pipeline.learning.forest import Forest
from pipeline.run.config import load_training_config
from pipeline.sections import RowLimits
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.samples import jsonl

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_a_micro_batch_predicts_each_learned_token_from_the_one_before():
    batch = pack_examples([Example([5, 6, 7], [False, True, False]), respond([8, 9], [10]), respond([1], [2, 3])])
    row = build_example_micro_batch([2, 0], batch)
    assert row.tokens.tolist() == [1, 2, 3, 5, 6, 7]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert row.targets.tolist() == [2, 3, 6]
    assert row.tokens[row.predict_at].tolist() == [1, 2, 5]
    assert row.is_learned.all() and row.forest == Forest((0, 3, 6))
    assert not build_example_micro_batch([], batch).is_learned.any()


def test_a_first_token_cannot_be_learned():
    with pytest.raises(ValueError, match="first token"):
        pack_examples([Example([1, 2], [True, True])])


def test_of_a_chat_the_assistants_messages_are_learned_with_their_ends(tokenizer):
    row = {
        "messages": [USER, ASSISTANT, {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]
    }
    example = conversation_example(row, tokenizer, max_tokens=200)
    text = "<|start|>user\nWhy?<|end|>\n<|start|>assistant\nBecause.<|end|>\n"
    text += "<|start|>user\nIs it?<|end|>\n<|start|>assistant\nIt is.<|end|>\n"
    assert tokenizer.decode(example.tokens) == text
    learned = [token for token, use in zip(example.tokens, example.learned, strict=True) if use]
    assert tokenizer.decode(learned) == "Because.<|end|>\nIt is.<|end|>\n"


def test_of_a_plain_pair_the_response_is_learned_with_the_end_of_sequence(tokenizer):
    example = conversation_example({"prompt": "1 + 1 = <|tool|>", "response": "2"}, tokenizer, max_tokens=50)
    assert tokenizer.decode(example.tokens) == "1 + 1 = <|tool|>2<|end|>"
    assert tokenizer.convert_tokens_to_ids("<|tool|>") not in example.tokens  # data, never markup
    assert sum(example.learned) == 2


def test_of_tokens_the_response_is_learned_as_it_is(tokenizer):
    row = {"prompt_tokens": [3, 1], "response_tokens": [4], "id": "kept by an evaluation"}
    assert conversation_example(row, tokenizer, max_tokens=50) == Example([3, 1, 4], [False, False, True])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not an object"),
        ({"prompt_tokens": [1]}, "'response_tokens' must be a list of one or more"),
        ({"prompt_tokens": [], "response_tokens": [1]}, "'prompt_tokens' must be a list of one or more"),
        ({"prompt_tokens": [1, True], "response_tokens": [1]}, "'prompt_tokens' must be a list"),
        ({"prompt_tokens": [1], "response_tokens": [-1]}, "vocabulary"),
        ({"prompt_tokens": [10**9], "response_tokens": [1]}, "vocabulary"),
        ({"prompt": "a"}, "'response' must be text"),
        ({"messages": []}, "one or more"),
        ({"messages": "Why?"}, "one or more"),
        ({"messages": [USER]}, "nothing to learn"),
        ({"messages": [ASSISTANT]}, "begins with the assistant"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "role of a message is 'robot'"),
        ({"messages": [USER, {"role": "assistant"}]}, "'content' must be text"),
        ({"messages": [USER, {"role": "assistant", "content": "a<|end|>b"}]}, "special token"),
        ({"prompt": "a" * 60, "response": "b"}, "62 tokens, over fine_tuning.max_tokens=50"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(tokenizer, row, reason):
    with pytest.raises(BadRow, match=reason):
        conversation_example(row, tokenizer, max_tokens=50)


def test_a_chat_needs_a_chat_template():
    from pipeline.data.documents.synthetic import tiny_tokenizer

    with pytest.raises(BadRow, match="no chat template"):
        conversation_example({"messages": [USER, ASSISTANT]}, tiny_tokenizer(), max_tokens=50)


def test_files_are_read_in_another_order_in_every_pass_and_bad_rows_are_counted_once(tokenizer, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"prompt": "p{i}", "response": "r"}}\n' for i in range(19)) + '{"prompt": 1}\n')
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.05)
    examples = conversation_examples(SampleFiles.open(str(path)), tokenizer, 50, 0, quarantine)
    passes = [[tuple(next(examples).tokens) for _ in range(19)] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) and passes[0] != passes[1]
    next(examples)
    assert quarantine.bad == 1
    strict = conversation_examples(SampleFiles.open(str(path)), tokenizer, 50, 0, Quarantine(tmp_path / "q", 0.01))
    with pytest.raises(DataError, match="1 of 20 rows are bad"):
        list(zip(range(40), strict, strict=False))


def test_a_long_conversation_is_learned_whole(tokenizer, tmp_path):
    rows = [
        {"prompt": "p" * 100_000, "response": "r" * 100_000},
        {"prompt_tokens": [1] * 20_000, "response_tokens": [2]},
    ]
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0)
    source = SampleFiles.open(str(jsonl(tmp_path / "c.jsonl", rows)))
    examples = itertools.islice(conversation_examples(source, tokenizer, 300_000, 0, quarantine), 2)
    tokens, long = sorted(examples, key=lambda example: len(example.tokens))
    assert tokenizer.decode(long.tokens) == f"{'p' * 100_000}{'r' * 100_000}<|end|>" and sum(long.learned) == 100_001
    assert tokens == respond([1] * 20_000, [2])


def test_conversations_in_parquet_are_the_same(tmp_path):
    """Parquet has every column in every row, and every field in every message."""
    tokenizer = byte_tokenizer()
    with_name = "{{ m.role }}{{ ' ' + m.name if 'name' in m }}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.role }}", with_name)
    rows = [
        {"messages": [USER | {"name": "Ann"}, ASSISTANT]},
        {"prompt": "p", "response": "r", "source": "a column of the user's"},
        {"prompt_tokens": [3, 1], "response_tokens": [4]},
    ]
    columns = {name: [row.get(name) for row in rows] for name in (*COLUMNS, "source")}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0)
    source = open_conversations(str(tmp_path / "c.parquet"))
    examples = list(itertools.islice(conversation_examples(source, tokenizer, 50, 0, quarantine), 3))
    expected = [conversation_example(rows[i], tokenizer, 50) for i in source.order(0, 0)]
    assert examples == expected


def test_a_row_that_cannot_be_read_is_quarantined_with_the_true_reason(tokenizer, tmp_path):
    lines = ['{"prompt": "p", "response": "r"}', "{no", json.dumps({"prompt": "p", "response": "r" * 1000})]
    source = SampleFiles.open(str(jsonl(tmp_path / "c.jsonl", lines)), RowRules(limits=RowLimits(row_bytes=500)))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1)
    list(itertools.islice(conversation_examples(source, tokenizer, 50, 0, quarantine), 2))
    written = [json.loads(line) for line in quarantine.path.read_text().splitlines()]
    reasons = {row["id"]: row["reason"] for row in written}
    assert reasons.keys() == {"c.jsonl:2", "c.jsonl:3"} and reasons["c.jsonl:2"].startswith("not JSON: ")
    assert reasons["c.jsonl:3"] == "the line has 1031 bytes, over data.limits.row_bytes=500"


def test_a_file_without_one_good_row_is_an_error_whatever_the_share(tokenizer, tmp_path):
    source = SampleFiles.open(str(jsonl(tmp_path / "c.jsonl", [{"prompt": 1}] * 3)))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1)
    with pytest.raises(DataError, match="all 3 rows are bad; their reasons are in .*jsonl. Correct the rows"):
        next(conversation_examples(source, tokenizer, 50, 0, quarantine))


def test_wrong_settings_are_named():
    config = load_config(
        ["preset=fine_tune", "model.path=x", "learner.micro_batch_tokens=64", "fine_tuning.stop_after=5000"],
        FineTuningConfig,
    )
    with pytest.raises(ConfigError, match="fine_tuning.stop_after=5000.*\n.*fine_tuning.max_tokens=16384 is over"):
        check_fine_tuning(config)
    with pytest.raises(ConfigError, match="set data.path"):
        check_fine_tuning(load_config(["preset=fine_tune", "model.path=x"], FineTuningConfig))
    with pytest.raises(ConfigError, match="muon needs learner.max_grad_norm=0"):
        check_fine_tuning(load_config(["preset=fine_tune_tiny", "learner.max_grad_norm=1"], FineTuningConfig))


# Demonstrations.


@pytest.fixture(scope="module")
def tiny():
    from pipeline.data.documents.synthetic import tiny_tokenizer

    return tiny_tokenizer()


def facts_of(text: str) -> list[str]:
    return [f"{fact.strip()} ." for fact in text.split(" .") if fact.strip() and fact.strip() != "none"]


def read_update(tiny, example: Example) -> tuple[list[str], list[str], list[str]]:
    """The facts of the old memory, of the chunk and of the new memory of a memory conversation."""
    prompt, response = tiny.decode(example.tokens).split("<update>")
    memory, chunk = prompt.split("<memory>")[1].split("<section>")
    question = prompt.split("<memory>")[0].split("<problem>")[1].strip()
    return facts_of(memory), facts_of(chunk), facts_of(response.replace(question, "", 1).replace("<eos>", ""))


def test_the_prompts_are_those_of_the_agent(tiny):
    from pipeline.agents.memory import MemoryAgent

    agent = MemoryAgent(tiny, load_training_config(["preset=tiny"]).agent)
    example = Examples(tiny, random.Random(0), "tiny").careless_memory()
    text = tiny.decode([t for t, learned in zip(example.tokens, example.learned, strict=True) if not learned])
    question, memory, chunk = (
        text.split(start)[1].split(end)[0].split()
        for start, end in (("<problem>", "<memory>"), ("<memory>", "<section>"), ("<section>", "<update>"))
    )
    ids = tiny.convert_tokens_to_ids
    expected = agent.prompts.fill("memory", problem=ids(question), memory=ids(memory), chunk=ids(chunk))
    assert example.tokens[: len(expected)] == expected
    assert not any(example.learned[: len(expected)]) and all(example.learned[len(expected) :])


def test_the_careless_reader_forgets_what_it_needs_when_it_is_distracted_and_the_rest_often(tiny):
    """The subject of a question of one hop is the needed one; the memory is not full, for a full one loses more."""
    examples = Examples(tiny, random.Random(1), "tiny")
    kept, total = Counter(), Counter()
    for _ in range(8000):
        example = examples.careless_memory()
        question = tiny.decode(example.tokens).split("<memory>")[0].split()[2:]
        old, chunk, new = read_update(tiny, example)
        assert len(new) <= 4 and set(new) <= {*old, *chunk}
        if len(question) == 2 and len(old) <= 2:
            for fact in old:
                what = "useless" if fact.split()[0] != question[1] else (chunk[0].split()[0] in PEOPLE)
                total[what] += 1
                kept[what] += fact in new
    assert kept[False] / total[False] == pytest.approx(ATTENTIVE, abs=0.02)
    assert kept[True] / total[True] == pytest.approx(DISTRACTED, abs=0.05)
    assert kept["useless"] / total["useless"] == pytest.approx(KEEPS_USELESS, abs=0.03)


def test_the_careful_reader_forgets_nothing_and_hoards_nothing(tiny):
    examples = Examples(tiny, random.Random(2), "tiny")
    for _ in range(500):
        old, chunk, new = read_update(tiny, examples.careful_memory())
        assert len(new) <= 2 and set(new) <= {*old, *chunk}


def test_a_reader_of_a_few_facts_tells_the_chain_as_far_as_they_give_it(tiny):
    examples, complete = Examples(tiny, random.Random(3), "tiny"), 0
    for _ in range(500):
        words = tiny.decode(examples.reading().tokens).split()
        question = words[words.index("<problem>") + 1 : words.index("<section>")]
        facts = facts_of(" ".join(words[words.index("<section>") + 1 : words.index("<answer>")]))
        subject, chain = question[-1], []
        for _ in range(len(question) - 1):  # hops
            found = [fact for fact in facts if fact.split()[0] == subject]
            chain += found
            subject = found[0].split()[1] if found else None
        answer = " ".join(words[words.index("<answer>") + 1 + len(question) : -1])
        complete += subject is not None
        assert len(chain) <= len(question) - 1
        assert answer == " ".join([*chain, f"\\boxed{{ {subject or 'unknown'} }}"])
    assert 200 < complete < 300


def test_a_curriculum_goes_from_stage_to_stage(tiny):
    share = 0.0
    drawn = demonstrations(tiny, "reading", 0, lambda: share, "tiny")
    section, update = tiny.convert_tokens_to_ids(["<section>", "<memory>"])
    assert all(update not in next(drawn).tokens for _ in range(50))
    share = 0.5
    assert any(update in next(drawn).tokens for _ in range(50))
    assert all(sum(mixture.values()) == pytest.approx(1) for stages in CURRICULA.values() for _, mixture in stages)
    assert all(stages[-1][0] == 1.0 for stages in CURRICULA.values())


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_demonstrations_in_both_layouts_are_the_same_but_for_the_order(tiny, curriculum):
    drawn = [demonstrations(tiny, curriculum, 0, lambda: 0.5, template) for template in TEMPLATES]
    section, memory, update = tiny.convert_tokens_to_ids(["<section>", "<memory>", "<update>"])
    different = 0
    for _ in range(200):
        papers, ours = (next(examples) for examples in drawn)
        assert sorted(papers.tokens) == sorted(ours.tokens)
        end = papers.tokens.index(update) if update in papers.tokens else 0
        assert papers.tokens[end:] == ours.tokens[end:] and papers.learned == ours.learned
        if papers.tokens != ours.tokens:
            different += 1
            assert papers.tokens.index(memory) < papers.tokens.index(section)
            assert ours.tokens.index(section) < ours.tokens.index(memory)
    assert (different > 50) == (curriculum != "direct")
