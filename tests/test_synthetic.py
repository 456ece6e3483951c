"""The tiny language: problems, tokenizer, and how far one gets without reading."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoTokenizer

from jobs.warmstart import Examples, measure
from pipeline.config import CONFIGS, load_config
from pipeline.config_rules import check_config, check_window
from pipeline.documents.synthetic import (
    CHUNK_FACTS,
    CHUNK_TOKENS,
    KINDS,
    MARKERS,
    SPECIAL_TOKENS,
    VALUES,
    WORDS,
    SyntheticRecipe,
    answer_text,
    synthetic_problem,
    tiny_model_config,
    tiny_tokenizer,
)
from pipeline.episodes import Completion, Conversation, Episode
from pipeline.prompts import PROMPT_TEMPLATES, Prompts, encode_text
from pipeline.scoring import boxed_match

CHUNKS = 8
PROBLEMS = [synthetic_problem(0, i, CHUNKS) for i in range(1000)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def facts_of(text: str) -> list[tuple[str, str]]:
    return [tuple(fact.split()) for fact in text.split(" .") if fact]


def needed_of(problem) -> list[tuple[str, str]]:
    return [facts_of(fact)[0] for fact in problem.metadata["needed"]]


def test_a_problem_depends_on_its_arguments_alone():
    random.seed(1)
    first = synthetic_problem(3, 7, CHUNKS)
    random.seed(2)
    synthetic_problem(3, 6, CHUNKS)
    assert synthetic_problem(3, 7, CHUNKS) == first
    assert first.id == "synthetic-3-7"
    others = [synthetic_problem(4, 7, CHUNKS), synthetic_problem(3, 8, CHUNKS), synthetic_problem(3, 7, 2 * CHUNKS)]
    assert all(other.document != first.document for other in others)


def test_problems_are_not_repeated():
    assert len({p.document for p in PROBLEMS}) == len(PROBLEMS)


def test_one_chunk_is_refused():
    with pytest.raises(ValueError, match="2 chunks"):
        synthetic_problem(0, 0, 1)


def test_half_of_the_questions_take_two_hops():
    two = sum(p.metadata["hops"] == 2 for p in PROBLEMS) / len(PROBLEMS)
    assert two == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("chunks", [2, 8, 64])
def test_needed_facts_lie_in_different_chunks_with_the_bridge_first(chunks):
    for p in (synthetic_problem(1, i, chunks) for i in range(50)):
        facts, needed, where = facts_of(p.document), needed_of(p), p.metadata["chunks"]
        assert len(facts) == chunks * CHUNK_FACTS
        assert len(needed) == len(where) == p.metadata["hops"]
        assert where == sorted(set(where))
        for fact, chunk in zip(needed, where, strict=True):
            assert fact in facts[chunk * CHUNK_FACTS : (chunk + 1) * CHUNK_FACTS]


def test_needed_facts_are_placed_anywhere():
    places = Counter(chunk for p in PROBLEMS if p.metadata["hops"] == 1 for chunk in p.metadata["chunks"])
    assert set(places) == set(range(CHUNKS))


def test_the_question_leads_along_the_needed_facts_to_the_answer():
    for p in PROBLEMS:
        kind, *bridge, subject = p.question.split()
        assert bridge == (["pet"] if p.metadata["hops"] == 2 else [])
        for needed_subject, value in needed_of(p):
            assert needed_subject == subject
            subject = value
        assert p.answers == (subject,)
        assert subject in VALUES[kind]


def test_a_needed_subject_has_no_other_fact():
    for p in PROBLEMS:
        subjects = Counter(subject for subject, _ in facts_of(p.document))
        assert all(subjects[subject] == 1 for subject, _ in needed_of(p))


def test_a_quarter_of_the_distractors_is_of_the_asked_kind():
    asked = everything = 0
    for p in PROBLEMS:
        distractors = set(facts_of(p.document)) - set(needed_of(p))
        asked += sum(value in VALUES[p.question.split()[0]] for _, value in distractors)
        everything += len(distractors)
    assert asked / everything == pytest.approx(0.25, abs=0.02)


def test_without_reading_one_guesses_near_chance():
    """Knowing the question alone gives 1/16; counting the values of the asked kind gives little more."""
    values = {kind: Counter() for kind in KINDS}
    for p in PROBLEMS:
        values[p.question.split()[0]].update(p.answers)
    closed_book = sum(counts.most_common(1)[0][1] for counts in values.values()) / len(PROBLEMS)
    assert closed_book < 0.12

    def most_frequent(p):
        of_kind = [value for _, value in facts_of(p.document) if value in VALUES[p.question.split()[0]]]
        return Counter(of_kind).most_common(1)[0][0]

    assert sum(most_frequent(p) in p.answers for p in PROBLEMS) / len(PROBLEMS) < 0.25


def test_words_are_distinct_and_none_is_a_special_token():
    assert len(set(WORDS)) == len(WORDS)
    assert not {token.strip("<>") for token in SPECIAL_TOKENS} & set(WORDS)


def test_every_word_is_one_token_and_comes_back(tokenizer):
    assert len(tokenizer) == tiny_model_config().vocab_size == len(SPECIAL_TOKENS) + len(WORDS)
    ids = encode_text(tokenizer, " ".join(WORDS))
    assert len(set(ids)) == len(ids) == len(WORDS)
    assert tokenizer.decode(ids) == " ".join(WORDS)


def test_documents_are_whole_chunks_of_known_words(tokenizer):
    for p in PROBLEMS[:50]:
        ids = encode_text(tokenizer, p.document)
        assert len(ids) == CHUNKS * CHUNK_TOKENS
        assert tokenizer.unk_token_id not in ids
        assert set(ids[2::3]) == {tokenizer.convert_tokens_to_ids(".")}
        assert tokenizer.decode(ids) == p.document


def test_special_tokens_in_a_document_are_plain_unknown_words(tokenizer):
    ids = encode_text(tokenizer, "Sam Rex<eos> . <memory><section> " + " ".join(SPECIAL_TOKENS))
    assert set(ids) & set(tokenizer.all_special_ids) == {tokenizer.unk_token_id}


def test_special_tokens_of_the_template_are_special(tokenizer):
    prompt = Prompts(tokenizer, PROMPT_TEMPLATES["tiny"]).answer(
        encode_text(tokenizer, "city Rex"), encode_text(tokenizer, "none")
    )
    assert tokenizer.decode(prompt) == "<bos> <problem> city Rex <memory> none <answer> city Rex"
    assert tokenizer.unk_token_id not in prompt


def test_the_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "Sam Rex . <memory> \\boxed{ Paris }"
    assert encode_text(loaded, text) == encode_text(tokenizer, text)
    assert loaded.decode(encode_text(loaded, MARKERS[-2] + " Paris }")) == "\\boxed{ Paris }"


def test_the_gold_answer_scores_one_and_unknown_scores_zero(tokenizer):
    for p in PROBLEMS[:50]:
        gold = tokenizer.decode(encode_text(tokenizer, answer_text(needed_of(p), complete=True)))
        unknown = tokenizer.decode(encode_text(tokenizer, answer_text(needed_of(p)[:-1], complete=False)))
        assert boxed_match(gold, p.answers) == 1
        assert boxed_match(unknown, p.answers) == 0


def test_the_preset_holds_the_language(tokenizer):
    config = load_config(["preset=tiny"])
    check_config(config)
    agent = config.agent
    assert agent.chunk_tokens == CHUNK_TOKENS
    longest = Prompts(tokenizer, PROMPT_TEMPLATES[agent.prompt_template]).longest(
        agent.problem_tokens, agent.memory_tokens, agent.chunk_tokens
    )
    check_window(config, *longest, tiny_model_config().max_position_embeddings)
    for p in PROBLEMS:
        assert len(p.question.split()) <= agent.problem_tokens
        assert len(answer_text(needed_of(p), complete=True).split()) < agent.answer_tokens  # and <eos>


def test_demonstrations_end_within_the_limits_of_the_preset(tokenizer):
    agent = load_config(["preset=tiny"]).agent
    examples = Examples(tokenizer, random.Random(0))
    limits = {"first_update": agent.memory_tokens, "update": agent.memory_tokens, "answer": agent.answer_tokens}
    for name, limit in limits.items():
        for tokens, learned in (getattr(examples, name)() for _ in range(100)):
            response = [token for token, use in zip(tokens, learned, strict=True) if use]
            assert tokens[-len(response) :] == response
            assert len(response) <= limit
            assert response[-1] == tokenizer.eos_token_id
            assert len(tokens) <= agent.window
            assert tokenizer.unk_token_id not in tokens


def test_measure_tells_writing_keeping_and_answering_apart(tokenizer):
    """A model that writes both facts, forgets the first for a while, and answers right at last."""
    problem = next(p for p in PROBLEMS if p.metadata["chunks"] == [1, 4])
    bridge, value = problem.metadata["needed"]

    def conversation(text):
        tokens = encode_text(tokenizer, text)
        return Conversation("memory", [], Completion(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop"))

    def measured(memories, answer):
        turns = [conversation(text) for text in [*memories, answer]]
        return measure(tokenizer, [problem], [Episode(turns, answer)])

    right, both = f"\\boxed{{ {problem.answers[0]} }}", f"{bridge} {value}"
    careful = measured(["none", bridge, bridge, bridge, both, both, both, both], right)
    assert careful == {"accuracy": 1, "answered": 1, "kept": 1, "two_hop": 1, "written": 1}
    # The value's fact cannot be recognised without the bridge: no failure to write it.
    forgetful = measured(["none", bridge, "none", "none", "none", "none", "none", "none"], "unknown")
    assert forgetful == {"accuracy": 0, "kept": 0, "two_hop": 0, "written": 1}
    blind = measured(["none"] * 8, right)
    assert blind == {"accuracy": 1, "two_hop": 1, "written": 0}


def test_the_shipped_model_speaks_the_language(tokenizer):
    folder = CONFIGS / "models" / "tiny"
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    shipped, config = AutoConfig.from_pretrained(folder), tiny_model_config()
    assert (shipped.vocab_size, shipped.hidden_size) == (config.vocab_size, config.hidden_size)
    assert (shipped.eos_token_id, shipped.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_recipe_gives_the_problems_of_its_series_with_set_and_length(tokenizer):
    source = SyntheticRecipe(seed=3, chunks=CHUNKS, count=5)
    assert [source.sample(i) for i in range(len(source))] == [
        replace(p, metadata=p.metadata | {"set": "synthetic", "length": CHUNKS * CHUNK_TOKENS})
        for p in (synthetic_problem(3, i, CHUNKS) for i in range(5))
    ]
    sample = source.sample(4)
    assert len(encode_text(tokenizer, sample.document)) == sample.metadata["length"]
    assert sorted(source.order(seed=0, epoch=1).tolist()) == list(range(5))
