"""A sampled episode as a row of episodes/step-<step>.jsonl: the first episode of a group, to be read by people.

The row has the text of all conversations. The numbers of single tokens are bounded: see `MOST_TOKENS`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.problems import Problem
from pipeline.rollout.episodes import EpisodeGroup, GroupRecord
from pipeline.rollout.reading import Reading
from pipeline.run.config import TrainSection

SAMPLED = 0  # the episode of a group that is shown
MOST_TOKENS = 20_000  # response tokens of an episode with numbers of their own; later ones have text only
DIGITS = 4  # behind the point of a log-prob
UNDECODED = "\ufffd"

# Log-probs under the learner's weights of the sampled episode's conversations, float32 [response tokens] each, by group
# (its index in the step) and conversation.
Shown = dict[tuple[int, int], np.ndarray]


def samples_at(train: TrainSection, step: int) -> int:
    """How many groups of a step have their first episode written to the run folder.

    Args:
        train: the section.
        step: the step's number, from 1.
    """
    return train.episodes_shown if step == 1 or step % train.episodes_every == 0 or step == train.steps else 0


def sampled_episode(
    tokenizer, problem: Problem, record: GroupRecord, group: EpisodeGroup, learner: Mapping[int, np.ndarray]
) -> dict:
    """The row of a group's first episode.

    problem_id, problem, task, answers   the problem: its id, question, scorer and gold answers
    conversations    in the order in which they began: role, response (text), advantage, and tokens
    tokens           of a response; None where they are over the bound:
                     characters  of each token's text; 0 where a character needs more tokens
                     logprobs    of the sampler (vLLM)
                     learner     log-probs of the learner when it trained them; None: not computed
                     versions    [weight version, number of tokens it wrote] in order
    answer, cut, reward, penalty
    advantage        mean over the conversations
    document_tokens, sections, memories, facts   what it read and remembered (`Reading`), as texts. A fact is
                     {text, section}. Absent if unknown
    held             the facts that each memory holds, by index

    Args:
        tokenizer: the model's tokenizer.
        problem: the group's problem; the document is not read.
        record: the group's record.
        group: the group.
        learner: log-probs under the learner's weights, by conversation.
    """
    mine = [c for c, episode in enumerate(group.episodes) if episode == SAMPLED]
    room, conversations = MOST_TOKENS, []
    for c in mine:
        tokens, start = group.response(c).tolist(), int(group.response_offsets[c])
        response, numbers = tokenizer.decode(tokens), None
        if len(tokens) <= room:
            room -= len(tokens)
            numbers = {
                "characters": token_characters(tokenizer, tokens, response),
                "logprobs": _rounded(group.logprobs[start : start + len(tokens)]),
                "learner": _rounded(learner[c]) if c in learner else None,
                "versions": _runs(group.versions[start : start + len(tokens)].tolist()),
            }
        conversations.append(
            {
                "role": group.roles[c],
                "response": response,
                "advantage": float(record.advantages[c]),
                "tokens": numbers,
            }
        )
    return {
        "problem_id": record.problem_id,
        "problem": problem.question,
        "task": problem.task,
        "answers": list(problem.answers),
        "conversations": conversations,
        "answer": group.episode_answers[SAMPLED],
        "cut": bool(group.cut_answers[SAMPLED]),
        "reward": float(record.rewards[SAMPLED]),
        "penalty": float(record.penalties[SAMPLED]),
        "advantage": float(record.advantages[mine].mean(dtype=np.float64)) if mine else 0.0,
        **(_readable(tokenizer, group.reading) if group.reading else {}),
    }


def _readable(tokenizer, reading: Reading) -> dict:
    return {
        "document_tokens": reading.document_tokens,
        "sections": [tokenizer.decode(section) for section in reading.sections],
        "memories": [tokenizer.decode(memory, skip_special_tokens=True) for memory in reading.memories],
        "facts": [{"text": text, "section": place} for text, place in zip(reading.facts, reading.places, strict=True)],
        "held": [np.flatnonzero(row).tolist() for row in reading.held],
    }


def token_characters(tokenizer, tokens: Sequence[int], text: str) -> list[int]:
    """How many characters of `text` each token adds. Their sum is the length of `text`.

    A token that ends within a character adds 0; the one that completes it adds the character.

    Args:
        tokenizer: the tokenizer.
        tokens: the tokens of `text`.
        text: what the tokenizer makes of them.
    """
    pieces = tokenizer.batch_decode([[token] for token in tokens]) if tokens else []
    if "".join(pieces) == text:
        return [len(piece) for piece in pieces]
    # Some tokens depend on those before: parts of a character, or blanks between words.
    lengths, first, known, done = [0] * len(tokens), 0, 0, 0
    for i in range(len(tokens)):
        before = tokenizer.decode(tokens[first:known])
        after = tokenizer.decode(tokens[first : i + 1])
        added = after[len(before) :]
        if after.startswith(before) and not after.endswith(UNDECODED) and text.startswith(added, done):
            lengths[i] = len(added)
            done, first, known = done + len(added), known, i + 1
    if lengths:
        lengths[-1] += len(text) - done  # a character that the end of the response cuts off
    return lengths


def _rounded(logprobs: np.ndarray) -> list[float | None]:
    return [round(x, DIGITS) if np.isfinite(x) else None for x in logprobs.astype(np.float64).tolist()]


def _runs(versions: list[int]) -> list[list[int]]:
    """[version, number of tokens] of each run of equal versions."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and runs[-1][0] == version:
            runs[-1][1] += 1
        else:
            runs.append([version, 1])
    return runs
