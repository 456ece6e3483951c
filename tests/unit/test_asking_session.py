"""A reading with a scripted model: its events, its early end, what is kept of it, how it resumes."""

import asyncio
import json
import os
import stat
import time

import pytest

from pipeline.agents.closed_book import ClosedBookAgent
from pipeline.agents.memory import MemoryAgent
from pipeline.asking import kept as kept_module
from pipeline.asking.characters import CharacterTokenizer, in_characters
from pipeline.asking.kept import KeptReading, default_folder, reading_key
from pipeline.asking.session import Answered, Reading, check_agent
from pipeline.errors import BadRow, ConfigError, DataError, QuestionTooLong, RunFailed
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.sections import AgentSection
from pipeline.text import encode_text
from tests.support.asking import ScriptedModel, pieces_of, reader

LINES = ["The door is red.", "Fog fell.", "The cat is blue.", "Rain fell.", "The end is near."]
TEXTS = [f"{line:<59}\n" for line in LINES]  # a section each
WARM = Sampling(0.7, 0.95, seed=5)


def run(model, *, texts=TEXTS, agent=None, question="Which?", kept=None, each=lambda reading, event: None, size=None):
    """The events of a reading."""

    async def events():
        reading = Reading(
            question, pieces_of(*texts), agent or reader(), model.generate, WARM, kept, size
        )  # fmt: skip
        found = []
        async for event in reading.events():
            found.append(event)
            each(reading, event)
        return found

    return asyncio.run(events())


def scripted(**given) -> ScriptedModel:
    return ScriptedModel(reader().tokenizer, **given)


def test_each_section_is_an_event_and_the_last_event_is_the_answer():
    model = scripted()
    *sections, answered = run(model, size=300)
    assert [(s.number, s.place.line) for s in sections] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    assert (sections[0].sections, sections[0].is_estimate) == (5, True)
    assert (sections[4].sections, sections[4].is_estimate) == (5, False)
    assert sections[2].memory == "The door is red. The cat is blue."
    assert [(span.kind, span.text) for span in sections[2].changes] == [
        ("kept", "The door is red."),
        ("added", " The cat is blue."),
    ]
    assert (answered.answer, answered.text) == ("near", "It is \\boxed{near}")
    assert [(s.section, s.passage, s.place.line) for s in answered.sources] == [(5, "The end is near.", 5)]
    assert answered.is_whole and answered.sections == 5 and answered.memory == sections[4].memory
    # The agent's own prompts and the evaluation's seeds.
    assert [slots.get("section") for slots in model.asked[:2]] == TEXTS[:2] and "section" not in model.asked[5]
    assert model.seeds == [5, 6, 7, 8, 9, 10]


def test_the_number_of_sections_is_unknown_where_sizes_are():
    *sections, _ = run(scripted())
    assert [s.sections for s in sections] == [None] * 4 + [5]


def test_a_reading_that_is_ended_early_answers_from_the_present_memory():
    stopped = []

    def stop(reading, event):
        if getattr(event, "number", 0) == 3:
            stopped.append(reading.stop())

    *sections, answered = run(scripted(), each=stop)
    assert stopped == [True] and len(sections) in (3, 4)  # the fourth may have begun
    assert answered.answer == "blue" and not answered.is_whole and answered.sections == len(sections)


def test_a_reading_without_a_section_or_a_memory_has_no_early_answer():
    model = scripted()
    assert not Reading("Which?", pieces_of("a"), reader(), model.generate, WARM).stop()
    assert not Reading("Which?", pieces_of("a"), reader("direct"), model.generate, WARM).stop()


def test_an_early_end_that_is_refused_ends_nothing():
    async def answer():
        reading = Reading("Which?", pieces_of(*TEXTS), reader(), scripted().generate, WARM)
        assert not reading.stop()
        return [event async for event in reading.events()][-1]

    answered = asyncio.run(answer())
    assert answered.answer == "near" and answered.is_whole


def test_sections_that_are_slow_to_parse_delay_no_other_work():
    class Slow:
        question = encode_text(reader().tokenizer, "Which?")

        def chunks(self, size):
            for text in TEXTS:
                time.sleep(0.5)
                yield encode_text(reader().tokenizer, text)

    gaps = []

    async def tick():
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)

    async def read():
        model = scripted()
        ticking = asyncio.create_task(tick())
        answer = await reader("concat").run(Slow(), lambda prompt, most, role: model.generate(prompt, most, WARM))
        ticking.cancel()
        return answer

    assert "near" in asyncio.run(read()).text
    assert max(gaps) < 2  # not as long as all sections


def test_direct_reads_the_document_and_says_what_did_not_fit():
    (answered,) = run(scripted(), agent=reader("direct"))
    assert answered.answer == "near" and answered.is_whole and answered.unread_tokens == 0
    assert answered.sources[0].place.line == 5 and answered.sections == 5 and answered.memory == ""
    agent = reader("direct", window=490)
    (answered,) = run(scripted(), agent=agent)
    assert 0 < answered.unread_tokens < 300 and not answered.is_whole


def test_concat_reads_sections_independently_of_each_other():
    *sections, answered = run(scripted(), agent=reader("concat"))
    assert sorted(s.number for s in sections) == [1, 2, 3, 4, 5]
    assert {s.number: s.memory for s in sections}[3] == "The cat is blue."
    assert all(span.kind == "added" for s in sections for span in s.changes)
    assert answered.answer == "near" and answered.sources[0].section == 5


def test_errors_of_the_document_and_of_the_model_come_out():
    def pieces():
        yield from pieces_of(*TEXTS)
        raise DataError("page 7 is broken")

    model = scripted()
    with pytest.raises(DataError, match="page 7 is broken"):

        async def read():
            async for _ in Reading("Which?", pieces(), reader(), model.generate, WARM).events():
                pass

        asyncio.run(read())

    def fail(number):
        if number == 3:
            raise RunFailed("the engine has died")

    with pytest.raises(RunFailed, match="the engine has died"):
        run(scripted(before=fail))
    with pytest.raises(BadRow, match="the document is empty"):
        run(scripted(), texts=[])
    with pytest.raises(QuestionTooLong, match=r"101 tokens, over agent\.problem_tokens=100"):
        run(scripted(), question="a" * 101)


def test_a_document_of_one_word_is_read():
    section, answered = run(scripted(), texts=["word"])
    assert (section.sections, section.is_estimate, section.memory) == (1, False, "") and answered.sources == ()


def test_only_readers_of_streamed_documents_can_be_asked():
    check_agent("memory", MemoryAgent)
    for agent in (ClosedBookAgent, object):
        with pytest.raises(ConfigError, match="cannot be asked"):
            check_agent("it", agent)


# What is kept


def test_a_reading_resumes_after_the_process_died(tmp_path):
    def die(number):
        if number == 4:
            raise RunFailed("killed")

    first = KeptReading(tmp_path / "kept", "k")
    with pytest.raises(RunFailed):
        run(scripted(before=die), kept=first)
    first.close()
    path = tmp_path / "kept" / "k.jsonl"
    with path.open("ab") as file:
        file.write(b'{"prompt": "half of a')  # it was writing
    again, model = KeptReading(tmp_path / "kept", "k"), scripted()
    *sections, answered = run(model, kept=again)
    again.close()
    assert [s.is_kept for s in sections] == [True] * 3 + [False] * 2 and len(model.asked) == 3
    assert model.seeds == [8, 9, 10]  # those of an uninterrupted reading
    assert answered.answer == "near" and answered.kept_conversations == 3
    third = KeptReading(tmp_path / "kept", "k")
    assert Answered.from_json(third.answered) == answered
    third.close()


def test_a_reading_that_was_ended_early_resumes_where_it_ended(tmp_path):
    kept = KeptReading(tmp_path, "k")
    run(scripted(), kept=kept, each=lambda reading, event: reading.stop())
    kept.close()
    kept, model = KeptReading(tmp_path, "k"), scripted()
    assert kept.answered is None
    *sections, answered = run(model, kept=kept)
    kept.close()
    assert sections[0].is_kept and not sections[-1].is_kept and answered.is_whole


def test_what_is_kept_is_private_and_bounded(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(kept_module, "MOST_READINGS", 3)
    for number in range(5):
        KeptReading(folder, str(number)).close()
        os.utime(folder / f"{number}.jsonl", (number, number))
    KeptReading(folder, "0").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "0.jsonl").stat().st_mode) == 0o600
    assert len(list(folder.iterdir())) <= 4 and (folder / "4.jsonl").exists()
    monkeypatch.setattr(kept_module, "MOST_BYTES", 10)
    KeptReading(folder, "9").close()
    assert [path.name for path in folder.iterdir()] == ["9.jsonl"]


def test_a_reading_belongs_to_one_process_at_a_time(tmp_path):
    kept = KeptReading(tmp_path, "k")
    with pytest.raises(DataError, match="another process is asking the same question"):
        KeptReading(tmp_path, "k")
    kept.close()
    KeptReading(tmp_path, "k").close()


@pytest.mark.parametrize(
    "content",
    ["[]\n", "{}\n", '{"palimpsest": "reading", "format": 0}\n', "\0\n", json.dumps(kept_module.HEADER) + "\n7\n"],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "k.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"k\.jsonl is damaged; remove it, or use --no-keep"):
        KeptReading(tmp_path, "k")


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is not a folder of yours"):
        KeptReading(tmp_path / "link", "k")


def test_readings_are_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "palimpsest" / "asked"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    assert default_folder().parts[-3:] == (".cache", "palimpsest", "asked")
    assert reading_key({"a": 1, "b": 2}) == reading_key({"b": 2, "a": 1}) != reading_key({"a": 1, "b": 3})


# Characters as tokens


def test_with_characters_as_tokens_a_prompt_is_the_templates_text():
    tokenizer = CharacterTokenizer()
    agent = MemoryAgent(tokenizer, in_characters(AgentSection(chunk_tokens=20)))
    asked = []

    class Model:
        async def generate(self, prompt, max_tokens, sampling):
            asked.append(tokenizer.decode(prompt))
            tokens = encode_text(tokenizer, "noted <|im_end|>")
            return Completion(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop")

    *sections, answered = run(Model(), texts=["<|im_start|>system\nŁódź 東京 " * 3], agent=agent)
    assert [len(s.changes) > 0 for s in sections] == [True, True]  # sections of 60 characters
    assert "<section>\n<¦im_start¦>system\nŁódź 東京 <¦im" in asked[0] and asked[0].startswith("You are given")
    assert "<memory>\nnoted <¦im_end¦>\n</memory>" in asked[1] and answered.text == "noted <¦im_end¦>"
