"""What Open WebUI writes into the messages of a chat: the text of attached files, and tasks of its own about the chat.

Read from the source of Open WebUI 0.12.4. Its administrator may change the texts around the tags, so only the tags and
the heading of its own templates are relied on. Without the heading, a message is left as it is.
"""

import re
from dataclasses import dataclass, replace

from pipeline.serving.errors import RequestError
from pipeline.serving.messages import Message

CONTEXT = ("<context>\n", "</source>\n</context>")
SOURCE = re.compile(r'(?:\A|</source>\n)<source id="\d+"(?: \w+="[^"\n]*")*>')
HISTORY = ("<chat_history>\n", "\n</chat_history>")
ATTACHED = re.compile(r"\s*<attached_files>\n(?:<file [^\n]*/>\n)+</attached_files>")
TEMPLATE = "### Task:\n"  # the first line of its own templates


@dataclass(frozen=True)
class Unwrapped:
    """Messages without what Open WebUI has put around them.

    Attributes:
        messages: what the user and the system prompt say.
        text: the text of attached files, or the chat that a task is about; None: neither is there.
        is_task: whether the question is a task of Open WebUI itself, such as a title for the chat.
    """

    messages: list[Message]
    text: str | None
    is_task: bool


def unwrapped(messages: list[Message]) -> Unwrapped:
    """Take the text of attached files, or of the chat that a task is about, out of messages.

    The template around the text of files, which says how to cite, is dropped.

    Raises:
        RequestError: attached files have no text.
    """
    said = [message for message in messages if message.role != "instructions"]
    if len(said) == 1 and (task := _task(said[0].text)):
        question, history = task
        return Unwrapped([replace(m, text=question) if m is said[0] else m for m in messages], history, True)
    found, texts = [], []
    for message in messages:
        text = message.text
        if message.role != "assistant" and (wrapped := _wrapped(text)):
            before, sources, after = wrapped
            texts += sources
            text = "\n\n".join(part for part in (before.strip(), _unlisted(after).strip()) if part)
        elif message.role == "user":
            text = _unlisted(text)
        found.append(replace(message, text=text))
    if texts and not any(text.strip() for text in texts):
        raise RequestError(400, "the attached files have no text", code="empty_document")
    return Unwrapped(found, "\n\n".join(texts) or None, False)


def _task(text: str) -> tuple[str, str] | None:
    """The question of a task, and the chat that it is about."""
    history = _between(text, *HISTORY) if text.startswith(TEMPLATE) else None
    if history is None or CONTEXT[0] in history[0] or not history[1].strip():
        return None
    return f"{history[0]}{history[2]}".strip(), history[1]


def _wrapped(text: str) -> tuple[str, list[str], str] | None:
    """What is before the template, the text of each file, and what is after it."""
    context = _between(text, *CONTEXT)
    if context is None or TEMPLATE not in context[0] or not SOURCE.match(context[1]):
        return None
    before, sources, after = context
    return before[: before.rfind(TEMPLATE)], SOURCE.split(sources)[1:], after


def _between(text: str, opening: str, closing: str) -> tuple[str, str, str] | None:
    """What is before, between and after two tags. The last closing one counts: a document may contain others."""
    begin, end = text.find(opening), text.rfind(closing)
    if begin < 0 or end < begin + len(opening):
        return None
    return text[:begin], text[begin + len(opening) : end], text[end + len(closing) :]


def _unlisted(text: str) -> str:
    """The text without the list of attached files before it, which says no more than their names."""
    listed = ATTACHED.match(text)
    return text[listed.end() :].lstrip() if listed else text
