"""The sampled episodes of a run, compact and bounded: from episodes/step-<step>.jsonl.

Everything in the files is data of unknown shape: what is missing or of the wrong type is left out, and said.
"""

import json
import re
from pathlib import Path

from pipeline.view.curves import spread
from pipeline.view.lines import Notes, json_lines, number, rounded, text, texts

EPISODES = "episodes"
MOST_EPISODES = 200
MOST_BYTES = 24 << 20  # of all episodes together; each has an equal share
LEAST_TEXT = 40  # characters of a text, however many there are
FILE = re.compile(r"step-(\d+)\.jsonl")
THOUSANDTHS = 1000  # log-probs are whole thousandths, which are short in JSON
NO_NUMBERS = (
    "has no numbers for single tokens, no sections and no facts: an earlier version of palimpsest wrote it, and its "
    "memories are the responses of its memory conversations"
)

# A conversation: [role, response, advantage, lengths, log-probs, log-prob ratios, versions]. The last four are None if
# unknown. Lengths are in UTF-16 units, JavaScript's; log-probs and ratios in thousandths.
LENGTHS, LAST = 3, 7


def sampled_episodes(folder: Path, notes: Notes) -> list[dict]:
    """The sampled episodes in the order of their steps, at most `MOST_EPISODES`.

    Returns:
        For each: `step`, `reward`, `advantage`, `penalty`, `task`, `id`, `question`, `gold`, `answer`, `cut`,
        `conversations` (see above), `documentTokens`, `sections` (the beginning of each as text), `memories` (texts),
        `facts` ([text, index of its section or None]), `held` (the facts in each memory), `events` (see
        `memory_events`) and `missing` (what is not known of it, in words).
    """
    files = []
    try:
        files = [(int(m[1]), path) for path in (folder / EPISODES).iterdir() if (m := FILE.fullmatch(path.name))]
    except FileNotFoundError:
        notes.add("No episode was sampled.")
    except OSError as error:
        notes.add(f"{EPISODES} cannot be read: {error.strerror or error}.")
    chosen = spread(sorted(files), MOST_EPISODES)
    each = max(1, MOST_EPISODES // max(1, len(chosen)))
    found, of = [], 0
    for step, path in chosen:
        rows = [_episode(row, step) for row in json_lines(path, f"{EPISODES}/{path.name}", notes)]
        found += rows[:each]
        of += len(rows)
    if len(found) < of or len(chosen) < len(files):
        notes.add(f"{len(found)} sampled episodes of {len(chosen)} steps are shown; {len(files)} steps have some.")
    if old := sum(NO_NUMBERS in episode["missing"] for episode in found):
        notes.add(f"{old} of {len(found)} sampled episodes: no numbers for single tokens, no sections and no facts.")
    share = MOST_BYTES // max(1, len(found))
    return [_within(episode, share) for episode in found]


def _episode(row: dict, step: int) -> dict:
    given = row.get("conversations")
    conversations = [_conversation(c) for c in given if isinstance(c, dict)] if isinstance(given, list) else []
    facts: list[list] = [[text(f.get("text")), _index(f.get("section"))] for f in _objects(row.get("facts"))]
    lists = row.get("held")
    held = [[i for i in known if type(i) is int and 0 <= i < len(facts)] for known in _lists(lists)]
    is_old = "memories" not in row and not any(c[LENGTHS] for c in conversations)
    memories = [c[1] for c in conversations if c[0] == "memory"] if is_old else texts(row.get("memories"))
    held = held if len(held) == len(memories) else []
    missing = []
    if is_old:
        missing.append(NO_NUMBERS)
    else:
        missing += ["lists no needed facts"] if not facts else []
        if not any(c[5] for c in conversations):
            missing.append("has no log-prob ratios: the learner did not compute its responses, or they were lost")
    return {
        "step": step,
        "reward": rounded(row.get("reward")),
        "advantage": rounded(row.get("advantage")),
        "penalty": rounded(row.get("penalty")),
        "task": text(row.get("task"))[:100] or "unknown",
        "id": str(row.get("problem_id", ""))[:200],
        "question": text(row.get("problem")),
        "gold": texts(row.get("answers"))[:100],
        "answer": text(row.get("answer")),
        "cut": row.get("cut") is True,
        "conversations": conversations,
        "documentTokens": number(row.get("document_tokens")),
        "sections": texts(row.get("sections")),
        "memories": memories,
        "facts": facts,
        "held": held,
        "events": memory_events([place for _, place in facts], held),
        "missing": missing,
    }


def _objects(value: object) -> list[dict]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _lists(value: object) -> list[list]:
    return [item for item in value if isinstance(item, list)] if isinstance(value, list) else []


def _index(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _conversation(given: dict) -> list:
    response, advantage = text(given.get("response")), rounded(given.get("advantage"))
    plain: list = [text(given.get("role"))[:100], response, advantage, None, None, None, None]
    tokens = given.get("tokens")
    characters = tokens.get("characters") if isinstance(tokens, dict) else None
    if not isinstance(tokens, dict) or not isinstance(characters, list):
        return plain
    if not all(type(n) is int and n >= 0 for n in characters) or sum(characters) != len(response):
        return plain
    n, sampler, learner = len(characters), tokens.get("logprobs"), tokens.get("learner")
    plain[LENGTHS] = _utf16_lengths(response, characters)
    if isinstance(sampler, list) and len(sampler) == n:
        plain[4] = [_thousandths(x) for x in sampler]
        if isinstance(learner, list) and len(learner) == n:
            pairs = zip(learner, sampler, strict=True)
            known = [(number(new), number(old)) for new, old in pairs]
            plain[5] = [None if new is None or old is None else _thousandths(new - old) for new, old in known]
    runs = [run for run in _lists(tokens.get("versions")) if len(run) == 2 and all(type(x) is int for x in run)]
    if n and all(count > 0 for _, count in runs) and sum(count for _, count in runs) == n:
        plain[6] = runs
    return plain


def _utf16_lengths(response: str, characters: list[int]) -> list[int]:
    if response.isascii() or max(response) < "\U00010000":
        return characters
    lengths, start = [], 0
    for count in characters:
        piece = response[start : start + count]
        lengths.append(count + sum(character >= "\U00010000" for character in piece))
        start += count
    return lengths


def _thousandths(value: object) -> int | None:
    given = number(value)
    return None if given is None else round(THOUSANDTHS * given)


def memory_events(places: list[int | None], held: list[list[int]]) -> list[list[list]]:
    """What happened to the needed facts at each memory.

    Args:
        places: the section of each fact, by index; None: unknown.
        held: the facts that each memory holds, after one section after another.

    Returns:
        For each memory a list of [event, fact]. The events: `written`, in the memory after its own section; `missed`,
        not there; `appeared`, after another section; `lost`, in the memory before, and no more.
    """
    events, old = [], set[int]()
    for i, now in enumerate(map(set, held)):
        here = {fact for fact, place in enumerate(places) if place == i}
        of_memory = [["written" if fact in here else "appeared", fact] for fact in sorted(now - old)]
        of_memory += [["missed", fact] for fact in sorted(here - now - old)]
        events.append(of_memory + [["lost", fact] for fact in sorted(old - now)])
        old = now
    return events


def _within(episode: dict, share: int) -> dict:
    """An episode whose JSON has about `share` bytes at most: first without numbers for tokens, then with less text."""
    if _size(episode) <= share:
        return episode
    conversations = [[*c[:LENGTHS], *[None] * (LAST - LENGTHS)] for c in episode["conversations"]]
    missing = [*episode["missing"], "is too long for the page: the numbers for its tokens are left out"]
    episode = {**episode, "conversations": conversations, "missing": missing}
    if (size := _size(episode)) <= share:
        return episode
    episode["missing"][-1] = "is too long for the page: numbers for its tokens are left out, and texts are cut"
    while size > share:
        longest = max(map(len, _texts_of(episode)))
        if longest <= LEAST_TEXT:
            return _only_the_beginning(episode)
        episode = _cut_texts(episode, max(LEAST_TEXT, longest // 2))
        size = _size(episode)
    return episode


def _only_the_beginning(episode: dict) -> dict:
    """An episode of too many conversations, without them."""
    nothing: dict = {name: [] for name in ("conversations", "sections", "memories", "facts", "held", "events", "gold")}
    return {**episode, **nothing, "missing": ["has too many conversations for the page: they are left out"]}


def _texts_of(episode: dict) -> list[str]:
    lists = (episode["sections"], episode["memories"], episode["gold"], (c[1] for c in episode["conversations"]))
    facts = (fact for fact, _ in episode["facts"])
    return [episode["question"], episode["answer"], *facts, *(item for texts_ in lists for item in texts_)]


def _cut_texts(episode: dict, most: int) -> dict:
    def cut(shown: str) -> str:
        return shown if len(shown) <= most else f"{shown[: most - 1]}…"

    return {
        **episode,
        **{name: cut(episode[name]) for name in ("question", "answer")},
        **{name: list(map(cut, episode[name])) for name in ("sections", "memories", "gold")},
        "facts": [[cut(fact), place] for fact, place in episode["facts"]],
        "conversations": [[c[0][:LEAST_TEXT], cut(c[1]), *c[2:]] for c in episode["conversations"]],
    }


def _size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace"))
