"""Ask a question about documents: `python -m jobs.ask "question" FILE… [option …] [key=value …]` (`make ask`).

    python -m jobs.ask "Who is hidden behind the mask?" novel.txt
    python -m jobs.ask "What was decided about the budget?" minutes/ letters.pdf --json
    pdftotext report.pdf - | python -m jobs.ask "How many wells were drilled?" model=models/smollm2

Files are text, Markdown, HTML, PDF or DOCX; a folder stands for all such files in it, - or no file for the standard
input. The model reads them section by section and answers from its memory. Ctrl-C answers from the present memory, a
second one ends the job. The same command resumes. docs/asking.md says what is kept.

Options:
  --method memory|direct|concat   how the document is read (ask.method)
  --endpoint URL                  ask a server with OpenAI's interface; its key is read from OPENAI_API_KEY
  --endpoint-model NAME           the server's model
  --tokenizer PATH                the tokenizer of the server's model, to send tokens as in training
  --no-keep                       keep nothing of this reading
  --json                          print the answer as JSON
  --                              what follows is the question and files, even if it looks like an option
model=PATH is short for model.path=PATH.
"""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from jobs.support.asked_model import AskedModel, open_model
from jobs.support.driver import asks_for_help, show_help
from jobs.support.reading_view import ReadingView, answer_text, for_terminal
from pipeline.asking.config import AskConfig, load_ask_config
from pipeline.asking.documents import SourceFile, files_hash, find_files, read_files, text_bytes
from pipeline.asking.kept import KeptReading, NothingKept, default_folder
from pipeline.asking.parsing import ParseLimits
from pipeline.asking.session import Answered, Reading, SectionRead
from pipeline.errors import BadRow, ConfigError, DataError, RunFailed, UnreadableDocument, reason_of

FLAGS = {  # the key that each spells
    "--method": "ask.method=",
    "--endpoint": "ask.endpoint=",
    "--endpoint-model": "ask.endpoint_model=",
    "--tokenizer": "ask.tokenizer=",
    "--no-keep": "ask.keep=false",
}
SETTING = re.compile(r"(?:preset|interpolation|model|(?:model|agent|ask)(?:\.\w+)+)=.*", re.DOTALL)
STDIN = "-"
MEASURED_S = 0.5  # wait before the first section for the size of the text, which may take longer to know
STDIN_NAME = "standard input"


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 answered, 1 failed, 2 wrong arguments or document, 130 interrupted."""
    if asks_for_help(arguments[: arguments.index("--")] if "--" in arguments else arguments):
        return show_help(__doc__, AskConfig)
    as_json = False
    try:
        settings, words, as_json = split_arguments(arguments)
        question, *paths = words or [""]
        if not question.strip():
            raise ConfigError('give a question and files: python -m jobs.ask "question" FILE…')
        config = load_ask_config(settings)
        with documents(paths, config) as (files, left_out):
            return asyncio.run(ask(config, question, files, left_out, as_json))
    except ConfigError as error:
        return _failed(f"configuration error:\n{error}", 2)
    except (DataError, BadRow) as error:
        return _failed(str(error), 2)
    except RunFailed as error:
        return _failed(str(error), 1)
    except OSError as error:
        return _failed(reason_of(error), 1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _failed("· interrupted; the same command resumes", 130)


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


@contextlib.contextmanager
def documents(paths: list[str], config: AskConfig) -> Iterator[tuple[list[SourceFile], list[str]]]:
    """Context manager with the files to read, and why files of folders were left out.

    The standard input is copied to a temporary file, which nobody else can read and which is removed in the end.

    Raises:
        ConfigError: nothing was given.
        UnreadableDocument: a file cannot be read.
    """
    if not paths and sys.stdin.isatty():
        raise ConfigError("give files or folders to read, or the text on the standard input")
    with contextlib.ExitStack() as stack:
        files: list[SourceFile] = []
        left_out: list[str] = []
        for path in paths or [STDIN]:
            if path == STDIN:
                copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="asked-"))
                shutil.copyfileobj(sys.stdin.buffer, copy)
                copy.flush()
                files.append(SourceFile(Path(copy.name), STDIN_NAME))
            else:
                found, others = find_files([Path(path)])
                files += found
                left_out += others
        yield files, left_out


async def ask(config: AskConfig, question: str, files: list[SourceFile], left_out: list[str], as_json: bool) -> int:
    """Read, show, and print the answer; return the exit status.

    Raises:
        ConfigError, DataError, BadRow, RunFailed, OSError: it cannot be answered; the message says why.
        CancelledError: interrupted without an answer.
    """
    with ReadingView() as view:
        for reason in left_out:
            view.say(f"left out: {reason}")
        model = await open_model(config, view.say)
        try:
            answered = await read(model, question, files, view)
        finally:
            await model.client.close()
    if as_json:
        shown = {"question": question, "model": model.name, "method": config.ask.method, **answered.to_json()}
        print(json.dumps(shown, indent=2))
    else:
        print(answer_text(answered), end="")
    return 0


async def read(model: AskedModel, question: str, files: list[SourceFile], view: ReadingView) -> Answered:
    """Read the files for the question, or take the answer of an earlier reading."""
    a = model.config.ask
    kept = NothingKept()
    if a.keep:
        folder = Path(a.folder).expanduser() if a.folder else default_folder()
        kept = KeptReading(folder, model.reading_key(question, files_hash(files)))
    with contextlib.closing(kept):
        if (answered := kept_answer(kept, files)) is not None:
            view.say("answered before; --no-keep reads again")
            return answered
        limits = ParseLimits(
            file_bytes=a.file_mib << 20, characters=model.config.agent.document_characters, seconds=a.parse_s
        )
        pieces = read_files(files, limits)
        reading = Reading(question, pieces, model.agent, model.client.generate, model.sampling, kept)
        measuring = threading.Thread(target=_measure, args=(reading, files, limits), daemon=True)
        measuring.start()
        measuring.join(MEASURED_S)
        with _stopping(reading, view):
            async for event in reading.events():
                if isinstance(event, SectionRead):
                    view.read(event)
                else:
                    return event
    raise AssertionError("a reading ends with its answer")


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


@contextlib.contextmanager
def _stopping(reading: Reading, view: ReadingView) -> Iterator[None]:
    """Context manager in which the first SIGINT or SIGTERM ends the reading early, and the second this task."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped or not reading.stop():
            assert task is not None
            task.cancel()
        else:
            view.say("answering from the present memory; Ctrl-C again ends the job")
        stopped = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _failed(message: str, status: int) -> int:
    print(for_terminal(message), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
