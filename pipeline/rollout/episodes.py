"""Episodes as an agent produces them, and groups of episodes as flat arrays for the object store."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.rollout.answer import NO_MEMORIES, Memories, answer_of
from pipeline.rollout.memory_counts import MemoryCounts
from pipeline.rollout.prefix_tree import PrefixTree, attended_pairs
from pipeline.rollout.reading import Reading


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. `temperature` 0 takes the likeliest token; `top_p` 1 samples from all tokens."""

    temperature: float
    top_p: float = 1.0
    seed: int | None = None  # for this response only; None: the engine's random state


@dataclass(frozen=True)
class Completion:
    """A language model's response to one prompt.

    `tokens`, `logprobs` and `versions` have equal lengths.

    Attributes:
        tokens: the sampled tokens, including the end-of-sequence token if it was sampled.
        logprobs: log-probs of the sampled tokens, after the temperature.
        versions: the weight version that wrote each token.
        finish_reason: "stop", or "length" if the limit cut the response off.
        cache_version: the weight version when the prompt was submitted. Tokens of newer versions may attend to a KV
            cache of older weights.
        max_tokens: generation limit of the response; 0: none.
        cached_tokens: tokens of the prompt that the engine did not compute, because its prefix cache had them. Counted
            when the engine first computes the prompt; what it computes again after a preemption is not counted.
        preemptions: how often the engine, whose KV cache was full, stopped the request to compute it again later.
    """

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str
    cache_version: int = 0
    max_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True)
class Conversation:
    """One independent context: a prompt and the model's response. `role` is the agent's name for its purpose."""

    role: str
    prompt: list[int]
    response: Completion


@dataclass
class Episode:
    """One run of an agent on a problem: its conversations, and the fields of its `Answer`."""

    conversations: list[Conversation] = field(default_factory=list)
    answer: str = ""  # the text that is scored
    cut: bool = False  # a length limit cut the answer off
    memories: Memories = field(default=NO_MEMORIES, compare=False)


async def run_agent(agent, tokenized, llm) -> object:
    """What an agent's `run` returns. `llm` gets copies of its prompts: an agent may change its lists.

    Raises:
        Exception: the first error of `llm`, also where the agent caught it, since the episode lacks a response; else
            what the agent raised.
    """
    failures: list[Exception] = []

    async def checked(prompt: list[int], max_tokens: int, role: str) -> Completion:
        try:
            return await llm(list(prompt), max_tokens, role)
        except Exception as error:  # not a CancelledError: an agent may cancel a conversation
            failures.append(error)
            raise

    try:
        returned = await agent.run(tokenized, checked)
    except Exception:
        if not failures:
            raise
    if failures:
        raise failures[0]
    return returned


async def run_episode(agent, tokenized, generate) -> Episode:
    """Run an agent (pipeline/agents) once on a tokenized problem.

    Args:
        agent: the agent (`pipeline.agents.Agent`).
        tokenized: the result of its `tokenize`.
        generate: async (prompt tokens, max_tokens) -> Completion.

    Returns:
        The episode, with its conversations in the order in which they began, without those that the agent cancelled.
    """
    conversations: list[Conversation | None] = []

    async def llm(prompt: list[int], max_tokens: int, role: str) -> Completion:
        place = len(conversations)
        conversations.append(None)
        response = await generate(prompt, max_tokens)
        conversations[place] = Conversation(role, prompt, replace(response, tokens=list(response.tokens)))
        return response

    returned = await run_agent(agent, tokenized, llm)
    finished = [conversation for conversation in conversations if conversation is not None]
    answer = answer_of(returned, bool(finished) and finished[-1].response.finish_reason == "length")
    return Episode(finished, answer.text, bool(answer.cut), answer.memories)


@dataclass(frozen=True)
class RolloutNotes:
    """How a generator produced a group."""

    seconds: float
    resumed_episodes: int = 0  # episodes resumed here, each with a conversation that the last generator may have begun
    preemptions: int = 0  # of the conversations that were generated here


def response_seed(*numbers: int) -> int:
    """Derive the seed of one response from the numbers that identify it."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass(frozen=True)
class EpisodeGroup:
    """The G episodes of one problem as flat arrays, read from the object store without copying.

    C is the number of conversations, T of tokens (prompts and responses) and R of response tokens.

    tokens          int32 [T]    prompt, then response, of one conversation after another
    offsets         int64 [C+1]  start of each conversation in `tokens`
    prompt_lengths  int32 [C]    tokens of each prompt
    episodes        int32 [C]    episode (0 … G-1) of each conversation
    logprobs        float32 [R]  behaviour log-probs of the response tokens
    versions        int32 [R]    weight version that wrote each response token
    cache_versions  int32 [C]    weight version when each conversation's prompt was submitted
    limits          int32 [C]    generation limit of each response, in tokens; 0: none
    cached_tokens   int32 [C]    tokens of each prompt that the engine had in its prefix cache
    cut_answers     bool [G]     whether a length limit cut off each episode's answer
    """

    problem_id: str
    tokens: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    episodes: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    cache_versions: np.ndarray
    limits: np.ndarray
    cached_tokens: np.ndarray
    roles: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    episode_answers: tuple[str, ...]  # each episode's answer
    cut_answers: np.ndarray
    memory: tuple[MemoryCounts, ...] | None = None  # counts of each episode, before scoring; None: not counted
    reading: Reading | None = None  # of the first episode, which may be shown; None: not known

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64 [C]."""
        return np.diff(self.offsets)

    @property
    def response_offsets(self) -> np.ndarray:
        """Start of each conversation's response in `logprobs` and `versions`, int64 [C+1]."""
        return np.concatenate([[0], np.cumsum(self.lengths - self.prompt_lengths)])

    @property
    def turns(self) -> np.ndarray:
        """Each conversation's place in its episode, from 0, in the order in which they began, int64 [C]."""
        begun = np.zeros(len(self.episode_answers), np.int64)
        turns = np.zeros(len(self.episodes), np.int64)
        for c, episode in enumerate(self.episodes):
            turns[c] = begun[episode]
            begun[episode] += 1
        return turns

    def inputs(self, conversation: int) -> np.ndarray:
        """The tokens that predict something: prompt and response without the last token."""
        return self.tokens[self.offsets[conversation] : self.offsets[conversation + 1] - 1]

    def prompt(self, conversation: int) -> np.ndarray:
        start = self.offsets[conversation]
        return self.tokens[start : start + self.prompt_lengths[conversation]]

    def response(self, conversation: int) -> np.ndarray:
        start = self.offsets[conversation] + self.prompt_lengths[conversation]
        return self.tokens[start : self.offsets[conversation + 1]]


def pack_group(
    problem_id: str,
    episodes: list[Episode],
    memory: tuple[MemoryCounts, ...] | None = None,
    reading: Reading | None = None,
) -> EpisodeGroup:
    """Pack the episodes of one problem into flat arrays.

    Args:
        problem_id: the problem's id.
        episodes: the G episodes.
        memory: the memory counts of each episode; None: not counted.
        reading: what the first episode read and remembered; None: not known.

    Raises:
        ValueError: there is no conversation; a prompt is empty, so that nothing predicts the response; or a log-prob is
            not finite.
    """
    conversations = [(i, c) for i, episode in enumerate(episodes) for c in episode.conversations]
    if not conversations:
        raise ValueError("the agent asked the model nothing: no episode of the group has a conversation")
    for _, c in conversations:
        if not c.prompt:
            raise ValueError(f"the prompt of a {c.role} conversation is empty")
        if not np.isfinite(c.response.logprobs).all():
            raise ValueError(f"the engine returned a log-prob that is not finite in a {c.role} conversation")
    tokens = [np.asarray(c.prompt + c.response.tokens, dtype=np.int32) for _, c in conversations]
    return EpisodeGroup(
        problem_id=problem_id,
        tokens=np.concatenate(tokens),
        offsets=np.cumsum([0] + [len(t) for t in tokens], dtype=np.int64),
        prompt_lengths=np.array([len(c.prompt) for _, c in conversations], dtype=np.int32),
        episodes=np.array([i for i, _ in conversations], dtype=np.int32),
        logprobs=np.array([x for _, c in conversations for x in c.response.logprobs], dtype=np.float32),
        versions=np.array([x for _, c in conversations for x in c.response.versions], dtype=np.int32),
        cache_versions=np.array([c.response.cache_version for _, c in conversations], dtype=np.int32),
        limits=np.array([c.response.max_tokens for _, c in conversations], dtype=np.int32),
        cached_tokens=np.array([c.response.cached_tokens for _, c in conversations], dtype=np.int32),
        roles=tuple(c.role for _, c in conversations),
        finish_reasons=tuple(c.response.finish_reason for _, c in conversations),
        episode_answers=tuple(episode.answer for episode in episodes),
        cut_answers=np.array([episode.cut for episode in episodes], dtype=bool),
        memory=memory,
        reading=reading,
    )


@dataclass(frozen=True)
class ScoredGroup:
    """A scored group as numbers, without tokens. G episodes, C conversations."""

    problem_id: str
    lengths: np.ndarray  # tokens of each conversation, int64 [C]
    response_lengths: np.ndarray  # tokens of each conversation's response, int64 [C]
    oldest_version: int
    mixed_version_episodes: int  # episodes whose tokens were written by more than one version
    cut_conversations: int  # responses that the length limit cut off
    prompt_tokens: Counter[int]  # tokens of the prompts, by the weight version when they were submitted
    cached_tokens: Counter[int]  # of these, tokens that the engine had in its prefix cache
    engine_pairs: int  # pairs of a token that the engine computed and one that it attends to
    rewards: np.ndarray  # the scorer's reward of each episode, float32 [G]
    penalties: np.ndarray  # for over-long responses, from -1 to 0, float32 [G]
    advantages: np.ndarray  # advantage of each conversation, float32 [C]
    memory: MemoryCounts  # sum over all episodes; empty if memories were not counted
    roles: tuple[str, ...]  # role of each conversation
    prefixes: PrefixTree  # of the tokens that predict something (`EpisodeGroup.inputs`)
    tokens_by_version: dict[int, int]  # number of response tokens by the weight version that wrote them
    conversation_rewards: np.ndarray | None = None  # float32 [C]; None if the task's scorer gives none
    cut_answers: int = 0  # episodes whose answer the length limit cut off; their reward is 0
    conversations_differ: bool = False  # whether rewards of conversations of the same turn and role differ

    @property
    def response_tokens(self) -> int:
        return int(self.response_lengths.sum())

    @property
    def is_informative(self) -> bool:
        """Whether the group compares anything, as dynamic sampling requires: its rewards differ, or the rewards of
        comparable conversations do and there are advantages."""
        return bool(np.ptp(self.rewards) > 0) or (self.conversations_differ and bool(self.advantages.any()))


@dataclass(frozen=True, kw_only=True)
class GroupRecord(ScoredGroup):
    """A scored group as the ledger, the coordinator and the metrics see it: its scores and how it was generated."""

    group_id: str
    generator: str
    generation_seconds: float
    moves: int = 0  # moves to another generator, after one died or left
    preemptions: int = 0  # of its conversations, by the generator that finished it
    redone_conversations: int = 0  # conversations lost with a generator and restarted; at most one per episode and move

    @classmethod
    def of(cls, scored: ScoredGroup, **known) -> "GroupRecord":
        """Make the record of a scored group. `known` holds the fields that `ScoredGroup` lacks."""
        return cls(**vars(scored), **known)


def scored_group(
    group: EpisodeGroup,
    rewards: np.ndarray,
    penalties: np.ndarray,
    advantages: np.ndarray,
    conversation_rewards: np.ndarray | None = None,
) -> ScoredGroup:
    """Summarize a group and its scores; the arrays are those of `ScoredGroup`."""
    starts = group.response_offsets
    of_episode: dict[int, set[int]] = {}
    for c, episode in enumerate(group.episodes):
        of_episode.setdefault(int(episode), set()).update(group.versions[starts[c] : starts[c + 1]].tolist())
    return ScoredGroup(
        problem_id=group.problem_id,
        lengths=group.lengths,
        response_lengths=np.diff(starts),
        oldest_version=int(group.versions.min()),
        mixed_version_episodes=sum(len(versions) > 1 for versions in of_episode.values()),
        cut_conversations=sum(reason == "length" for reason in group.finish_reasons),
        prompt_tokens=_by_version(group, group.prompt_lengths),
        cached_tokens=_by_version(group, group.cached_tokens),
        engine_pairs=_engine_pairs(group),
        rewards=rewards,
        penalties=penalties,
        advantages=advantages,
        memory=sum(map(MemoryCounts.scored, group.memory or (), rewards), MemoryCounts()),
        roles=group.roles,
        prefixes=PrefixTree.of([group.inputs(c) for c in range(len(group.episodes))]),
        tokens_by_version=dict(zip(*(x.tolist() for x in np.unique(group.versions, return_counts=True)), strict=True)),
        conversation_rewards=conversation_rewards,
        cut_answers=int(group.cut_answers.sum()),
        conversations_differ=conversation_rewards is not None and _differ_within_turns(group, conversation_rewards),
    )


def _engine_pairs(group: EpisodeGroup) -> int:
    cached = group.cached_tokens.astype(np.int64)
    # The last token of a response goes through no model.
    return int((attended_pairs(group.lengths - 1) - attended_pairs(cached)).sum())


def _by_version(group: EpisodeGroup, tokens: np.ndarray) -> Counter[int]:
    """Sum a number per conversation, [C], by the weight version when its prompt was submitted."""
    sums: Counter[int] = Counter()
    for version, number in zip(group.cache_versions.tolist(), tokens.tolist(), strict=True):
        sums[version] += number
    return sums


def _differ_within_turns(group: EpisodeGroup, rewards: np.ndarray) -> bool:
    """Whether conversations of the same turn and role have different rewards [C]."""
    first: dict[tuple[int, str], float] = {}
    compared = zip(group.turns.tolist(), group.roles, rewards.tolist(), strict=True)
    return any(first.setdefault((turn, role), reward) != reward for turn, role, reward in compared)
