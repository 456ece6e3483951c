"""The staleness rule: who may start, and who must be trained now, so that no token is ever too old.

The learner at version v takes `groups_per_step` groups and makes version v + 1. A group whose oldest token was
written by version w may be trained by the learner at version w + max_staleness at the latest: its deadline.
Deadlines can all be kept exactly when, in the order of their deadlines, group number k (from 0) has a deadline of
at least v + k // groups_per_step. A group is admitted only if this still holds with it, and the learner takes
groups earliest deadline first, waiting for a slow one rather than letting it expire: a problem with a long
document is never dropped for being slow. max_staleness = 0 is synchronous, on-policy training.

Only learners that go back to a checkpoint, which makes a version of its own, can leave groups whose deadlines cannot
all be kept. Then the learner waits for none of them, and what comes too late is dropped.
"""

from collections.abc import Iterable, Sequence


def feasible(deadlines: Iterable[int], version: int, groups_per_step: int) -> bool:
    """Whether groups with these deadlines can all be trained in time by a learner now at `version`."""
    return all(version + k // groups_per_step <= deadline for k, deadline in enumerate(sorted(deadlines)))


def choose(
    ready: Sequence[tuple[int, int, str]], running: Iterable[int], version: int, groups_per_step: int
) -> list[str] | None:
    """The groups that the learner at `version` trains now, or None if it must wait.

    Args:
        ready: (deadline, position in the data, group id) of the groups that wait to be trained.
        running: deadlines of the groups still being generated or scored.
        version: the learner's version.
        groups_per_step: groups of one step.
    """
    if len(ready) < groups_per_step:
        return None
    ordered = sorted(ready)
    running = list(running)
    everything = [deadline for deadline, *_ in ordered] + running
    rest = everything[groups_per_step:]
    if not feasible(rest, version + 1, groups_per_step) and feasible(everything, version, groups_per_step):
        return None
    return [group_id for *_, group_id in ordered[:groups_per_step]]
