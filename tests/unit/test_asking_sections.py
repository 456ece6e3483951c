"""A streamed document: the sections are the chunks of training, and know their places."""

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline import text as text_module
from pipeline.asking.sections import Place, PlacedText, StreamedDocument, sections_of
from pipeline.data.documents.synthetic import synthetic_problem, tiny_tokenizer
from pipeline.errors import BadRow, ConfigError
from pipeline.text import encode_document, encode_stream
from tests.support.asking import pieces_of
from tests.support.byte_tokenizer import byte_tokenizer

PROSE = "The maker of the sword was Théo.\nHe lived in Łódź — 東京都 — until 1891.\r\n\n  <|end|> was his last word.\t"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer with merges, whose tokens depend on what is beside them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator([PROSE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", clean_up_tokenization_spaces=False)


WORDS = word_tokenizer()


def cut_up(text: str, cuts: list[int]) -> list[str]:
    return [text[i:j] for i, j in itertools.pairwise([0, *sorted(cuts), len(text)])]


@settings(max_examples=30)
@given(text=st.text(st.sampled_from(list("ab .\nésw東<|end>")), max_size=300), data=st.data())
def test_a_streamed_document_has_the_tokens_of_training(text, data):
    text = f"{text} {PROSE} {text}"
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_module, "BLOCK", 40)
        patched.setattr(text_module, "CONTEXT", 20)
        for tokenizer in (byte_tokenizer(), WORDS):
            blocks = list(encode_stream(tokenizer, cut_up(text, cuts)))
            assert "".join(block for block, _ in blocks) == text
            streamed = [token for _, tokens in blocks for token in tokens.tolist()]
            assert streamed == encode_document(tokenizer, text).tolist()
            size = data.draw(st.integers(1, 30))
            sections = list(sections_of(pieces_of(*cut_up(text, cuts)), tokenizer, size))
            assert [t for s in sections for t in s.tokens.tolist()] == streamed
            assert {len(s.tokens) for s in sections[:-1]} <= {size} and len(sections[-1].tokens) <= size
            assert "".join(s.text for s in sections) == text
            assert [s.number for s in sections] == list(range(1, len(sections) + 1))


def test_the_embedded_models_documents_are_cut_as_in_training():
    problem, tokenizer = synthetic_problem(1, 1, 8), tiny_tokenizer()
    whole = encode_document(tokenizer, problem.document)
    sections = list(sections_of(pieces_of(problem.document), tokenizer, 18))
    assert [s.tokens.tolist() for s in sections] == [whole[i : i + 18].tolist() for i in range(0, len(whole), 18)]


@settings(max_examples=30)
@given(lines=st.lists(st.text(st.sampled_from("ab é"), max_size=12), min_size=1, max_size=30), data=st.data())
def test_a_character_of_a_section_has_its_line_and_page(lines, data):
    text = "x".join(f"{line}\n" for line in lines) + "end"
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    first = list(pieces_of(*cut_up(text, cuts)))
    other = [PlacedText(piece.text, Place("b.pdf", 3, piece.place.line)) for piece in first]
    sections = list(sections_of([*first, *other], byte_tokenizer(), data.draw(st.integers(1, 40))))
    seen = 0
    for section in sections:
        for i, character in enumerate(section.text):
            begin, file, page = (seen, "a.txt", None) if seen < len(text) else (seen - len(text), "b.pdf", 3)
            assert character == text[begin]
            assert section.place(i) == Place(file, page, 1 + text.count("\n", 0, begin))
            seen += 1
    assert seen == 2 * len(text)


def test_special_tokens_in_a_document_are_text():
    tokenizer = byte_tokenizer()
    (section,) = sections_of(pieces_of("a<|end|>b"), tokenizer, 100)
    assert tokenizer.eos_token_id not in section.tokens and len(section.tokens) == len("a<|end|>b")


def test_a_text_without_blanks_is_streamed_all_the_same(monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK", 50)
    blocks = [block for block, _ in encode_stream(byte_tokenizer(), ["a" * 37] * 20)]
    assert "".join(blocks) == "a" * 740 and max(map(len, blocks)) < 100


def test_a_long_document_takes_little_memory(monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK", 2000)

    def peak(lines: int) -> int:
        document = StreamedDocument(
            [], (PlacedText("some words\n", Place("a", None, n)) for n in range(lines)), byte_tokenizer(), 100, 10**9,
            lambda section: None,
        )  # fmt: skip
        tracemalloc.start()
        read = sum(1 for _ in document.chunks(100))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert read == -(-11 * lines // 100)
        return found

    peak(500)
    assert peak(20_000) < 1.5 * peak(2000)


def test_a_document_that_is_empty_or_too_long_is_refused_each_time_that_it_is_read_on():
    def document(*texts: str, most: int = 1000):
        return StreamedDocument([], pieces_of(*texts), byte_tokenizer(), 10, most, lambda section: None)

    with pytest.raises(BadRow, match="the document is empty"):
        next(document("", "").chunks(10))
    long = document("a" * 100, most=30)
    taken = []
    with pytest.raises(BadRow, match=r"over agent\.document_tokens=30 tokens"):
        taken += long.chunks(10)
    with pytest.raises(BadRow, match=r"over agent\.document_tokens=30 tokens"):
        next(long.chunks(10))
    with pytest.raises(ConfigError, match="chunks of 11 tokens"):
        next(document("a").chunks(11))
    with pytest.raises(ConfigError, match="as a whole"):
        _ = document("a").document


def test_a_stopped_document_ends():
    document = StreamedDocument([], pieces_of("a" * 95), byte_tokenizer(), 10, 1000, lambda section: None)
    chunks = document.chunks(10)
    next(chunks), next(chunks)
    document.stop()
    assert list(chunks) == [] and not document.is_used_up


def test_an_abandoned_document_is_read_no_further():
    document = StreamedDocument([], pieces_of("a" * 95), byte_tokenizer(), 10, 1000, lambda section: None)
    document.abandon()
    document.read_whole()
    document.prepare()
    assert document.sections <= 1 and not document.ended


def test_a_tokenizer_that_cannot_say_where_a_token_is_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="no fast tokenizer"):
        list(sections_of(pieces_of("a"), Slow(), 10))
