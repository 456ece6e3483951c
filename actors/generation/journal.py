"""The journal: the finished conversations of running groups, so that a group outlives its generator."""

import asyncio
from collections import defaultdict

import ray

from pipeline.rollout.replay import Finished

# Number of ids of dropped groups to remember: late messages of a group arrive long before this many others end.
DROPPED_KEPT = 10_000


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Journal:
    """Holds finished conversations: the responses, which are short, and digests of prompts, which the agent rebuilds.

    If its process dies, it restarts empty. This costs something only if a generator also dies before its groups are
    done.
    """

    def __init__(self):
        self._finished: defaultdict[str, list[Finished]] = defaultdict(list)
        self._dropped: dict[str, None] = {}  # ids, in the order of dropping

    def add(self, finished: list[Finished]) -> None:
        """Keep finished conversations, except those of dropped groups, whose generator does not know yet."""
        for conversation in finished:
            if conversation.group_id not in self._dropped:
                self._finished[conversation.group_id].append(conversation)

    def of(self, group_id: str) -> list[Finished]:
        """A group's finished conversations, in the order in which they finished."""
        return self._finished.get(group_id, [])

    def drop(self, group_ids: list[str]) -> None:
        """Forget groups that have ended."""
        for group_id in group_ids:
            self._finished.pop(group_id, None)
            self._dropped[group_id] = None
        while len(self._dropped) > DROPPED_KEPT:
            del self._dropped[next(iter(self._dropped))]


class JournalWriter:
    """A generator's client of the journal. Conversations that finish during a call are sent in the next one."""

    def __init__(self, journal):
        self._journal = journal
        self._waiting: list[tuple[Finished, asyncio.Future]] = []
        self._sending: asyncio.Task | None = None

    async def write(self, conversation: Finished) -> None:
        """Write a conversation; return once the journal has it. Raises the error if the call fails."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((conversation, written))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await written

    async def _send(self) -> None:
        while self._waiting:
            sent, self._waiting = self._waiting, []
            try:
                await self._journal.add.remote([conversation for conversation, _ in sent])
                error = None
            except Exception as failure:
                error = failure
            for _, written in sent:
                if written.done():  # its waiter was cancelled
                    continue
                written.set_exception(error) if error else written.set_result(None)
        self._sending = None
