"""A cluster plan as text."""

from textwrap import wrap

from pipeline.learning.device_memory import Architecture
from pipeline.run.calibration import CONTEXT, PROCESS, SCORER, Rates
from pipeline.run.cluster_config import CPU, PlanConfig
from pipeline.run.cluster_plan import KV, ClusterPlan
from pipeline.run.devices import DEVICES
from pipeline.run.plan import GIB

HOUR = 3600
WIDTH = 100  # columns


def report(
    config: PlanConfig,
    a: Architecture,
    plan: ClusterPlan,
    rates: Rates,
    document: str,
    best: tuple[int, int, float] | None,
) -> str:
    """The plan for a terminal.

    Args:
        config: the plan's configuration.
        a: the model's architecture.
        plan: the plan.
        rates: those that the plan was made with.
        document: the mean document, in words.
        best: the best division of the GPUs (`best_split`).
    """
    return "\n".join(
        [
            f"# plan: {a.parameters:,} parameters in {config.model.dtype} on {hardware(config, plan)}",
            *wrap(f"rates: {rates.source}", WIDTH),
            "",
            *role_lines(config, plan),
            "",
            *work_lines(config, plan, document),
            "",
            *step_lines(config, plan),
            *split_lines(config, plan, best),
            *total_lines(config, plan),
        ]
    )


def hardware(config: PlanConfig, plan: ClusterPlan) -> str:
    c = config.cluster
    if c.device == CPU:
        return f"{c.cores} cores"
    gpus = config.generator.count * config.generator.num_gpus + config.learner.ranks * config.learner.num_gpus
    nodes = f"{plan.nodes.count} node{'s' * (plan.nodes.count > 1)} of {c.gpus_per_node} {c.device}"
    return f"{gpus:g} GPU{'s' * (gpus > 1)}: {nodes}, {c.network_gb_s:g} GB/s between nodes"


def role_lines(config: PlanConfig, plan: ClusterPlan) -> list[str]:
    """A table of the roles."""
    g, le, m, on_cpu = config.generator, config.learner, plan.memory, config.cluster.device == CPU
    engine = f"{m.generator_weights / GIB:.1f} + {m.generator_room / GIB:.1f} KV cache"
    learner = f"{(m.learner + (0 if on_cpu else CONTEXT)) / GIB:.1f}"
    host = f"{(PROCESS + m.learner_host) / GIB:.1f}"
    gib = "GiB of its memory" if on_cpu else f"GiB of each GPU (of {DEVICES[config.cluster.device].memory / GIB:.0f})"
    rows = [
        ("role", "number", "GPUs each", gib, "host GiB each"),
        ("generator", g.count, f"{g.num_gpus:g}", engine, f"{PROCESS / GIB:.1f}"),
        ("learner rank", le.ranks, f"{le.num_gpus:g}", learner, host),
        ("scorer", config.scorer.count, "-", "-", f"{SCORER / GIB:.1f}"),
    ]
    lines = [f"{role:<13}{number:>7}{gpus:>11}  {memory:<27}{host:>13}" for role, number, gpus, memory, host in rows]
    return [*lines, f"a node's host memory: up to {m.node_host / GIB:.0f} GiB of {config.cluster.host_memory_gib:g}"]


def work_lines(config: PlanConfig, plan: ClusterPlan, document: str) -> list[str]:
    """What a step generates and learns."""
    w, t, groups = plan.workload, config.train, plan.groups
    prompts = round(groups * w.prompt_tokens)
    computed = f"computed: {plan.generation.computed:,} tokens by engines, {plan.learning.computed:,} by learners"
    skipped = not t.dynamic_sampling and config.cluster.informative_share < 1
    return [
        f"document: {document}: {w.chunks} chunks",
        f"means: question {w.problem}, memory {w.memory}, answer {w.answer} tokens",
        f"a step: {groups:g} groups × {w.group_size} episodes × {w.chunks + 1} = "
        f"{round(groups * w.conversations):,} conversations",
        f"tokens: {prompts:,} in prompts, {round(groups * w.responses):,} in responses",
        f"{computed}, shared prefixes once" + (", no groups of equal reward" if skipped else ""),
    ]


def step_lines(config: PlanConfig, plan: ClusterPlan) -> list[str]:
    """The step's time and what binds it."""
    g, le, generation, learning = config.generator, config.learner, plan.generation, plan.learning
    per_engine = generation.computed / generation.seconds / g.count
    per_rank = learning.computed / learning.seconds / le.ranks
    waits = f"; {learning.gathers:.0%} of it waits for ZeRO-3's exchange" if learning.gathers else ""
    lines = [
        (generation.seconds, f"{per_engine:,.0f} tokens/s per engine, {per_engine * g.count:,.0f} in all"),
        (None, f"{generation.decoding:.0%} of it decodes, {generation.batch:.0f} conversations at a time;"),
        (None, f"the limit is {generation.limit}; decoding waits for {generation.bound}"),
        (learning.seconds, f"{per_rank:,.0f} tokens/s per rank, {per_rank * le.ranks:,.0f} in all{waits}"),
        (plan.publish, f"of the learners for a new version; {_time(plan.load)} of each engine to load it;"),
        (None, f"about {_time(plan.broadcast)} until the last node has it"),
        (plan.seconds, binding(config, plan)),
    ]
    names = iter(("generation", "learning", "weights", "step"))
    return [
        f"{'' if seconds is None else next(names):<11}{'' if seconds is None else _time(seconds):>9}  {said}"
        for seconds, said in lines
    ]


def binding(config: PlanConfig, plan: ClusterPlan) -> str:
    """What a step waits for, in words."""
    if config.train.max_staleness == 0:
        return "generation and learning take turns: train.max_staleness=0"
    memory = (
        ", and there the room for the KV cache" if plan.binds == "generation" and plan.generation.limit == KV else ""
    )
    sides = sorted((plan.generation.seconds + plan.load, plan.learning.seconds + plan.publish))
    return f"{plan.binds} binds{memory}; the other side takes {sides[0] / sides[1]:.0%} of its time"


def split_lines(config: PlanConfig, plan: ClusterPlan, best: tuple[int, int, float] | None) -> list[str]:
    """The best division of the GPUs."""
    if best is None:
        return []
    count, ranks, seconds = best
    if seconds > 0.98 * plan.seconds:
        return [
            f"balance: {config.generator.count} generators : {config.learner.ranks} ranks is about the best division"
        ]
    return [f"balance: generator.count={count} learner.ranks={ranks} on the same GPUs has steps of {_time(seconds)}"]


def total_lines(config: PlanConfig, plan: ClusterPlan) -> list[str]:
    """Time and price of the run."""
    c, steps = config.cluster, config.train.steps
    hours = steps * plan.seconds / HOUR
    if c.device == CPU:
        return [f"{steps} steps: {hours:,.1f} hours"]
    gpus = plan.nodes.count * c.gpus_per_node
    paid = f"{hours * gpus:,.0f} GPU-hours of whole nodes"
    price = f", {hours * gpus * c.price:,.0f} at cluster.price={c.price:g}" if c.price else "; set cluster.price"
    return [f"{steps} steps: {hours:,.1f} hours, {paid}{price}"]


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
