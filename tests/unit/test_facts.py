"""Hidden facts: every problem is solved from its facts alone by a program, and they stand where the metadata say."""

import functools
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from pipeline.data.documents.facts.problem import draw_riddle, hidden_facts_problem
from pipeline.data.documents.facts.recipe import FactsRecipe
from pipeline.data.documents.facts.relations import FORMS, HELD_OUT, RELATIONS, VALUES, draw_value, relations_of
from pipeline.data.documents.ruler import load_essay
from pipeline.data.recipes import PROSE as PROSE_FILES
from pipeline.data.recipes import FactsSettings
from pipeline.errors import DataError
from pipeline.text import encode_document, encode_text, token_starts
from tests.support.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
PROSE = load_essay("configs/prose/training.txt")
TOKENS, CHUNK = 2400, 450  # bytes


def problem(index: int, hops: int = 2, forms: str = "all", tokens: int = TOKENS, seed: int = 0, name: str = "facts"):
    starts = functools.partial(token_starts, TOKENIZER)
    return hidden_facts_problem(seed, index, tokens, hops, relations_of(forms), PROSE, CHUNK, starts, name)


def pattern(text: str) -> re.Pattern:
    """A statement or a question as a pattern with the groups s and v."""
    escaped = re.escape(text).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{v\}", "(?P<v>.+)")
    return re.compile(escaped, re.IGNORECASE)


def known_facts(sentences: list[str]) -> dict[tuple[str, str], str]:
    """Value by relation and subject."""
    known = {}
    for sentence in sentences:
        (found,) = {
            (relation.name, match["s"].lower(), match["v"])
            for relation in RELATIONS
            for statement in relation.statements
            if (match := pattern(statement).fullmatch(sentence))
        }
        assert found[:2] not in known, "a subject has two values"
        known[found[:2]] = found[2]
    return known


def solve(question: str, sentences: list[str]) -> str:
    """The answer, by looking up the subject, or the person whom it describes."""
    known = known_facts(sentences)
    for relation in RELATIONS:
        if match := pattern(relation.question).fullmatch(question):
            subject = match["s"].lower()
            for bridge in RELATIONS:
                if bridge.role and (role := pattern(bridge.role).fullmatch(subject)):
                    subject = known[bridge.name, role["s"].lower()].lower()
            if (relation.name, subject) in known:
                return known[relation.name, subject]
    raise AssertionError(f"nothing answers {question}")


def test_there_are_twenty_ways_and_more_to_state_and_to_ask():
    statements = [statement for relation in RELATIONS for statement in relation.statements]
    questions = [relation.question for relation in RELATIONS]
    assert len(set(statements)) == len(statements) >= 20 and len(set(questions)) == len(questions) >= 20
    assert all("{s}" in text and "{v}" in text and text.endswith(".") for text in statements)
    assert len({relation.name for relation in RELATIONS}) == len(RELATIONS)


def test_held_out_forms_are_in_no_training_problem():
    trained, held_out, both = (relations_of(forms) for forms in FORMS)
    assert {relation.name for relation in held_out} == set(HELD_OUT)
    assert set(trained) | set(held_out) == set(both) == set(RELATIONS) and not set(trained) & set(held_out)
    for forms in ("trained", "held_out"):
        names = {relation.name for relation in relations_of(forms)}
        for index in range(20):
            made = problem(index, 1 + index % 2, forms=forms)
            stated = known_facts([text for text, _ in made.metadata["facts"]])
            assert {name for name, _ in stated} <= names
            others = [relation for relation in RELATIONS if relation.name not in names]
            assert not any(pattern(relation.question).fullmatch(made.question) for relation in others)
            assert not any(relation.role and f"the {relation.name} of" in made.question for relation in others)


@pytest.mark.parametrize("hops", [1, 2])
def test_the_facts_answer_the_question_and_only_the_needed_ones_do(hops):
    asked = Counter()
    chains = 0
    for index in range(150):
        riddle = draw_riddle(random.Random(index), RELATIONS, hops, 8)
        texts = [fact.text for fact in (*riddle.others, *riddle.needed)]
        assert solve(riddle.question, texts) == riddle.needed[-1].value
        asked[riddle.needed[-1].relation.name] += 1
        assert len(riddle.needed) == hops and len(riddle.others) == 8
        for needed in riddle.needed:
            assert any(other.relation is needed.relation for other in riddle.others)  # the subject decides
            assert not any(re.search(rf"\b{needed.value}\b", other.value) for other in riddle.others)
        ends = {other.subject for other in riddle.others if other.relation is riddle.needed[-1].relation}
        chains += any(other.value in ends for other in riddle.others if other.relation is riddle.needed[0].relation)
        for missing in riddle.needed:
            with pytest.raises((AssertionError, KeyError)):
                solve(riddle.question, [text for text in texts if text != missing.text])
    assert len(asked) > 10 and (hops == 1 or chains == 150)  # the chain of another thing is complete, too


@pytest.mark.parametrize("hops", [1, 2])
def test_needed_facts_stand_whole_in_different_chunks_in_order(hops):
    for index in range(25):
        made = problem(index, hops)
        document = encode_document(TOKENIZER, made.document)
        assert 0.99 * TOKENS <= len(document) <= TOKENS
        chunks = [TOKENIZER.decode(document[at : at + CHUNK]) for at in range(0, len(document), CHUNK)]
        holding = [[number for number, chunk in enumerate(chunks) if text in chunk] for text in made.metadata["needed"]]
        assert all(len(numbers) == 1 for numbers in holding) and holding == sorted(holding)
        assert len(set(map(tuple, holding))) == hops == made.metadata["hops"]
        for text, place in zip(made.metadata["needed"], made.metadata["needed_at"], strict=True):
            assert TOKENIZER.decode(document[place : place + len(encode_text(TOKENIZER, text))]) == text
        facts = [text for text, _ in made.metadata["facts"]]
        assert [made.document.count(text) for text in facts] == [1] * len(facts)
        assert facts == sorted(facts, key=made.document.index)
        assert [text for text, needed in made.metadata["facts"] if needed] == made.metadata["needed"]
        assert solve(made.question, facts) == made.answers[0] == made.metadata["needed_values"][-1][-1]
        for text, signs in zip(made.metadata["needed"], made.metadata["needed_values"], strict=True):
            assert all(sign in text for sign in signs)


def test_a_problem_depends_on_its_arguments_only():
    assert problem(3) == problem(3)
    others = [problem(4), problem(3, seed=1), problem(3, hops=1), problem(3, tokens=2000)]
    assert len({made.question for made in [problem(3), *others]}) == 5
    assert {made.id for made in others} == {"facts-2400-0-4", "facts-2400-1-3", "facts-2400-0-3", "facts-2000-0-3"}


def test_a_document_that_is_too_short_is_refused():
    with pytest.raises(DataError, match="facts"):
        problem(0, tokens=100)
    with pytest.raises(DataError, match="no 2 facts fit 440 tokens in different chunks of 450 tokens"):
        problem(0, tokens=440)


def test_as_many_facts_as_there_are_and_no_more():
    riddle = draw_riddle(random.Random(0), relations_of("trained"), 2, 10**6)
    assert 4000 < len(riddle.others) < 10_000
    assert len({(fact.relation, fact.subject) for fact in (*riddle.needed, *riddle.others)}) == len(riddle.others) + 2


def test_half_of_the_prose_is_held_out():
    training, held_out = (set(load_essay(path)) for path in PROSE_FILES)
    shared = {sentence for sentence in training & held_out if len(sentence) > 60}
    assert not shared and len(training) > 1000 < len(held_out)


def test_values_are_of_their_kind():
    rng = random.Random(0)
    drawn = {relation.value: {draw_value(relation, rng) for _ in range(200)} for relation in RELATIONS}
    assert drawn.keys() == VALUES.keys()
    assert all(1701 <= int(year) <= 1899 for year in drawn["year"])
    assert all(re.fullmatch(r"\d{1,2} [A-Z][a-z]+", day) for day in drawn["day"])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hops": [3]}, "hops=3; there are: 1, 2"),
        ({"hops": []}, "hops is empty"),
        ({"forms": "new"}, "forms='new'; there are: trained, held_out, all"),
        ({"tokens": [0]}, "tokens=0 must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    assert FactsSettings(output="x", tokenizer="y", **settings).faults() == [said]
    assert FactsSettings(output="x", tokenizer="y").faults() == []


def test_the_recipe_makes_these_problems(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    recipe = FactsRecipe(0, TOKENS, 2, "all", "configs/prose/training.txt", CHUNK, str(tmp_path), 5)
    assert len(recipe) == 5 and replace(recipe, forms="trained").set_name == "facts_2"
    assert recipe.sample(3) == problem(3, name="facts_2_all") and recipe.sample(3).metadata["set"] == "facts_2_all"
    held_out = replace(recipe, forms="held_out", hops=1).sample(3)
    assert held_out == problem(3, 1, "held_out", name="facts_1_held_out")
