"""A question about files: their reading, with what an earlier one has kept; and the arguments that ask it."""

import contextlib
import re
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from jobs.support.asked_model import AskedModel
from pipeline.asking.documents import SourceFile, files_hash, read_files, text_bytes
from pipeline.asking.kept import KeptReading, NothingKept, default_folder
from pipeline.asking.parsing import ParseLimits
from pipeline.asking.session import Answered, Event, Reading
from pipeline.errors import ConfigError, UnreadableDocument

FLAGS = {  # the key that each spells
    "--method": "ask.method=",
    "--endpoint": "ask.endpoint=",
    "--endpoint-model": "ask.endpoint_model=",
    "--tokenizer": "ask.tokenizer=",
    "--no-keep": "ask.keep=false",
}
SETTING = re.compile(r"(?:preset|interpolation|model|(?:model|agent|ask)(?:\.\w+)+)=.*", re.DOTALL)
MEASURED_S = 0.5  # wait before the first section for the size of the text, which may take longer to know


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """The settings (`key=value`), the other words, and whether the answer is wanted as JSON.

    Raises:
        ConfigError: an option is unknown, or its value is missing or too much.
    """
    settings: list[str] = []
    words: list[str] = []
    as_json = False
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if argument == "--":
            words += left
            break
        if argument == "--json":
            as_json = True
        elif flag in FLAGS and FLAGS[flag].endswith("="):
            if not equals and not left:
                raise ConfigError(f"{flag} needs a value")
            settings.append(FLAGS[flag] + (value if equals else left.pop(0)))
        elif argument in FLAGS:
            settings.append(FLAGS[argument])
        elif argument.startswith("--"):
            raise ConfigError(f"unknown option {argument}; there are {', '.join([*FLAGS, '--json'])}")
        elif SETTING.fullmatch(argument):
            settings.append(f"model.path={value}" if flag == "model" else argument)
        else:
            words.append(argument)
    return settings, words, as_json


async def events_of(
    model: AskedModel, question: str, files: list[SourceFile], begun: Callable[[Reading], object] = lambda reading: None
) -> AsyncGenerator[Event, None]:
    """The events of a reading; if its answer is kept, that alone. Closing the generator ends the reading.

    Args:
        model: what answers.
        question: the question.
        files: the files to read.
        begun: called with the reading before its first event.

    Raises:
        DataError, BadRow, RunFailed, OSError: it cannot be answered; the message says why.
    """
    a, kept = model.config.ask, NothingKept()
    if a.keep:
        folder = Path(a.folder).expanduser() if a.folder else default_folder()
        kept = KeptReading(folder, model.reading_key(question, files_hash(files)))
    with contextlib.closing(kept):
        if (answered := kept_answer(kept, files)) is not None:
            yield answered
            return
        limits = ParseLimits(
            file_bytes=a.file_mib << 20, characters=model.config.agent.document_characters, seconds=a.parse_s
        )
        pieces = read_files(files, limits)
        reading = Reading(question, pieces, model.agent, model.client.generate, model.sampling, kept)
        measuring = threading.Thread(target=_measure, args=(reading, files, limits), daemon=True)
        measuring.start()
        measuring.join(MEASURED_S)
        begun(reading)
        async with contextlib.aclosing(reading.events()) as events:
            async for event in events:
                yield event


def kept_answer(kept: NothingKept, files: list[SourceFile]) -> Answered | None:
    """The answer of an earlier reading, if its places have the names of the files as they are named now."""
    if kept.answered is None:
        return None
    try:
        answered = Answered.from_json(kept.answered)
    except (TypeError, KeyError):  # of an earlier version
        return None
    names = {file.name for file in files}
    return answered if all(source.place.file in names for source in answered.sources) else None


def _measure(reading: Reading, files: list[SourceFile], limits: ParseLimits) -> None:
    """Find out the size of the text, which takes a while for parsed files. The reading says what is wrong with them."""
    with contextlib.suppress(UnreadableDocument, OSError):
        reading.document_bytes = text_bytes(files, limits)
