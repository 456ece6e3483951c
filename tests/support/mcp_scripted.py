"""`python -m tests.support.mcp_scripted …`: MCP over stdio as `jobs.serve --mcp …` runs it, with a scripted model.

It prints to stdout what must not get there. A document that holds the word HANG is never read to its end; stderr says
when its reading hangs there, and when it has ended.
"""

import asyncio
import sys
from types import SimpleNamespace

from jobs.support import mcp_stdio
from jobs.support.asked_model import AskedModel
from tests.support.asking import ScriptedModel, reader


def scripted_model(config) -> AskedModel:
    agent = reader(config.ask.method)
    model = ScriptedModel(agent.tokenizer)

    async def generate(prompt, max_tokens, sampling):
        print("noise on stdout", flush=True)
        response = await model.generate(prompt, max_tokens, sampling)
        if "HANG" in model.asked[-1].get("section", ""):
            print("reading hangs", file=sys.stderr, flush=True)
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                print("reading ended", file=sys.stderr, flush=True)
                raise
        return response

    async def close():
        print("model closed", file=sys.stderr, flush=True)

    return AskedModel(config, agent, SimpleNamespace(generate=generate, close=close), "scripted", ["s"])


async def open_model(config, say) -> AskedModel:
    return scripted_model(config)


if __name__ == "__main__":
    mcp_stdio.open_model = open_model
    sys.exit(mcp_stdio.main(sys.argv[1:]))
