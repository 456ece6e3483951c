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
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.support.asked_files import events_of, split_arguments
from jobs.support.asked_model import AskedModel, open_model
from jobs.support.driver import asks_for_help, show_help
from jobs.support.reading_view import ReadingView, answer_text, for_terminal
from pipeline.asking.config import AskConfig, load_ask_config
from pipeline.asking.documents import SourceFile, find_files
from pipeline.asking.session import Answered, Reading, SectionRead
from pipeline.errors import BadRow, ConfigError, DataError, RunFailed, reason_of

STDIN = "-"
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
    with contextlib.ExitStack() as stopping:
        begun = False

        def begin(reading: Reading) -> None:
            nonlocal begun
            begun = True
            stopping.enter_context(_stopping(reading, view))

        async with contextlib.aclosing(events_of(model, question, files, begin)) as events:
            async for event in events:
                if isinstance(event, SectionRead):
                    view.read(event)
                    continue
                if not begun:
                    view.say("answered before; --no-keep reads again")
                return event
    raise AssertionError("a reading ends with its answer")


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
