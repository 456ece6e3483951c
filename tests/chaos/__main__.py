"""The chaos suite: `python -m tests.chaos [part …] [--write]` (`make chaos`).

Real runs, which are broken on purpose in every way that docs/reliability.md names, one fault after the other; after
each of them, and at the end, the history that the run leaves is checked. Prints what each part found; `--write` puts it
into docs/reliability.md.

Parts: processes (of one machine), nodes (several raylets on this machine), random (ten kills at random in 60 steps).
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

from jobs.support.driver import asks_for_help
from jobs.support.ray_token import require_token
from tests.support.faults import ROOT, busy_engine, check_history, check_rows, inject, rows_of, training

WIDTH = 100  # columns of the report's prose
REPORT = ROOT / "docs" / "reliability.md"
STEPS_BETWEEN = 2  # steps after a fault, when the run is in its steady state again
FIRST_STEP = 3  # before which nothing is broken
GROUPS = 4  # a step
BUSY = ("train.group_size=16", "data.synthetic_chunks=16")  # so that a fault finds conversations open
MANY_STEPS = 100_000  # the run is stopped after its last fault
COUNTED = ("group_moves", "conversations_redone", "groups_lost", "steps_lost")


@dataclass
class Outcome:
    """What became of a fault."""

    fault: str
    seconds: float  # until two more steps were done
    usual: float  # that two steps of this run take when nothing happens
    counts: dict[str, int]


class Chaos:
    """One run with one fault after the other."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *arguments: str,
        staleness: int = 1,
        environment: dict | None = None,
        began: Callable[[], None] = lambda: None,
    ):
        self.folder, self.staleness = folder / name, staleness
        self.environment = environment
        self.arguments = (
            f"run.folder={folder}",
            f"run.name={name}",
            f"train.steps={MANY_STEPS}",
            f"train.max_staleness={staleness}",
            *BUSY,
            *arguments,
        )
        self.run = training(*self.arguments, environment=environment)
        self.outcomes: list[Outcome] = []
        self.run.wait_for("· starting")
        began()
        self.run.wait_for(f"step {FIRST_STEP}/")

    def fault(self, name: str, strike: Callable[[], object], until: str = "") -> None:
        """Let a fault happen and wait until the run is past it.

        Args:
            name: for the table.
            strike: what breaks something.
            until: a line that has to come before the steps that are waited for.
        """
        before, begin, mark = rows_of(self.folder), time.time(), len(self.run.lines)
        strike()
        after = self.run.wait_for(until, after=mark) if until else mark
        for _ in range(STEPS_BETWEEN):
            after = self.run.wait_for(f"/{MANY_STEPS}  reward", after=after)
        seconds = time.time() - begin
        for _ in range(self.staleness + 1):  # until the groups that were under way are trained and counted
            after = self.run.wait_for(f"/{MANY_STEPS}  reward", after=after)
        rows = rows_of(self.folder)
        check_rows(rows, GROUPS)
        counts = {n: max(0, rows[-1].get(n, 0) - before[-1].get(n, 0)) for n in COUNTED}
        said = [line for line in self.run.lines[mark:] if line.startswith("· ") and "saved" not in line]
        usual = STEPS_BETWEEN * mean(sorted(row["seconds"] for row in rows)[: max(1, len(rows) // 2)])
        self.outcomes.append(Outcome(name, seconds, usual, counts))
        print(f"{name}: {seconds:.1f} s, {counts}\n    " + "\n    ".join(said), flush=True)

    def submit_again(self) -> None:
        """Kill the driver, and submit the same run again."""
        self.run.process.kill()
        self.run.process.wait()
        before, self.run = self.run, training(*self.arguments, "resume=auto", environment=self.environment)
        self.run.wait_for("is running: following it")
        self.run.lines[:0] = before.lines

    def end(self) -> dict:
        """Stop the run, and check all that it left; return its summary."""
        self.run.process.send_signal(signal.SIGTERM)
        assert self.run.end(120) == 130, self.run.output
        return check_history(self.folder, GROUPS, self.staleness)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    yield folder
    shutil.rmtree(folder)  # it is kept if something failed


def of_processes(folder: Path) -> list[str]:
    """Processes of one machine that die or stand still, and what learners can run into."""
    go = folder / "go"
    go.mkdir()
    chaos = Chaos(
        folder,
        "processes",
        "generator.count=2",
        "generator.stall_s=8",
        "scorer.timeout_s=5",
        "learner.stall_s=12",
        environment={"CHAOS_FOLDER": str(go), "PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'inject'}:{ROOT}"},
    )

    def kill(kind: str, how: int = signal.SIGKILL) -> Callable[[], None]:
        return lambda: chaos.run.kill(kind, how=how)

    def injected(name: str) -> Callable[[], None]:
        return lambda: inject(name, folder=go)

    def of_a_busy_generator(kind: str, how: int = signal.SIGKILL) -> Callable[[], None]:
        def strike() -> None:
            engine = busy_engine(chaos.run.root)
            (engine if kind == "EngineCore" else engine.parent()).send_signal(how)

        return strike

    chaos.fault("generator killed", of_a_busy_generator("Generator"), until="is in service")
    chaos.fault("engine process killed", of_a_busy_generator("EngineCore"), until="is in service")
    stop = of_a_busy_generator("EngineCore", signal.SIGSTOP)
    chaos.fault("engine stands still (SIGSTOP)", stop, until="is in service")
    chaos.fault("problem that kills its generator", injected("deadly problem"), until="· quarantined")
    chaos.fault("scorer killed", kill("Scorer"))
    chaos.fault("scorer stands still (SIGSTOP)", kill("Scorer", signal.SIGSTOP), until="starting it again")
    chaos.fault("journal killed", kill("Journal"))
    chaos.fault("tracker killed", kill("Tracker"))
    chaos.fault("learner rank killed in forward", injected("forward"), until="learners are back")
    chaos.fault("learner rank killed in the optimizer step", injected("optimizer"), until="learners are back")
    chaos.fault("learner rank killed while copying weights", injected("publish"), until="learners are back")
    chaos.fault("learner rank killed while sending weights", injected("send"), until="learners are back")
    chaos.fault("learner rank killed while copying a checkpoint", injected("copy"), until="learners are back")
    chaos.fault("learner rank killed while writing a checkpoint", injected("write"), until="learners are back")
    chaos.fault("learner rank stands still (SIGSTOP)", kill("Learner", signal.SIGSTOP), until="learners are back")
    chaos.fault("disk full while saving", injected("full"), until="could not be saved")
    chaos.fault("loss is NaN", injected("nan"), until="was skipped")

    def truncate_and_kill() -> None:
        after = chaos.run.wait_for("saved checkpoints/", after=len(chaos.run.lines))
        step = re.search(r"checkpoints/(\d+)", chaos.run.lines[after - 1])[1]
        for path in (chaos.folder / "checkpoints" / step / "learner" / "state").glob("*optim*"):
            os.truncate(path, 1000)
        chaos.run.kill("Learner")

    chaos.fault("newest checkpoint truncated, then a learner rank killed", truncate_and_kill, until="learners are back")
    chaos.fault("coordinator killed", kill("Coordinator"), until="all started")
    assert chaos.end()["rows_quarantined"] == 1
    return table(chaos.outcomes)


# The head has the coordinator. Nodes with a "GPU" hold a generator each, those with three "CPUs" a learner rank each.
HEAD = {"num_cpus": 1, "num_gpus": 0}
GENERATOR_NODE = {"num_cpus": 1, "num_gpus": 1}
LEARNER_NODE = {"num_cpus": 3, "num_gpus": 0}
ON_NODES = ("generator.num_gpus=1", "learner.num_cpus=2", "learner.wait_s=10")
QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def of_nodes(folder: Path) -> list[str]:
    """Nodes that come, go, and are drained; a driver that dies."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={**HEAD, "_system_config": QUICK_HEALTH_CHECKS, "include_dashboard": False}
    )
    try:
        generators, learners = [], []

        def add(nodes: list, kind: dict) -> Callable[[], None]:
            return lambda: nodes.append(cluster.add_node(**kind))

        def add_the_first() -> None:  # when the driver is there: Ray may connect it to any node of a machine
            for nodes, kind in ((generators, GENERATOR_NODE), (learners, LEARNER_NODE), (learners, LEARNER_NODE)):
                add(nodes, kind)()

        arguments, environment = ("generator.count=2", *ON_NODES), {"RAY_ADDRESS": cluster.address}
        chaos = Chaos(folder, "nodes", *arguments, staleness=2, environment=environment, began=add_the_first)

        def remove(nodes: list) -> Callable[[], None]:
            return lambda: cluster.remove_node(nodes.pop(0), allow_graceful=False)

        def when_busy(strike: Callable[[], object]) -> Callable[[], None]:
            """When the first of the nodes with generators is generating."""

            def wait_and_strike() -> None:
                (raylet,) = generators[0].all_processes["raylet"]
                busy_engine(psutil.Process(raylet.process.pid))
                strike()

            return wait_and_strike

        chaos.fault("node added, for a generator", add(generators, GENERATOR_NODE), until="is in service")
        chaos.fault("node with a generator removed", when_busy(remove(generators)), until="starting it again")
        chaos.fault("node added in its place", add(generators, GENERATOR_NODE), until="is in service")
        drained = when_busy(lambda: drain(cluster, generators[0]))
        chaos.fault("node with a generator drained", drained, until="starting it again")
        chaos.fault("node with a learner rank removed", remove(learners), until="learners are back")
        chaos.fault("node added, for a learner rank", add(learners, LEARNER_NODE), until="there is room for more")
        assert rows_of(chaos.folder)[-1]["learner_ranks"] == 2, chaos.run.output
        chaos.fault("driver killed and submitted again", chaos.submit_again)
        chaos.end()
        return table(chaos.outcomes)
    finally:
        cluster.shutdown()


def drain(cluster, node) -> None:
    """What a cloud's notice of preemption makes Ray do."""
    ray = Path(sys.executable).parent / "ray"
    command = [ray, "drain-node", "--address", cluster.address, "--node-id", node.node_id]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
    subprocess.run(command, check=True, capture_output=True)


KILLS, RANDOM_STEPS = 10, 60
KILLED_AT_RANDOM = ("Generator", "EngineCore", "Scorer", "Journal", "Learner", "Tracker")


def of_random_kills(folder: Path) -> list[str]:
    """Ten kills at random in 60 steps, beside the same run undisturbed; return lines for the report."""
    results = {}
    sizes = ("generator.count=2", *BUSY)
    for name, kills in (("undisturbed", 0), ("disturbed", KILLS)):
        chance, begin = random.Random(0), time.time()
        run = training(
            f"run.folder={folder}", f"run.name={name}", f"train.steps={RANDOM_STEPS}", "learner.stall_s=12", *sizes
        )
        line = run.wait_for("step 1/")
        began = time.time()
        steps = sorted(chance.sample(range(2, RANDOM_STEPS - 4), kills))
        killed = []
        for step in steps:
            line = run.wait_for(f"step {step}/", after=line, limit_s=600)
            time.sleep(chance.random())
            kind = chance.choice(KILLED_AT_RANDOM)
            with contextlib.suppress(AssertionError, psutil.Error):  # it is just being started again
                run.kill(kind)
                killed.append(kind)
        assert run.end(1800) == 0, run.output
        summary = check_history(folder / name, GROUPS, max_staleness=1, steps=RANDOM_STEPS)
        rows = rows_of(folder / name)
        results[name] = (time.time() - began, summary, rows, killed)
        print(name, f"{time.time() - begin:.0f} s", killed, {n: summary[n] for n in COUNTED}, flush=True)
    (usual, _, calm, _), (took, summary, rows, killed) = results["undisturbed"], results["disturbed"]
    rewards = [mean(row["reward"] for row in of[-20:]) for of in (calm, rows)]
    said = (
        f"{len(killed)} kills in {RANDOM_STEPS} steps ({', '.join(killed)}): {took / usual:.2f} times the time of the "
        f"same run undisturbed, effective training time ratio {rows[-1]['effective_time_ratio']:.2f}; mean reward of "
        f"the last 20 steps {rewards[1]:.3f}, undisturbed {rewards[0]:.3f}; "
        + ", ".join(f"{n.replace('_', ' ')} {summary[n]}" for n in COUNTED)
        + f"; every one of the {RANDOM_STEPS * GROUPS} groups trained once."
    )
    return textwrap.wrap(said, WIDTH, break_long_words=False, break_on_hyphens=False)


def table(outcomes: list[Outcome]) -> list[str]:
    lines = ["| fault | groups moved | conversations redone | groups redone | steps lost | seconds | usual |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for o in outcomes:
        counts = " | ".join(str(o.counts[name]) for name in COUNTED)
        lines.append(f"| {o.fault} | {counts} | {o.seconds:.0f} | {o.usual:.0f} |")
    return lines


PARTS = {"processes": of_processes, "nodes": of_nodes, "random": of_random_kills}


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print((__doc__ or "").strip())
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    require_token()
    write = "--write" in arguments
    parts = [a for a in arguments if a != "--write"] or list(PARTS)
    if wrong := [part for part in parts if part not in PARTS]:
        print(f"no part {', '.join(wrong)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for part in parts:
        with workplace() as folder:
            lines = "\n".join(PARTS[part](folder))
        print(lines)
        if write:
            put_into_report(part, lines)
    return 0


def put_into_report(part: str, lines: str) -> None:
    """In the place of what an earlier run of this part has left there."""
    begin, end = f"<!-- made by make chaos: {part} -->\n", f"<!-- end of {part} -->\n"
    before, _, rest = REPORT.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    REPORT.write_text(f"{before}{begin}\n{lines}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
