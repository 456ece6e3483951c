"""What memories do with the needed facts, against counts made by hand."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from pipeline.agents.memory_trace import MOST_FACTS, MemoryTrace, needed_facts
from pipeline.data.documents.synthetic import tiny_tokenizer
from pipeline.problems import Problem
from pipeline.rollout.memory_counts import MemoryCounts, Ratio, memory_shares
from pipeline.run.config import load_training_config
from pipeline.text import encode_document
from tests.support.byte_tokenizer import byte_tokenizer

TOKENIZER = tiny_tokenizer()
CONFIG = load_training_config(["preset=tiny"]).agent  # chunks of 18 tokens, six facts
BRIDGE, FACT, OTHER, ANOTHER = "Sam Rex .", "Rex Paris .", "Adam Luna .", "Luna red ."


def problem_with(needed: list[str], needed_at: list[int], facts: int = 24, **metadata) -> Problem:
    """A document of other facts in which the needed ones stand at their tokens."""
    words = (OTHER.split() * facts)[: 3 * facts]
    for text, place in zip(needed, needed_at, strict=True):
        words[place : place + 3] = text.split()
    metadata = {"needed": needed, "needed_at": needed_at} | metadata
    return Problem("p", "city pet Sam", ("Paris",), " ".join(words), metadata=metadata)


def facts_of(problem: Problem):
    return needed_facts(problem, encode_document(TOKENIZER, problem.document), TOKENIZER)


def traced(problem: Problem, *memories: str) -> MemoryTrace:
    trace = MemoryTrace(TOKENIZER, CONFIG, facts_of(problem))
    for memory in memories:
        trace.add(TOKENIZER.encode(memory, add_special_tokens=False) + [TOKENIZER.eos_token_id])
    return trace


TWO_HOPS = problem_with([BRIDGE, FACT], [3, 39])  # in the first and in the third of four chunks


def test_two_hops_written_and_kept_to_the_end():
    trace = traced(TWO_HOPS, BRIDGE, BRIDGE, f"{BRIDGE} {FACT}", f"{FACT} {BRIDGE}")
    assert trace.complete
    assert trace.counts.scored(1.0) == MemoryCounts(
        written=Ratio(2, 2), kept=Ratio(4, 4), answered=Ratio(1, 1), junk=Ratio(0, 18), tokens=Ratio(18, 4)
    )


def test_without_the_bridge_there_is_no_chance_to_write_what_builds_on_it():
    counts = traced(TWO_HOPS, "none", "none", FACT, "none").counts
    # The fact got in all the same, which counts as nothing, and was lost in the last update.
    assert counts == MemoryCounts(written=Ratio(0, 1), kept=Ratio(0, 1), junk=Ratio(0, 3), tokens=Ratio(3, 4))


def test_a_bridge_that_comes_in_the_same_chunk_is_not_in_the_old_memory():
    both = problem_with([BRIDGE, FACT], [0, 9])
    assert traced(both, f"{BRIDGE} {FACT}").counts.written == Ratio(1, 1)


def test_a_fact_forgotten_and_written_again_had_one_chance_to_be_written():
    counts = traced(TWO_HOPS, BRIDGE, OTHER, BRIDGE, BRIDGE).counts
    assert counts.written == Ratio(1, 1)  # the second fact's chunk came when the bridge was gone
    assert counts.kept == Ratio(1, 2) and counts.answered == Ratio(0, 0)
    assert counts.junk == Ratio(3, 12)


def test_a_fact_that_was_in_the_memory_before_its_chunk_is_kept_and_not_written():
    counts = traced(TWO_HOPS, BRIDGE, f"{BRIDGE} {FACT}", f"{BRIDGE} {FACT}").counts
    assert counts.written == Ratio(1, 1) and counts.kept == Ratio(3, 3)


@pytest.mark.parametrize(
    ("place", "written"), [(15, Ratio(0, 1)), (16, Ratio(0, 0)), (17, Ratio(0, 0)), (18, Ratio(1, 1))]
)
def test_a_fact_that_a_boundary_cuts_is_no_chance_to_write(place, written):
    counts = traced(problem_with([FACT], [place]), "none", FACT, FACT).counts
    assert counts.written == written and counts.kept == Ratio(1, 1) and counts.answered == Ratio(0, 1)


def test_facts_that_are_asked_for_by_themselves_build_on_nothing():
    values = problem_with([FACT, "Luna Rome .", "Kiki Oslo ."], [0, 21, 39], hops=1)
    counts = traced(values, "none", "Luna Rome .", "Luna Rome . Kiki Oslo .").counts
    assert counts.written == Ratio(2, 3) and counts.kept == Ratio(1, 1) and counts.answered == Ratio(0, 0)


def test_hoarded_facts_and_repetitions_are_junk():
    counts = traced(TWO_HOPS, f"{OTHER} {BRIDGE} {ANOTHER} {BRIDGE}", f"{BRIDGE} {OTHER} Sam").counts
    assert counts.junk == Ratio(9 + 4, 12 + 7) and counts.tokens == Ratio(19, 2)


def test_an_empty_memory_has_no_tokens_but_is_a_memory():
    trace = traced(TWO_HOPS, "none", "", "none none")
    assert trace.counts.tokens == Ratio(2, 3) and trace.counts.junk == Ratio(2, 2)
    assert not trace.complete and trace.counts.answered == Ratio(0, 0)
    assert trace.counts.shares()["kept"] is None


def test_only_a_reward_of_one_is_a_right_answer():
    one_hop = traced(problem_with([FACT], [0]), FACT).counts
    assert one_hop.answered == Ratio(0, 1)
    assert [one_hop.scored(np.float32(reward)).answered for reward in (1, 0.5, 0)] == [(1, 1), (0, 1), (0, 1)]
    assert traced(TWO_HOPS, BRIDGE).counts.scored(1.0).answered == Ratio(0, 0)  # right, but not by the memory


def test_counts_add_up_and_go_through_json_and_pickle():
    a = traced(TWO_HOPS, BRIDGE, f"{OTHER} {BRIDGE}").counts.scored(np.float32(0))
    b = traced(problem_with([FACT], [0]), FACT, "none").counts.scored(np.float32(1))
    total = sum([a, b], MemoryCounts())
    assert total == MemoryCounts(Ratio(2, 2), Ratio(1, 2), Ratio(0, 0), Ratio(3, 12), Ratio(12, 4))
    assert memory_shares(total) == {
        "memory_written": 1.0,
        "memory_kept": 0.5,
        "memory_answered": None,
        "memory_junk": 0.25,
        "memory_tokens": 3.0,
    }
    assert json.loads(json.dumps(vars(total)))["kept"] == [1, 2]
    assert pickle.loads(pickle.dumps(total)) == total


@pytest.mark.parametrize("places", [{}, {"needed_at": [0, 3]}, {"needed_at": ["39"]}, {"needed_at": [36]}])
def test_a_fact_without_its_place_is_looked_for(places):
    words = (OTHER.split() * 24)[:72]
    words[39:42] = FACT.split()
    problem = Problem("p", "q", ("a",), " ".join(words), metadata={"needed": [FACT], "hops": 1} | places)
    assert [fact.start for fact in facts_of(problem)] == [39]
    assert traced(problem, "none", "none", FACT, FACT).counts.written == Ratio(1, 1)


def test_a_value_shows_a_fact_whatever_the_words_around_it():
    """Token offsets of the metadata are those of no tokenizer; the value counts as a word or number of its own."""
    tokenizer = byte_tokenizer()
    needed, text = "The ticket number of Ada is 366.", "I had seen little of Holmes lately. "
    problem = Problem(
        "p",
        "q",
        ("366",),
        text * 3 + needed + " " + text,
        metadata={"needed": [needed], "needed_values": ["366"], "needed_at": [7], "hops": 1},
    )
    (fact,) = needed_facts(problem, encode_document(tokenizer, problem.document), tokenizer)
    assert fact.start == len(text * 3) and fact.length == len(needed)
    held = ["366", "Ada's number: 366!", "(366)", "号码366。", needed]
    assert all(map(fact.is_in, held)) and not any(map(fact.is_in, ["3661", "1366", "x366", "36 6", ""]))
    assert (fact.useful_tokens(needed), fact.useful_tokens("366 and rubbish")) == (len(needed), 3)


def test_a_text_of_a_language_without_blanks_is_found_within_other_text():
    tokenizer = byte_tokenizer()
    problem = Problem("p", "q", ("东京",), "他住在东京。", metadata={"needed": ["住在东京"], "needed_values": ["东京"]})
    (fact,) = needed_facts(problem, encode_document(tokenizer, problem.document), tokenizer)
    assert fact.start == len("他".encode()) and fact.length == len("住在东京".encode())
    assert fact.is_in("我在东京见过他") and fact.is_in("他住在东京。") and not fact.is_in("他住在北京。")


def test_a_bridge_is_held_by_its_thing_and_its_person_together():
    """The next fact repeats the person, which says nothing about the bridge."""
    tokenizer = byte_tokenizer()
    bridge, end = "The keeper of the amber falcon is Ada.", "The ticket number of Ada is 4312."
    signs = [["amber falcon", "Ada"], ["4312"]]
    problem = Problem(
        "p", "q", ("4312",), f"{bridge} {end}", metadata={"needed": [bridge, end], "needed_values": signs}
    )
    first, second = needed_facts(problem, encode_document(tokenizer, problem.document), tokenizer)
    assert not first.is_in(end) and second.is_in(end) and not second.is_in(bridge)
    assert first.is_in(bridge) and first.is_in("Ada keeps an amber falcon") and not first.is_in("an amber falcon")
    assert (first.builds_on, second.builds_on) == (0, 1) and first.signs_length == len("amber falconAda")


def test_of_several_places_the_one_that_is_named_counts():
    twice = problem_with([FACT], [39])
    words = twice.document.split()
    words[3:6] = FACT.split()
    (fact,) = facts_of(replace(twice, document=" ".join(words)))
    assert fact.start == 39


@pytest.mark.parametrize(
    "metadata",
    [
        {"needed_values": [7]},
        {"needed_values": [[]]},
        {"needed_values": [["x", 7]]},
        {"needed_values": "Paris"},
        {"needed_at": [10**4000]},
        {"needed_at": [-5]},
        {"needed_at": "0"},
    ],
)
def test_what_else_is_malformed_is_as_if_it_were_missing(metadata):
    problem = problem_with([FACT], [39], hops=1)
    problem.metadata.update(metadata)
    (fact,) = facts_of(problem)
    assert fact.start == 39 and fact.is_in(f"{OTHER} {FACT}") and not fact.is_in("Paris")


def test_a_problem_that_needs_too_many_facts_is_not_followed():
    problem = problem_with([FACT], [0])
    problem.metadata["needed"] = [FACT] * (MOST_FACTS + 1)
    assert facts_of(problem) == ()


def test_a_fact_in_a_long_document_is_found_without_decoding_much_of_it():
    document = f"{OTHER} " * 100_000 + FACT
    tokens = encode_document(TOKENIZER, document)
    decoded = []

    class Counting:
        def __getattr__(self, name):
            return getattr(TOKENIZER, name)

        def decode(self, tokens, **options):
            decoded.append(len(tokens))
            return TOKENIZER.decode(tokens, **options)

    problem = Problem("p", "q", ("Paris",), document, metadata={"needed": [FACT]})
    (fact,) = needed_facts(problem, tokens, Counting())
    assert fact.start == 300_000 and fact.length == 3 and sum(decoded) < 1.2 * len(tokens)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"needed": FACT, "needed_at": 0},
        {"needed": [5], "needed_at": [0]},
        {"needed": [" "], "needed_at": [0]},
        {"needed": [], "needed_at": []},
    ],
)
def test_unknown_needs_leave_only_the_length_known(metadata):
    counts = traced(Problem("p", "q", ("a",), FACT, metadata=metadata), FACT, f"{FACT} {OTHER}", "none").counts
    assert counts.scored(1.0) == MemoryCounts(tokens=Ratio(9, 3))


def test_a_fact_that_the_document_lacks_gives_no_chance_to_write():
    problem = Problem("p", "q", ("Paris",), f"{OTHER} {OTHER}", metadata={"needed": [FACT], "needed_at": [0]})
    assert traced(problem, FACT, FACT).counts == MemoryCounts(
        kept=Ratio(1, 1), answered=Ratio(0, 1), junk=Ratio(0, 6), tokens=Ratio(6, 2)
    )


def test_another_tokenizer_counts_its_own_tokens():
    tokenizer = byte_tokenizer()
    document = encode_document(tokenizer, f"{OTHER} {FACT}")
    problem = Problem("p", "q", ("a",), metadata={"needed": [FACT], "needed_at": [len(OTHER) + 1]})
    (fact,) = needed_facts(problem, document, tokenizer)
    assert (fact.start, fact.length) == (12, 11) and fact.chunk(12) == 1 and fact.chunk(13) is None
