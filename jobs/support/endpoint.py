"""A server with OpenAI's interface in place of a local engine.

With a tokenizer, prompts are sent as tokens to /completions, as vLLM, SGLang and llama.cpp take them: these are the
prompts of training. Without one, they are sent as text: those of a chat template as a user's message to
/chat/completions, others to /completions.
"""

import asyncio
import json
import math
import os
from typing import Any

import aiohttp

from pipeline.asking.characters import CHARACTERS_PER_TOKEN
from pipeline.asking.config import AskSection
from pipeline.errors import ConfigError, RunFailed
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.text import encode_text

KEY = "OPENAI_API_KEY"
ATTEMPTS = 5
WAIT_S = 2.0  # before the second attempt; twice as long before each later one, unless the server says how long
LONGEST_WAIT_S = 60.0
MOST_BYTES = 1 << 24  # of a server's response
SHOWN = 300  # characters of a server's message


class EndpointError(RunFailed):
    """The server gave no response. The message says why and what to do."""


class Endpoint:
    """A client of one server, for one model.

    Args:
        config: where the server is, its model, the limits.
        tokenizer: decodes prompts and encodes responses.
        chat: whether the prompts are a chat's messages.
        wait_s: seconds before the second attempt.
    """

    def __init__(self, config: AskSection, tokenizer, chat: bool, wait_s: float = WAIT_S):
        self._url, self._model = config.endpoint.rstrip("/"), config.endpoint_model
        self._limit_s, self._wait_s = config.timeout_s, wait_s
        self._as_tokens = bool(config.tokenizer)
        self._as_chat = chat and not self._as_tokens
        self._tokenizer = tokenizer
        self._session: aiohttp.ClientSession | None = None

    async def model(self) -> str:
        """The name of the model: the one that is configured, else the only one that the server has.

        Raises:
            ConfigError: the server has several or none.
            EndpointError: the server does not say.
        """
        if not self._model:
            listed = (await self._ask("GET", "models", None)).get("data")
            names = [row.get("id") for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
            if len(names) != 1 or not isinstance(names[0], str):
                shown = f"it has {', '.join(map(str, names[:20]))}" if names else "it lists none"
                raise ConfigError(f"choose a model of {self._url} with --endpoint-model: {shown}")
            self._model = names[0]
        return self._model

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        """Sample one response. Its log-probs are not known (NaN).

        Raises:
            EndpointError: the server gave none.
        """
        body: dict[str, Any] = {
            "model": await self.model(),
            "max_tokens": max_tokens if self._as_tokens else math.ceil(max_tokens / CHARACTERS_PER_TOKEN),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self._as_chat:
            body["messages"] = [{"role": "user", "content": self._tokenizer.decode(prompt)}]
        else:
            body["prompt"] = prompt if self._as_tokens else self._tokenizer.decode(prompt)
        said = await self._ask("POST", "chat/completions" if self._as_chat else "completions", body)
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"] if self._as_chat else choice["text"]
            reason = choice["finish_reason"]
            if not isinstance(text, str) or reason not in ("stop", "length"):
                raise ValueError(f"finish_reason {reason!r}")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointError(f"{self._url} gave no text: {_shown(str(error) or repr(said))}") from None
        tokens = encode_text(self._tokenizer, text)
        # A local engine's "stop" comes with an end token, which a server keeps to itself.
        return Completion(tokens, [math.nan] * len(tokens), [0] * len(tokens), reason, max_tokens=max_tokens)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, path: str, body: dict | None) -> dict:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once(method, path, body)
            except _Busy as busy:
                if attempt == ATTEMPTS:
                    raise EndpointError(f"{busy} ({ATTEMPTS} attempts); the same command resumes later") from None
                wait = self._wait_s * 2 ** (attempt - 1) if busy.wait_s is None else busy.wait_s
                await asyncio.sleep(min(wait, LONGEST_WAIT_S))
        raise AssertionError("every attempt returns or raises")

    async def _once(self, method: str, path: str, body: dict | None) -> dict:
        url = f"{self._url}/{path}"
        if self._session is None:
            key = os.environ.get(KEY, "")
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=aiohttp.ClientTimeout(total=self._limit_s),
            )
        try:
            # A redirection would send the key to another server.
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                content = await response.content.read(MOST_BYTES + 1)
                while len(content) <= MOST_BYTES and (more := await response.content.read(MOST_BYTES)):
                    content += more
                _check_status(url, response, content)
        except TimeoutError:
            raise EndpointError(f"{url}: no response within ask.timeout_s={self._limit_s:g}") from None
        except aiohttp.ClientConnectorError as error:
            raise EndpointError(f"{url}: no connection ({error.strerror or error}); is the server running?") from None
        except aiohttp.InvalidURL:
            raise ConfigError(f"ask.endpoint={self._url} is no URL") from None
        except aiohttp.ClientError as error:
            raise _Busy(f"{url}: the connection broke ({type(error).__name__})") from None
        try:
            if len(content) > MOST_BYTES:
                raise ValueError
            said = json.loads(content)
            if not isinstance(said, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise EndpointError(f"{url}: the response is not OpenAI's JSON; does the URL end in /v1?") from None
        return said


class _Busy(Exception):
    """The server may respond later."""

    wait_s: float | None = None  # seconds, if the server said so


def _check_status(url: str, response: aiohttp.ClientResponse, content: bytes) -> None:
    status = response.status
    if status == 200:
        return
    said = f"{url}: HTTP {status} {_shown(_message(content))}".rstrip()
    if status in (408, 429) or status >= 500:
        busy = _Busy(said)
        try:
            wait = float(response.headers.get("Retry-After", ""))
            busy.wait_s = wait if 0 <= wait < math.inf else None
        except ValueError:  # none, or a date
            pass
        raise busy
    if status in (401, 403):
        given = "was refused" if os.environ.get(KEY) else "is not set"
        raise EndpointError(f"{said}; the environment variable {KEY} {given}")
    if 300 <= status < 400:
        raise EndpointError(f"{said}; the server is elsewhere: {_shown(response.headers.get('Location', ''))}")
    if status == 404:
        raise EndpointError(f"{said}; check that --endpoint ends in /v1, and --endpoint-model")
    if status == 400:
        raise EndpointError(f"{said}; if the prompt is too long, lower agent.chunk_tokens")
    raise EndpointError(said)


def _message(content: bytes) -> str:
    """The message in a server's error, or what it said instead."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return content[: 2 * SHOWN].decode(errors="replace")


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
