"""What Open WebUI writes into the messages of a chat: the text of attached files, and tasks of its own about the chat.

Read from the source of Open WebUI 0.12.4. Its administrator may change the texts around the tags, so only the tags and
the heading of its own templates are relied on.
"""

import re
from dataclasses import dataclass, replace

from pipeline.serving.messages import Message

CONTEXT = ('<context>\n<source id="', "</source>\n</context>")
NEXT_SOURCE = '</source>\n<source id="'
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

    The guidelines of Open WebUI's own template around the text of files, which say how to cite, are dropped.
    """
    found, texts = [], []
    for message in messages:
        text = message.text
        if message.role != "assistant":
            if context := _between(text, *CONTEXT):
                before, sources, after = context
                texts += [source.partition(">")[2] for source in sources.split(NEXT_SOURCE)]
                before = before[: before.rfind(TEMPLATE)] if TEMPLATE in before else before
                text = "\n\n".join(part for part in (before.strip(), _unlisted(after).strip()) if part)
            elif message.role == "user":
                text = _unlisted(text)
        found.append(replace(message, text=text))
    if texts:
        return Unwrapped(found, _read("\n\n".join(texts)), False)
    said = [message for message in found if message.role != "instructions"]
    if len(said) == 1 and said[0].text.startswith(TEMPLATE) and (history := _between(said[0].text, *HISTORY)):
        said[0].text = f"{history[0]}{history[2]}".strip()
        return Unwrapped(found, _read(history[1]), True)
    return Unwrapped(found, None, False)


def _between(text: str, opening: str, closing: str) -> tuple[str, str, str] | None:
    """What is before, between and after two tags. The last closing one counts: a document may contain others."""
    begin, end = text.find(opening), text.rfind(closing)
    if begin < 0 or end < begin + len(opening):
        return None
    return text[:begin], text[begin + len(opening) : end], text[end + len(closing) :]


def _read(text: str) -> str | None:
    return text if text.strip() else None


def _unlisted(text: str) -> str:
    """The text without the list of attached files before it, which says no more than their names."""
    listed = ATTACHED.match(text)
    return text[listed.end() :].lstrip() if listed else text
