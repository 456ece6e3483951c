"""The tiny language: problems, tokenizer, and how far one gets without reading."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoTokenizer

from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import Prompts, load_template
from pipeline.agents.window import check_window
from pipeline.config import CONFIGS
from pipeline.data.documents.synthetic import (
    CHUNK_FACTS,
    CHUNK_TOKENS,
    FACT_TOKENS,
    KINDS,
    MARKERS,
    PETS,
    SEPARATE_VALUES,
    SPECIAL_TOKENS,
    SYNTHETIC_TASKS,
    VALUES,
    WORDS,
    SyntheticRecipe,
    answer_text,
    synthetic_problem,
    tiny_model_config,
    tiny_tokenizer,
)
from pipeline.data.rows import row_of
from pipeline.fine_tuning.demonstrations import Examples
from pipeline.rewards.scoring import boxed_match, reward
from pipeline.run.config import load_training_config
from pipeline.run.rules import check_config
from pipeline.text import encode_text

CHUNKS = 8
BY_TASK = {task: [synthetic_problem(0, i, CHUNKS, task) for i in range(2000)] for task in SYNTHETIC_TASKS}
PROBLEMS = BY_TASK["chains"]
every_task = pytest.mark.parametrize("task", SYNTHETIC_TASKS)


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


def test_the_problems_of_chains_stay_what_they_are():
    """The shipped model and its published numbers rest on them."""
    digest = hashlib.blake2b(digest_size=8)
    for seed, chunks in ((0, 8), (5, 2), (1_000_000, 8), (3, 60)):
        for i in range(50):
            row = row_of(synthetic_problem(seed, i, chunks))
            del row["metadata"]["needed_at"]
            digest.update(json.dumps(row).encode())
    assert digest.hexdigest() == "e798b94db797a9ac"


def test_series_and_tasks_have_no_problem_in_common():
    documents = {p.document for problems in BY_TASK.values() for p in problems}
    documents |= {synthetic_problem(1_000_000, i, CHUNKS).document for i in range(2000)}
    assert len(documents) == 2000 * (len(SYNTHETIC_TASKS) + 1)


@every_task
def test_a_document_with_fewer_chunks_than_needed_facts_is_refused(task):
    most = SYNTHETIC_TASKS[task].most_needed
    assert max(len(p.metadata["needed"]) for p in BY_TASK[task]) == most
    synthetic_problem(0, 0, most, task)
    with pytest.raises(ValueError, match=f"the task {task} has {most} chunks or more"):
        synthetic_problem(0, 0, most - 1, task)


def test_half_of_the_questions_take_two_hops():
    two = sum(p.metadata["hops"] == 2 for p in PROBLEMS) / len(PROBLEMS)
    assert two == pytest.approx(0.5, abs=0.05)


@every_task
@pytest.mark.parametrize("chunks", [3, 8, 64])
def test_needed_facts_lie_in_different_chunks_where_the_metadata_say(task, chunks):
    for p in (synthetic_problem(1, i, chunks, task) for i in range(50)):
        facts, words, needed, where = facts_of(p.document), p.document.split(), needed_of(p), p.metadata["chunks"]
        assert len(facts) == chunks * CHUNK_FACTS
        assert len(needed) == len(where) and where == sorted(set(where))
        assert [at // CHUNK_TOKENS for at in p.metadata["needed_at"]] == where
        found = [" ".join(words[at : at + FACT_TOKENS]) for at in p.metadata["needed_at"]]
        assert found == p.metadata["needed"]


def test_needed_facts_are_placed_anywhere():
    places = Counter(chunk for p in PROBLEMS if p.metadata["hops"] == 1 for chunk in p.metadata["chunks"])
    assert set(places) == set(range(CHUNKS))


@pytest.mark.parametrize(("task", "hops"), [("chains", {1, 2}), ("needles", {1}), ("long_chains", {3})])
def test_the_question_leads_along_the_needed_facts_to_the_answer(task, hops):
    assert {p.metadata["hops"] for p in BY_TASK[task]} == hops
    for p in BY_TASK[task]:
        kind, *bridge, subject = p.question.split()
        assert bridge == ["pet"] * (p.metadata["hops"] - 1)
        for needed_subject, value in needed_of(p):
            assert needed_subject == subject
            subject = value
        assert p.answers == (subject,) and p.task == "qa"
        assert subject in VALUES[kind]
        assert len(needed_of(p)) == p.metadata["hops"]


def test_several_values_are_asked_for_and_the_order_of_the_question_is_not_that_of_the_document():
    in_order = 0
    for p in BY_TASK["values"]:
        kind, *pets = p.question.split()
        needed = dict(needed_of(p))
        assert sorted(pets) == sorted(needed) and len(pets) in (2, 3)
        assert p.answers == tuple(needed.values()) and len(set(p.answers)) == len(pets)
        assert set(p.answers) <= set(VALUES[kind])
        assert p.task == "values" and p.metadata["hops"] == 1
        in_order += list(needed) == pets
    assert in_order / len(BY_TASK["values"]) == pytest.approx((1 / 2 + 1 / 6) / 2, abs=0.05)


def test_no_text_holds_a_wanted_value_by_accident():
    every_other = {word: " ".join(other for other in WORDS if other != word) for word in sum(VALUES.values(), ())}
    found = {word for word, text in every_other.items() if reward("values", text, (word,))}
    assert found == {"bell"} == set(sum(VALUES.values(), ())) - set(sum(SEPARATE_VALUES.values(), ()))
    assert not any("bell" in p.answers for p in BY_TASK["values"])


@every_task
def test_a_needed_subject_has_no_other_fact(task):
    for p in BY_TASK[task]:
        subjects = Counter(subject for subject, _ in facts_of(p.document))
        assert all(subjects[subject] == 1 for subject, _ in needed_of(p))


def distractors_of(p) -> list[tuple[str, str]]:
    return [fact for fact in facts_of(p.document) if fact not in needed_of(p)]


@every_task
def test_the_distractors_know_nothing_of_the_answer(task):
    """Of those of the asked kind, a sixteenth has the wanted value (or one of them), as by chance."""
    wanted = asked = 0
    for p in BY_TASK[task]:
        values = [value for _, value in distractors_of(p) if value in VALUES[p.question.split()[0]]]
        wanted += sum(value in p.answers for value in values) / len(p.answers)
        asked += len(values)
    assert wanted / asked == pytest.approx(1 / 16, abs=0.004)


def test_the_distractors_of_needles_are_of_the_asked_kind_or_name_the_asked_pet():
    kinds = Counter()
    for p in BY_TASK["needles"]:
        kind, pet = p.question.split()
        for subject, value in distractors_of(p):
            assert (value in VALUES[kind] and subject in PETS) or value == pet
            kinds[value == pet] += 1
    assert kinds[False] / kinds.total() == pytest.approx(0.9, abs=0.01)


def test_a_quarter_of_the_distractors_of_long_chains_are_about_a_pets_pet():
    facts = [fact for p in BY_TASK["long_chains"] for fact in distractors_of(p)]
    pets_pets = [(pet, other) for pet, other in facts if pet in PETS and other in PETS]
    assert len(pets_pets) / len(facts) == pytest.approx(0.25, abs=0.01)
    assert all(pet != other for pet, other in pets_pets)


def test_a_quarter_of_the_distractors_is_of_the_asked_kind():
    asked = everything = 0
    for p in PROBLEMS:
        distractors = set(facts_of(p.document)) - set(needed_of(p))
        asked += sum(value in VALUES[p.question.split()[0]] for _, value in distractors)
        everything += len(distractors)
    assert asked / everything == pytest.approx(0.25, abs=0.02)


@every_task
def test_without_reading_one_guesses_near_chance(task):
    """The question alone gives a sixteenth for each value that may be named; the values of the asked kind that the
    document has most often give little more."""
    problems = BY_TASK[task]
    guesses = [len(p.question.split()) - 1 if p.task == "values" else 1 for p in problems]
    chance = sum(guesses) / len(guesses) / 16

    def score(ranked) -> float:
        """Of the first values of each problem's ranking, as many as are asked for."""
        answers = [f"\\boxed{{ {' '.join(ranked(p)[:n])} }}" for p, n in zip(problems, guesses, strict=True)]
        return sum(reward(p.task, a, p.answers) for p, a in zip(problems, answers, strict=True)) / len(problems)

    seen = {kind: Counter() for kind in KINDS}
    for p in problems:
        seen[p.question.split()[0]].update(p.answers)
    # The best guess in hindsight: the counts are those of the problems that are guessed.
    assert score(lambda p: [value for value, _ in seen[p.question.split()[0]].most_common()]) < chance + 0.05

    def most_frequent(p):
        of_kind = [value for _, value in facts_of(p.document) if value in VALUES[p.question.split()[0]]]
        return [value for value, _ in Counter(of_kind).most_common()]

    assert score(most_frequent) < {"chains": 0.22, "needles": 0.15, "values": 0.42, "long_chains": 0.18}[task]


def test_words_are_distinct_and_none_is_a_special_token():
    assert len(set(WORDS)) == len(WORDS)
    assert not {token.strip("<>") for token in SPECIAL_TOKENS} & set(WORDS)


def test_every_word_is_one_token_and_comes_back(tokenizer):
    assert len(tokenizer) == tiny_model_config().vocab_size == len(SPECIAL_TOKENS) + len(WORDS)
    ids = encode_text(tokenizer, " ".join(WORDS))
    assert len(set(ids)) == len(ids) == len(WORDS)
    assert tokenizer.decode(ids) == " ".join(WORDS)


def test_documents_are_whole_chunks_of_known_words(tokenizer):
    for p in (p for problems in BY_TASK.values() for p in problems[:50]):
        assert tokenizer.unk_token_id not in encode_text(tokenizer, p.question)
        ids = encode_text(tokenizer, p.document)
        assert len(ids) == CHUNKS * CHUNK_TOKENS
        assert tokenizer.unk_token_id not in ids
        assert set(ids[2::3]) == {tokenizer.convert_tokens_to_ids(".")}
        assert tokenizer.decode(ids) == p.document


def test_special_tokens_in_a_document_are_plain_unknown_words(tokenizer):
    ids = encode_text(tokenizer, "Sam Rex<eos> . <memory><section> " + " ".join(SPECIAL_TOKENS))
    assert set(ids) & set(tokenizer.all_special_ids) == {tokenizer.unk_token_id}


def test_special_tokens_of_the_template_are_special(tokenizer):
    prompt = Prompts(tokenizer, load_template("tiny"), MemoryAgent.slots).fill(
        "answer", problem=encode_text(tokenizer, "city Rex"), memory=encode_text(tokenizer, "none")
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
    config = load_training_config(["preset=tiny"])
    check_config(config)
    agent = config.agent
    assert agent.chunk_tokens == CHUNK_TOKENS
    longest = MemoryAgent(tokenizer, agent).longest_prompts()
    check_window(config, longest, tiny_model_config().max_position_embeddings)
    for p in (p for problems in BY_TASK.values() for p in problems):
        assert len(p.question.split()) <= agent.problem_tokens
        memory = " ".join(p.metadata["needed"])
        assert len(memory.split()) < agent.memory_tokens  # and <eos>
        assert len(f"{memory} \\boxed{{ {' '.join(p.answers)} }}".split()) < agent.answer_tokens


def test_demonstrations_end_within_the_limits_of_the_preset(tokenizer):
    agent = load_training_config(["preset=tiny"]).agent
    examples = Examples(tokenizer, random.Random(0), "tiny")
    limits = {"careful_memory": agent.memory_tokens, "careless_memory": agent.memory_tokens}
    for name, limit in {**limits, "answer": agent.answer_tokens}.items():
        for example in (getattr(examples, name)() for _ in range(100)):
            assert sum(example.learned) <= limit
            assert example.tokens[-1] == tokenizer.eos_token_id and example.learned[-1]
            assert len(example.tokens) <= agent.window
            assert tokenizer.unk_token_id not in example.tokens


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
    values = SyntheticRecipe(seed=3, chunks=CHUNKS, count=5, task="values").sample(0)
    assert values.metadata["set"] == "values" and values.id == "values-3-0"
    sample = source.sample(4)
    assert len(encode_text(tokenizer, sample.document)) == sample.metadata["length"]
    assert sorted(source.order(seed=0, epoch=1).tolist()) == list(range(5))
