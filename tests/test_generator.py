"""What a generator does beside its engine."""

import asyncio
import threading


def test_agents_are_made_in_turn_with_the_encoding_of_documents(tiny_config, monkeypatch):
    """Both switch the tokenizer between plain text and special tokens: at once, one would spoil the other."""
    from actors import generator as module
    from pipeline.problems import Problem

    seen = []

    class Agent:
        def __init__(self, tokenizer, config):
            seen.append((generator._tokenizing.locked(), threading.current_thread() is threading.main_thread()))

        def tokenize(self, problem):
            seen.append((generator._tokenizing.locked(), threading.current_thread() is threading.main_thread()))
            return problem.document

    monkeypatch.setattr(module, "load_agent", lambda method: Agent)
    generator = module.Generator.__ray_metadata__.modified_class("generator-0", tiny_config, 0)
    generator._tokenizer = None

    async def tokenize():
        problems = [Problem(str(i), "q", ("a",), f"document {i}") for i in range(6)]
        return await asyncio.gather(*(generator._tokenize(p, f"method {i % 2}") for i, p in enumerate(problems)))

    done = asyncio.run(tokenize())
    assert [document for _, document in done] == [f"document {i}" for i in range(6)]
    assert len({id(agent) for agent, _ in done}) == 2
    assert set(seen) == {(True, False)} and len(seen) == 6 + 2
