"""What a request asks: the question and the documents in the messages of OpenAI's interfaces."""

import base64
import binascii
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.serving.errors import RequestError

PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
TEXT_PARTS = ("input_text", "output_text", "text")
DATA_URL = re.compile(r"data:[^,]{0,200};base64,")
NO_DOCUMENT = (
    "there is no document to read: attach a file (input_file), send a message that is longer than a question may be, "
    "or put the text into an earlier message"
)


@dataclass(frozen=True)
class AttachedFile:
    """A file of a message: exactly one of the three is given."""

    id: str | None = None
    url: str | None = None
    data: bytes | None = None
    name: str = ""


@dataclass
class Message:
    role: str  # user, assistant, or instructions
    text: str = ""
    files: list[AttachedFile] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A question and its documents; `text` is a document that came in the messages."""

    question: str
    files: tuple[AttachedFile, ...]
    text: str | None


def messages_of(given: Any, param: str) -> list[Message]:
    """The messages of a request.

    Args:
        given: a text, or a list of OpenAI's messages and items.
        param: the field that they came in, for errors.

    Raises:
        RequestError: they are of another form.
    """
    if isinstance(given, str):
        return [Message("user", given)]
    if not isinstance(given, list) or not given:
        raise RequestError(400, f"{param} must be a text or a list of messages", param=param)
    found = []
    for number, item in enumerate(given):
        place = f"{param}[{number}]"
        if not isinstance(item, dict):
            raise RequestError(400, f"{place} must be a message", param=place)
        if item.get("type") == "reasoning":  # what a client sends back of an earlier response
            continue
        if item.get("type", "message") != "message" or not isinstance(item.get("role"), str):
            raise RequestError(400, f"{place} is no message with a role", param=place)
        role = item["role"] if item["role"] in ("user", "assistant") else "instructions"
        if item["role"] not in ("user", "assistant", "system", "developer"):
            raise RequestError(400, f"{place}.role must be user, assistant, system or developer", param=place)
        found.append(_message(role, item.get("content"), place))
    return found


def _message(role: str, content: Any, place: str) -> Message:
    if content is None or isinstance(content, str):
        return Message(role, content or "")
    if not isinstance(content, list):
        raise RequestError(400, f"{place}.content must be a text or a list of parts", param=place)
    texts, files = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "input_file":
            files.append(_file(part, place))
        elif kind == "file" and isinstance(part.get("file"), dict):  # of chat completions
            files.append(_file(part["file"], place))
        else:
            raise RequestError(
                400, f"{place} has a part of type {str(kind)[:40]!r}; texts and files can be read", param=place
            )
    return Message(role, "\n".join(texts), files)


def _file(part: dict, place: str) -> AttachedFile:
    given = {key: part[key] for key in ("file_id", "file_data", "file_url") if part.get(key)}
    name = part.get("filename") or ""
    if len(given) != 1 or not all(isinstance(value, str) for value in (*given.values(), name)):
        raise RequestError(400, f"{place}: a file needs one of file_id, file_data and file_url", param=place)
    ((key, value),) = given.items()
    if key == "file_id":
        return AttachedFile(id=value)
    if key == "file_url":
        return AttachedFile(url=value, name=name)
    head = DATA_URL.match(value)
    try:
        data = base64.b64decode(value[head.end() if head else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, f"{place}: file_data is no base64", param=place) from None
    return AttachedFile(data=data, name=name)


def asked(messages: list[Message], instructions: str, fits: Callable[[str], bool], has_documents: bool) -> Asked:
    """The question and the documents of messages.

    The question is the text of the last user's message, with the instructions before it. Files of all messages are
    documents. Without any, a last message that does not fit a question is both: its last paragraph, or else its first,
    is the question. Otherwise the earlier messages are the document.

    Args:
        messages: in order.
        instructions: what stands before the question, or empty.
        fits: whether a text fits a question.
        has_documents: whether documents are known from elsewhere, so that none is needed here.

    Raises:
        RequestError: there is no question or no document, or the question is too long.
    """
    of_users = [number for number, message in enumerate(messages) if message.role == "user"]
    if not of_users or not messages[of_users[-1]].text.strip():
        raise RequestError(400, "there is no question: the last user's message has no text", param="input")
    files = tuple(file for message in messages for file in message.files)
    before, last = messages[: of_users[-1]], messages[of_users[-1]]
    head = "\n\n".join(filter(None, [instructions, *(m.text for m in messages if m.role == "instructions")]))
    question, text = last.text.strip(), None
    if not files and not has_documents:
        if not fits(question):
            question, text = _split(question, fits)
        else:
            text = "\n\n".join(m.text for m in before if m.role != "instructions" and m.text.strip())
            if not text:
                raise RequestError(400, NO_DOCUMENT, code="no_document", param="input")
    question = f"{head}\n\n{question}" if head else question
    if not fits(question):
        raise RequestError(
            400, "the question, with the instructions, is longer than agent.problem_tokens", code="question_too_long"
        )
    return Asked(question, files, text)


def _split(message: str, fits: Callable[[str], bool]) -> tuple[str, str]:
    """The question and the document of a message that is both."""
    if first := PARAGRAPHS.search(message):
        last = deque(PARAGRAPHS.finditer(message), maxlen=1).pop()  # a list would take 30 times the message's memory
        if fits(message[last.end() :]):
            return message[last.end() :], message[: last.start()]
        if fits(message[: first.start()]):
            return message[: first.start()], message[first.end() :]
    raise RequestError(
        400,
        "the message is longer than a question may be; if it is a document, put the question in a paragraph of its own "
        "at the end",
        code="question_too_long",
    )
