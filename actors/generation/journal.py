"""The journal: the finished conversations of all groups under way, so that a group outlives its generator."""

import asyncio
from collections import defaultdict

import ray

from pipeline.rollout.replay import Finished

# Ids of groups that were dropped; what still comes of a group comes long before so many others end.
DROPPED_KEPT = 10_000


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Journal:
    """Holds responses, which are short, and digests of prompts, which an agent makes again. When its own process dies
    it comes back empty, and costs something only if a generator dies as well before its groups are done."""

    def __init__(self):
        self._finished: defaultdict[str, list[Finished]] = defaultdict(list)
        self._dropped: dict[str, None] = {}  # in the order in which they were

    def add(self, finished: list[Finished]) -> None:
        """Keep finished conversations, but not of a group that was dropped: its generator did not know that yet."""
        for conversation in finished:
            if conversation.group_id not in self._dropped:
                self._finished[conversation.group_id].append(conversation)

    def of(self, group_id: str) -> list[Finished]:
        """What is finished of a group, in the order in which it was."""
        return self._finished.get(group_id, [])

    def drop(self, group_ids: list[str]) -> None:
        """Forget groups that are trained or given up."""
        for group_id in group_ids:
            self._finished.pop(group_id, None)
            self._dropped[group_id] = None
        while len(self._dropped) > DROPPED_KEPT:
            del self._dropped[next(iter(self._dropped))]


class JournalWriter:
    """A generator's way to the journal. What is finished while a message is on its way goes with the next one."""

    def __init__(self, journal):
        self._journal = journal
        self._waiting: list[tuple[Finished, asyncio.Future]] = []
        self._sending: asyncio.Task | None = None

    async def write(self, conversation: Finished) -> None:
        """Returns when the journal has it."""
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
                if written.done():  # who waited for it was cancelled
                    continue
                written.set_exception(error) if error else written.set_result(None)
        self._sending = None
