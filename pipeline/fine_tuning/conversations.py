"""Read conversations from files as examples for fine-tuning.

A row of a JSON-lines or parquet file has one of three forms. A chat, for models with a chat template; the assistant's
messages are learned:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}

A text and its continuation; the response is learned:

    {"prompt": "…", "response": "…"}

The same in tokens of the model, as an evaluation with evaluate.successes=true writes them:

    {"prompt_tokens": […], "response_tokens": […]}
"""

from collections.abc import Iterator

from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import text_field
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import BadRow
from pipeline.fine_tuning.examples import Example, respond
from pipeline.text import encode_text

CHARACTERS_OF_A_TOKEN = 200  # above any text's average
COLUMNS = ("messages", "prompt", "response", "prompt_tokens", "response_tokens")
ROLES = ("system", "user", "assistant")


def open_conversations(path: str) -> SampleFiles:
    """Open a file or a folder of files with conversations. Raises: as `SampleFiles.open`."""
    return SampleFiles.open(path, columns=COLUMNS)


def conversation_examples(
    source: SampleFiles, tokenizer, max_tokens: int, seed: int, quarantine: Quarantine
) -> Iterator[Example]:
    """Yield the files' conversations forever, in a new random order in each pass; bad rows go to `quarantine`.

    Raises:
        DataError: too many rows are bad, or all of them, or a file can no longer be read.
        OSError: the storage failed.
    """
    quarantine.total = len(source)
    epoch = 0
    while True:
        found = False  # a good row
        for index in source.order(seed, epoch).tolist():
            quarantine.rows += epoch == 0
            try:
                example = conversation_example(source.decoded(index), tokenizer, max_tokens)
            except BadRow as error:
                row_id, row = source.row(index)
                quarantine.add(row_id, str(error), row)
            else:
                found = True
                yield example
        quarantine.finish()
        if not found:
            quarantine.refuse_all()
        epoch += 1


def conversation_example(row: object, tokenizer, max_tokens: int) -> Example:
    """Convert a decoded row to an example.

    Raises:
        BadRow: the row has none of the three forms, is longer than `max_tokens`, or has no token to learn.
    """
    if (characters := _characters(row)) > CHARACTERS_OF_A_TOKEN * max_tokens:  # too long whatever the tokenizer
        raise BadRow(f"the conversation has {characters} characters, too many for fine_tuning.max_tokens={max_tokens}")
    if isinstance(row, dict) and row.get("messages") is not None:
        example = _chat(row["messages"], tokenizer)
    elif isinstance(row, dict) and row.get("prompt_tokens") is not None:
        example = respond(*(_tokens(row, name, len(tokenizer)) for name in ("prompt_tokens", "response_tokens")))
    else:
        prompt, response = text_field(row, "prompt"), text_field(row, "response")
        example = respond(encode_text(tokenizer, prompt), [*encode_text(tokenizer, response), tokenizer.eos_token_id])
    if len(example.tokens) > max_tokens:
        raise BadRow(f"the conversation has {len(example.tokens)} tokens, over fine_tuning.max_tokens={max_tokens}")
    if not any(example.learned[1:]):
        raise BadRow("the conversation has nothing to learn: no assistant message")
    return example


def _characters(row: object) -> int:
    """The number of characters in all texts of a row."""
    if isinstance(row, str):
        return len(row)
    return sum(map(_characters, row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()))


def _tokens(row: dict, name: str, vocabulary: int) -> list[int]:
    tokens = row.get(name)
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
        raise BadRow(f"{name!r} must be a list of one or more token ids")
    if not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise BadRow(f"{name!r} has ids outside the model's vocabulary of {vocabulary} tokens")
    return tokens


def _chat(messages: object, tokenizer) -> Example:
    """A chat in the form of the model's chat template. Only the tokens of the assistant's messages are learned."""
    if not tokenizer.chat_template:
        raise BadRow("the row is a chat, but the model's tokenizer has no chat template; give prompt and response")
    if not isinstance(messages, list) or not messages:
        raise BadRow("'messages' must be a list of one or more messages")
    special = {token for token in tokenizer.all_special_tokens if token.strip()}
    for message in messages:
        content = text_field(message, "content")
        if message.get("role") not in ROLES:
            raise BadRow(f"the role of a message is {message.get('role')!r}; it must be one of {', '.join(ROLES)}")
        if found := sorted(token for token in special if token in content):
            raise BadRow(
                f"a message contains the text of the special token {found[0]}, which would be tokenized as that token"
            )
    # A parquet file has every field in every message, so null means left out; templates ask whether a field is there.
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    if messages[0]["role"] == "assistant":
        raise BadRow("the conversation begins with the assistant: there is no prompt")
    tokens: list[int] = []
    learned: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, messages[:i], add_generation_prompt=True)
        after = _template(tokenizer, messages[: i + 1], add_generation_prompt=False)
        if before[: len(tokens)] != tokens or after[: len(before)] != before:
            raise BadRow(
                "the chat template rewrites earlier text when a message is added, so the chat cannot be learned"
            )
        learned += [False] * (len(before) - len(tokens)) + [True] * (len(after) - len(before))
        tokens = after
    if not tokens:
        raise BadRow("the conversation has nothing to learn: no assistant message")
    return Example(tokens, learned)


def _template(tokenizer, messages: list[dict], add_generation_prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return tokenizer.encode(text, add_special_tokens=False)
