"""The rollouts: whenever there is room, a group is started, generated, scored and handed back to its owner."""

from collections.abc import Callable, Coroutine

from actors.accounts import Accounts
from actors.generation.generator_pool import GeneratorLeft, GeneratorLost, GeneratorPool
from actors.groups import Groups
from actors.scoring.scorer_pool import ScorerPool
from pipeline.errors import BadRow, reason_of
from pipeline.rollout.episodes import GroupRecord, Sampling
from pipeline.run.config import TrainingConfig
from pipeline.run.timeline import Timeline


class Rollouts:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        groups: the owner of the run's groups.
        generators, scorers: the run's pools.
        accounts: the run's accounts.
        timeline: the run's timeline.
        spawn: runs a coroutine in the background; an error in it ends the run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        groups: Groups,
        generators: GeneratorPool,
        scorers: ScorerPool,
        accounts: Accounts,
        timeline: Timeline,
        spawn: Callable[[Coroutine], object],
    ):
        self.config, self.groups, self.accounts, self._spawn = config, groups, accounts, spawn
        self.timeline = timeline
        self.generators, self.scorers = generators, scorers
        self._sampling = Sampling(config.train.temperature)

    async def run(self) -> None:
        """Start one group after another, forever. Raises `DataError` if no problems are left to run."""
        while True:
            self._spawn(self.run_group(*await self.groups.admit()))

    def make_again(self, group_id: str) -> None:
        """Remake a lost group, which was finished, from its conversations in the journal."""
        self._spawn(self.run_group(group_id, None))

    async def run_group(self, group_id: str, name: str | None) -> None:
        """Generate and score one group. A failure costs this group only.

        If its generator is lost, the group continues on another one from its last finished conversation.

        Args:
            group_id: the group's id.
            name: the generator's name; None: any, for a group that was begun before.

        Raises:
            RunFailed, DataError: see `Groups.fail`.
        """
        t, position, problem = self.config.train, self.groups.position(group_id), self.groups.problem(group_id)
        seed = (self.config.run.seed, position) if t.seeded_sampling else None
        # The oldest group goes first on its generator: it ends early, and what its episodes share is used while it is
        # in the KV cache. Groups admitted later never delay it, so none starves.
        priority = self.groups.number(group_id)
        moves = deaths = 0
        resumed = name is None
        try:
            while True:
                name = name or await self.groups.move(group_id)
                try:
                    with self.timeline.span(name, "generate", group=group_id):
                        group, notes = await self.generators.rollout(
                            name, group_id, problem, t.method, t.group_size, self._sampling, seed, resumed, priority
                        )
                    break
                except GeneratorLost as lost:
                    moves, deaths = moves + 1, deaths + (not isinstance(lost, GeneratorLeft))
                    self.groups.generator_lost(group_id, lost.blame)
                    name, resumed = None, True
            with self.timeline.span("scorers", "score", group=group_id):
                scored = await self.scorers.score(group, problem.without_document())
        except BadRow as error:
            self.groups.withdraw(group_id, reason_of(error))
        except Exception as error:
            self.groups.fail(group_id, error)
        else:
            record = GroupRecord.of(
                scored,
                group_id=group_id,
                generator=name,
                generation_seconds=notes.seconds,
                moves=moves,
                preemptions=notes.preemptions,
                # An upper bound: what the generators between the first and the last one lost is unknown.
                redone_conversations=notes.resumed_episodes + (deaths - 1) * t.group_size if deaths else 0,
            )
            self.accounts.group_done(record)
            self.generators.work_done()  # else a generator that several problems killed within one step is given up
            self.groups.add(group_id, record, group)
