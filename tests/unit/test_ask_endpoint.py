"""The client of a server with OpenAI's interface, against a small server."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from jobs.support.asked_model import open_model
from jobs.support.endpoint import Endpoint, EndpointError
from pipeline.asking.characters import CharacterTokenizer
from pipeline.asking.config import AskSection, load_ask_config
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Sampling
from tests.support.byte_tokenizer import byte_tokenizer

CHAT = {"choices": [{"message": {"content": "héllo"}, "finish_reason": "stop"}]}
TEXT = {"choices": [{"text": "héllo", "finish_reason": "length"}]}
MODELS = {"data": [{"id": "m"}]}
WARM = Sampling(0.7, 0.95, seed=3)


@asynccontextmanager
async def server(*replies, models=MODELS):
    """A server that gives these replies in turn, the last one for ever; yields its URL and the requests it got."""
    got = []

    async def reply(request):
        body = await request.json() if request.can_read_body else None
        got.append((request.path, body, request.headers.get("Authorization")))
        given = models if request.path.endswith("/models") else replies[min(len(got), len(replies)) - 1]
        if callable(given):
            given = await given(request)
        return given if isinstance(given, web.StreamResponse) else web.json_response(given)

    application = web.Application(client_max_size=1 << 24)
    application.router.add_route("*", "/{path:.*}", reply)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1", got
    finally:
        await runner.cleanup()


def error(status: int, message: str = "no", **headers: str):
    async def reply(request):
        return web.json_response({"error": {"message": message}}, status=status, headers=headers)

    return reply


def ask(*replies, tokenizer=None, chat=True, prompt="Hi", models=MODELS, **given):
    """The response to a prompt and the requests that the server got, or the error."""
    tokenizer = tokenizer or CharacterTokenizer()

    async def run():
        async with server(*replies, models=models) as (url, got):
            config = AskSection(endpoint=url, **{"endpoint_model": "m"} | given)
            client = Endpoint(config, tokenizer, chat, wait_s=0.001)
            try:
                return await client.generate(tokenizer.encode(prompt, add_special_tokens=False), 30, WARM), got
            finally:
                await client.close()

    return asyncio.run(run())


def test_without_a_tokenizer_a_chat_prompt_is_a_users_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    response, ((path, body, key),) = ask(CHAT)
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body == {
        **{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10},
        **{"temperature": 0.7, "top_p": 0.95, "seed": 3},
    }
    assert CharacterTokenizer().decode(response.tokens) == "héllo" and response.finish_reason == "stop"
    assert all(map(math.isnan, response.logprobs)) and len(response.logprobs) == len(response.versions) == 5


def test_a_prompt_that_is_no_chat_is_completed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    response, ((path, body, key),) = ask(TEXT, chat=False)
    assert (path, body["prompt"], key, response.finish_reason) == ("/v1/completions", "Hi", None, "length")


def test_a_busy_server_is_asked_again():
    response, got = ask(error(429, **{"Retry-After": "0"}), error(503), CHAT)
    assert len(got) == 3 and response.tokens
    with pytest.raises(EndpointError, match=r"HTTP 429 slow down \(5 attempts\); the same command resumes"):
        ask(error(429, "slow down"))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "who?"), r"HTTP 401 who\?; the environment variable OPENAI_API_KEY is not set"),
        (error(404), "check that --endpoint ends in /v1"),
        (error(400, "too long"), r"HTTP 400 too long; if the prompt is too long, lower agent\.chunk_tokens"),
        (error(302, Location="http://elsewhere/"), "the server is elsewhere: http://elsewhere/"),
        (error(418, "\x1b[2J" + "x" * 1000), "HTTP 418 .{300}…"),
        ({"choices": []}, "gave no text"),
        ({"choices": [{"message": {"content": "", "refusal": "no"}, "finish_reason": "content_filter"}]}, "filter"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "gave no text"),
        (lambda request: asyncio.sleep(0, web.Response(text="<html>")), "the response is not OpenAI's JSON"),
        (lambda request: asyncio.sleep(0, web.Response(text="[" * 100_000)), "the response is not OpenAI's JSON"),
        (lambda request: asyncio.sleep(0, web.Response(body=b" " * 2**25)), "is not OpenAI's JSON"),
    ],
)
def test_a_server_that_fails_is_an_error_that_says_what_to_do(reply, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match=message):
        ask(reply)


def test_a_server_that_is_slow_or_down_is_an_error():
    with pytest.raises(EndpointError, match=r"no response within ask\.timeout_s=0\.2"):
        ask(lambda request: asyncio.sleep(1, web.json_response(CHAT)), timeout_s=0.2)

    async def nobody():
        client = Endpoint(AskSection(endpoint="http://127.0.0.1:9/v1", endpoint_model="m"), CharacterTokenizer(), True)
        try:
            await client.generate([97], 5, WARM)
        finally:
            await client.close()

    with pytest.raises(EndpointError, match=r"no connection .*; is the server running\?"):
        asyncio.run(nobody())


def test_a_key_that_is_refused_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(EndpointError, match="OPENAI_API_KEY was refused") as refused:
        ask(error(403))
    assert "secret" not in str(refused.value)


def test_the_only_model_of_a_server_is_asked():
    _, got = ask(CHAT, CHAT, endpoint_model="")
    assert [path for path, *_ in got] == ["/v1/models", "/v1/chat/completions"] and got[1][1]["model"] == "m"
    with pytest.raises(ConfigError, match="--endpoint-model: it has a, b"):
        ask(CHAT, endpoint_model="", models={"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(ConfigError, match="it lists none"):
        ask(CHAT, endpoint_model="", models={"data": "?"})


def test_a_server_with_a_tokenizer_gets_the_prompts_of_training(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))

    async def run():
        async with server(TEXT) as (url, got):
            model = await open_model(
                load_ask_config([f"ask.endpoint={url}", f"ask.tokenizer={tmp_path}", "agent.chunk_tokens=1000"]), print
            )
            try:
                prompt = model.agent.prompts.fill("answer", problem=[1], memory=[2])
                await model.client.generate(prompt, 7, WARM)
            finally:
                await model.client.close()
            return prompt, got[-1], model

    prompt, (path, body, _), model = asyncio.run(run())
    assert path == "/v1/completions" and body["prompt"] == prompt and body["max_tokens"] == 7
    assert model.agent.tokenizer.decode(prompt).startswith("<|start|>user\n") and model.name == "m"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask.tokenizer=/no/tokenizer"], "--tokenizer /no/tokenizer: no such folder"),
        (["agent.window=100"], r"agent\.window=300 cannot hold the longest conversation"),
        (["ask.method=closed_book"], "cannot be asked"),
        (["agent.prompt_template=none"], "there is no file"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_server_is(arguments, message):
    config = load_ask_config(["ask.endpoint=http://127.0.0.1:9/v1", *arguments])
    with pytest.raises(ConfigError, match=message):
        asyncio.run(open_model(config, print))
