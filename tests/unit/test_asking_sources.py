"""Memory differences, and where an answer comes from."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.asking.differences import Span, differences
from pipeline.asking.sections import sections_of
from pipeline.asking.sources import LONGEST, Trail, sentences, sources_in_text, words_of
from tests.support.asking import pieces_of
from tests.support.byte_tokenizer import byte_tokenizer

MEMORIES = st.text(st.sampled_from("ab .\n"), max_size=60)


@given(MEMORIES, MEMORIES)
def test_the_spans_make_both_memories(before, after):
    spans = differences(before, after)
    assert "".join(span.text for span in spans if span.kind != "dropped") == after
    assert "".join(span.text for span in spans if span.kind != "added") == before


def test_words_are_kept_added_and_dropped():
    spans = differences("Rex is in Rome.", "Rex is in Oslo. Kim has a dog.")
    kept, dropped, added = Span("kept", "Rex is in"), Span("dropped", " Rome."), Span("added", " Oslo. Kim has a dog.")
    assert spans == (kept, dropped, added)
    assert differences("a b", "a b c") == (Span("kept", "a b"), Span("added", " c"))
    assert differences("", "") == ()


def test_memories_of_many_words_are_replaced_not_compared():
    long = "a " * 5000
    assert [span.kind for span in differences(long, long + "b")] == ["dropped", "added"]


def test_words_have_content():
    assert words_of("It is the Maker's: 1,234.5 at 11:15, in ŁÓDŹ and 東京都") == [
        *("maker", "1,234.5", "11:15", "łódź", "東京", "京都")
    ]
    assert words_of("the of and") == [] and words_of("ﬁne") == ["fine"]


@given(st.text(st.sampled_from("ab. \n"), max_size=1000))
def test_sentences_are_where_they_say(text):
    found = list(sentences(text))
    assert all(text[begin : begin + len(sentence)] == sentence for begin, sentence in found)
    assert all(0 < len(sentence) <= LONGEST for _, sentence in found)
    assert "".join(sentence for _, sentence in found).replace(" ", "").replace("\n", "") == text.replace(
        " ", ""
    ).replace("\n", "")


def read(question: str, *steps: tuple[str, str], independent: bool = False) -> Trail:
    """A trail of sections of one line, each with the memory after it."""
    trail = Trail(question, independent)
    texts = [f"{text:<60}"[:59] + "\n" for text, _ in steps]
    sections = list(sections_of(pieces_of(*texts), byte_tokenizer(), 60))
    for section, (_, memory) in zip(sections, steps, strict=True):
        trail.read(section, memory)
    return trail


def test_an_answer_comes_from_where_it_entered_the_memory_and_the_fact_behind_it_too():
    trail = read(
        "What is the trade of the maker of the purple sword?",
        ("Nothing here.", ""),
        ("Fog fell. The purple sword was made by Theo. It rained.", "The purple sword was made by Theo."),
        ("Theo is a tailor by trade.", "The purple sword was made by Theo. Theo is a tailor by trade."),
        ("A tailor came.", "The purple sword was made by Theo. Theo is a tailor by trade."),
    )
    answer, behind = trail.sources("tailor")
    assert (answer.section, answer.place.line, answer.passage) == (3, 3, "Theo is a tailor by trade.")
    assert answer.is_answer and answer.words[0] == "tailor"
    assert (behind.section, behind.place.line, behind.passage) == (2, 2, "The purple sword was made by Theo.")
    assert not behind.is_answer and behind.words == ("theo",)


def test_a_word_that_left_the_memory_has_entered_when_it_came_back():
    trail = read("Where?", ("Rex is in Oslo.", "Rex Oslo"), ("Fog.", "Rex"), ("Oslo again.", "Rex Oslo"))
    (source, *_) = trail.sources("Oslo")
    assert (source.section, source.passage) == (3, "Oslo again.")
    assert trail.sources("Rome") == ()


def test_a_word_that_the_section_does_not_hold_has_no_passage():
    (source,) = read("Where?", ("Rex sleeps.", "He is in Oslo.")).sources("In Oslo.")
    assert (source.section, source.passage, source.words) == (1, None, ("oslo",))


def test_the_questions_own_words_are_no_evidence():
    trail = read("Is Rex in Oslo?", ("Rex is in Oslo.", "Rex is in Oslo now."))
    assert [source.words[0] for source in trail.sources("now, Rex")] == ["now"]
    assert trail.sources("yes") == ()
    assert trail.sources("Rex")[0].words[0] == "rex"  # an answer of nothing else


def test_independent_sections_are_all_sources():
    trail = read("Where?", ("Oslo 1.", "Oslo"), ("Fog.", ""), ("Oslo 2.", "Oslo"), independent=True)
    assert [(source.section, source.passage) for source in trail.sources("Oslo")] == [(1, "Oslo 1."), (3, "Oslo 2.")]


def test_without_a_memory_the_sentences_with_the_answer_are_found():
    sections = list(sections_of(pieces_of("Oslo is far.\nRex lives in Oslo.\nFog.\n"), byte_tokenizer(), 20))
    first, *_ = found = sources_in_text(sections, "Where does Rex live?", "Oslo")
    assert {source.place.line for source in found} == {1, 2} and first.is_answer
    assert sources_in_text(sections, "Where?", "Rome") == ()
