"""A server with the page and a scripted model, in a thread, for a browser."""

import asyncio
import shutil
import tempfile
import threading
import time
from pathlib import Path

import uvicorn

from actors.serving.app import make_app
from pipeline.rollout.episodes import Completion
from pipeline.text import encode_text
from tests.support.asking import FACT, ScriptedModel, reader
from tests.support.serving import served_by

LINES = [
    f"{line:<59}\n" for line in ("The door is red.", "Fog fell.", "The cat is blue.", "Rain fell.", "The end is near.")
]


def add(page, text: str, name: str = "letters.txt") -> None:
    """Send a text as a file, which is then chosen."""
    page.wait_for_selector("#documents:not([hidden])")
    page.set_input_files("#choose", {"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    page.locator("#files li").filter(has_text=name).wait_for()


def ask(page, question: str = "Which?") -> None:
    page.fill("#question", question)
    page.click("#send")


def answer(page):
    """The place of the last answer."""
    return page.locator(".turn").last.locator(".answered .answer")


class PacedModel(ScriptedModel):
    """A scripted model that can be held, can forget all but the newest fact, and can say a given text only."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.forget, self.says, self.free = False, None, 1_000_000

    async def generate(self, prompt, max_tokens, sampling) -> Completion:
        while self.free <= 0:
            await asyncio.sleep(0.01)
        self.free -= 1
        response = await super().generate(prompt, max_tokens, sampling)
        if not (self.forget or self.says):
            return response
        text = self.tokenizer.decode(response.tokens[:-1])
        if self.says is not None:
            text = self.says
        elif "section" in self.asked[-1] and FACT.search(text):
            text = FACT.findall(text)[-1]
        tokens = encode_text(self.tokenizer, text)
        return Completion([*tokens, self.tokenizer.eos_token_id], [-0.5] * (len(tokens) + 1), [0] * (len(tokens) + 1),
                          "stop", max_tokens=max_tokens)  # fmt: skip


class PageServer:
    """Context manager: the server at `address`."""

    def __init__(self):
        self.model = PacedModel(reader().tokenizer)
        self.drop_streams = 0  # connections of streams to be lost after some events
        self._folder = Path(tempfile.mkdtemp())
        served, self.key = served_by(self.model, self._folder, lengths={"problem_tokens": 400}, readings=1)
        app = make_app(served)
        self._server = uvicorn.Server(uvicorn.Config(self._dropping(app), port=0, log_level="critical"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "PageServer":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        self.address = f"http://{host}:{port}/"
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        shutil.rmtree(self._folder)

    def hold_after(self, conversations: int) -> None:
        """Let the model answer so many conversations, and no others until `release`."""
        self.model.free = conversations

    def release(self) -> None:
        self.model.free = 1_000_000

    def _dropping(self, app):
        async def dropping(scope, receive, send):
            events = 0

            async def counted(message):
                nonlocal events
                if self.drop_streams and message["type"] == "http.response.body":
                    events += message.get("body", b"").count(b"\ndata:")
                    if events > 8:
                        self.drop_streams -= 1
                        await asyncio.sleep(1)  # a browser drops what it has not read when the connection is lost
                        raise ConnectionResetError("the test loses this connection")
                await send(message)

            streams = scope["type"] == "http" and scope["path"].startswith("/v1/responses")
            await app(scope, receive, counted if streams else send)

        return dropping
