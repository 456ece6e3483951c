"""The staleness rule: which groups may start, and which must be trained now, so that no token gets too old.

The learner at version v trains `groups_per_step` groups and makes version v + 1. A group whose oldest token was written
by version w must be trained at version w + max_staleness or earlier: this is its deadline. All deadlines can be met if
and only if group number k (from 0), in order of deadline, has a deadline of at least v + k // groups_per_step. A group
is admitted only if this condition still holds with it. The learner trains groups with the earliest deadline first. It
waits for a slow group rather than letting it expire, so a problem with a long document is never dropped for being slow.
max_staleness = 0 is synchronous, on-policy training.

Deadlines become infeasible only when the learners return to a checkpoint, which makes a new version. The learner then
waits for no group, and groups that miss their deadline are dropped.
"""

from collections.abc import Iterable, Sequence


def feasible(deadlines: Iterable[int], version: int, groups_per_step: int) -> bool:
    """Whether a learner at `version` can train groups with these deadlines in time."""
    return all(version + k // groups_per_step <= deadline for k, deadline in enumerate(sorted(deadlines)))


def choose(
    ready: Sequence[tuple[int, int, str]], running: Iterable[int], version: int, groups_per_step: int
) -> list[str] | None:
    """The ids of the groups that the learner at `version` trains now, or None if it must wait.

    Args:
        ready: (deadline, position in the data, group id) of each buffered group.
        running: deadlines of the groups still being generated or scored.
        version: the learner's version.
        groups_per_step: number of groups that a step trains.
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
