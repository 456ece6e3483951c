"""Groups of episodes that read the same sections with a memory, and groups written out by hand."""

from collections.abc import Sequence

import numpy as np

from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, pack_group

PAPER = ("instruction", "problem", "memory", "section", "request")
SECTION_FIRST = ("instruction", "problem", "section", "memory", "request")
LAYOUTS = (PAPER, SECTION_FIRST)


def group_of(episodes: Sequence[Sequence[tuple[list[int], list[int]]]], name: str = "p", version: int = 0):
    """A group of episodes, each a list of prompts and responses."""

    def conversation(prompt: list[int], response: list[int]) -> Conversation:
        n = len(response)
        logprobs = [-1.0 - (7 * token + i) % 5 / 2 for i, token in enumerate(response)]
        return Conversation("memory", prompt, Completion(response, logprobs, [version] * n, "stop", version))

    return pack_group(name, [Episode([conversation(*each) for each in conversations]) for conversations in episodes])


def reading_group(
    rng: np.random.Generator,
    layout: Sequence[str] = SECTION_FIRST,
    *,
    episodes: int = 4,
    turns: int = 3,
    vocabulary: int = 50,
    section: int = 8,
    part: int = 4,
    missing: int = 0,
    name: str = "p",
    version: int = 0,
) -> EpisodeGroup:
    """A group as a memory agent makes it.

    Args:
        rng: draws the tokens.
        layout: the parts of a prompt in their order.
        episodes: G.
        turns: sections read, each in a conversation; one more has no section and answers.
        vocabulary: tokens to draw from; of a small one, prefixes are shared by chance.
        section: tokens of a section.
        part: tokens of instruction, problem, request, first memory, and at most of a response, which may be empty.
        missing: turns that the first episode has fewer.
        name: the problem's id.
        version: the version that wrote all of it.
    """

    def draw(n: int) -> list[int]:
        return rng.integers(0, vocabulary, n).tolist()

    fixed = {name: draw(part) for name in ("instruction", "problem", "request")}
    first_memory, sections = draw(part), [draw(section) for _ in range(turns)]
    written = []
    for episode in range(episodes):
        memory, conversations = first_memory, []
        for turn in range(turns - missing if episode == 0 else turns):
            parts = {**fixed, "memory": memory, "section": sections[turn]}
            memory = draw(int(rng.integers(0, part + 1)))
            conversations.append(([token for name in layout for token in parts[name]], memory))
        answer = draw(int(rng.integers(1, part + 1)))
        conversations.append((fixed["problem"] + memory + fixed["request"], answer))
        written.append(conversations)
    return group_of(written, name, version)
