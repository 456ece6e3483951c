"""What a training run needs and how fast it will be on a given cluster, estimated before anything starts.

A step's time is the longer of generation and learning, which work at the same time, each with the weights' copy that it
waits for; with train.max_staleness=0 it is their sum. Both follow from FLOPs (pipeline/learning/flops.py), bytes and
the rates of pipeline/run/calibration.py. Not counted are idle engines at the end of a step's last groups, validation,
checkpoints, the optimizer's own time, uneven ranks and time lost to faults.
"""

from dataclasses import dataclass, replace
from math import ceil

from pipeline.learning.device_memory import BYTES, Architecture, layers_to_checkpoint
from pipeline.learning.flops import FORWARD, FORWARD_AND_BACKWARD, Computed, forward_flops
from pipeline.run.calibration import CONTEXT, NETWORK, PROCESS, SCORER, Rates
from pipeline.run.cluster_config import CPU, PlanConfig
from pipeline.run.devices import DEVICES
from pipeline.run.kv_cache import ENGINE_OVERHEAD, cache_bytes, fitting_sequences, token_bytes
from pipeline.run.plan import GIB, learner_memory
from pipeline.run.workload import Workload
from pipeline.weights.broadcast import broadcast_seconds, first_copies

KV = "the room for the KV cache"


@dataclass(frozen=True)
class Generation:
    """The engines' part of a step.

    seconds   of generation, without loading weights
    decoding  share of it that goes into decoding
    batch     conversations decoded together in an engine
    limit     what limits the batch: generator.max_sequences, `KV` or the episodes in flight
    bound     what decoding waits for: "memory bandwidth" or "computation"
    computed  tokens that go through the model
    room      conversations for which an engine's KV cache has room
    """

    seconds: float
    decoding: float
    batch: float
    limit: str
    bound: str
    computed: int
    room: float


@dataclass(frozen=True)
class Learning:
    """The learner ranks' part of a step.

    seconds   of training, without publishing
    gathers   share of it in which ranks wait for ZeRO-3's exchange
    computed  tokens that go through the model
    """

    seconds: float
    gathers: float
    computed: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a process of each role needs, and of a node's host memory."""

    learner: int  # on its device
    learner_host: int
    generator_weights: int  # on each of its devices
    generator_room: float  # on each of its devices, for the KV cache
    node_host: int  # of the node that needs most


@dataclass(frozen=True)
class Nodes:
    """Where the processes lie: on each node the generators and the learner ranks, and how many nodes that are."""

    count: int
    generating: int  # nodes with generators
    learning: int  # nodes with learner ranks
    generators: int  # most on a node
    ranks: int  # most on a node


@dataclass(frozen=True)
class ClusterPlan:
    """A plan. Seconds are of one learner step.

    publish    in which the learners wait for the copy of a new version to host memory
    load       in which an engine waits for a new version
    broadcast  until the last node has it; beside generation and learning, except with train.max_staleness=0
    faults     why the run does not fit, one line each; empty if it fits
    """

    workload: Workload
    groups: float  # generated
    nodes: Nodes
    memory: Memory
    generation: Generation
    learning: Learning
    publish: float
    load: float
    broadcast: float
    seconds: float
    faults: tuple[str, ...]

    @property
    def binds(self) -> str:
        """The side that a step waits for."""
        generating, learning = self.generation.seconds + self.load, self.learning.seconds + self.publish
        return "generation" if generating >= learning else "learning"


def cluster_plan(
    config: PlanConfig, a: Architecture, workload: Workload, rates: Rates, broadcast: float = 0.0
) -> ClusterPlan:
    """Plan a run.

    Args:
        config: the plan's configuration, already checked.
        a: the model's architecture.
        workload: a group's conversations.
        rates: of a device of `config.cluster.device`.
        broadcast: seconds in which a version reaches the last node (`version_broadcast`).
    """
    t = config.train
    where = place(config)
    size = BYTES[config.model.dtype] * a.parameters
    groups = t.groups_per_step / (config.cluster.informative_share if t.dynamic_sampling else 1.0)
    generation = generate(config, a, workload, rates, groups)
    learning = learn(config, a, workload, rates, where)
    publish = exchange_seconds(config, size, rates, where) + size / config.learner.ranks / rates.host_link
    load = size / rates.host_link  # each process of an engine moves whole tensors to its device
    memory = needed_memory(config, a, where)
    return ClusterPlan(
        workload=workload,
        groups=groups,
        nodes=where,
        memory=memory,
        generation=generation,
        learning=learning,
        publish=publish,
        load=load,
        broadcast=broadcast,
        seconds=step_seconds(config, generation.seconds + load, learning.seconds + publish, broadcast),
        faults=tuple(faults_of(config, a, where, memory)),
    )


def version_broadcast(config: PlanConfig, a: Architecture) -> float:
    """Seconds in which a version reaches the last node with generators; 0 if all is on one node.

    Nodes with generators count as others than those with learner ranks.
    """
    where = place(config)
    if where.count == 1:
        return 0.0
    bucket, ranks = config.learner.bucket_mib * 2**20, config.learner.ranks
    copies = first_copies(a, BYTES[config.model.dtype], bucket, ranks, where.learning)
    return broadcast_seconds(copies, where.generating, config.cluster.network_gb_s * 1e9)


def generate(config: PlanConfig, a: Architecture, w: Workload, rates: Rates, groups: float) -> Generation:
    """Estimate the engines' part of a step in which they make so many groups.

    A decoding step reads the weights once and the KV cache of every sequence in the batch, and computes one token of
    each. Engines of several devices are taken to be as efficient as of one.
    """
    g, t = config.generator, config.train
    engines, devices = g.count, g.tensor_parallel
    prompts, written = w.prompts(rates.block), w.written()
    prefill_s = forward_flops(a, prompts) / (devices * rates.prefill)

    kv = token_bytes(config, a)
    room = kv_room(config, a) / (kv * w.longest)
    flying = (t.max_staleness + 1) * t.groups_per_step * t.group_size / engines
    limits = {KV: room, "the episodes in flight": flying}
    if g.max_sequences:
        limits["generator.max_sequences"] = g.max_sequences
    else:  # as many as the engine is started with
        limits[KV] = min(room, fitting(config, a))
    limit = min(limits, key=lambda name: limits[name])
    batch = max(1.0, limits[limit])
    computing = batch * forward_flops(a, written) / max(1, written.tokens) / (devices * rates.decode)
    read = matrix_bytes(config, a) + batch * kv * w.context
    reading = read / (devices * rates.bandwidth) if rates.bandwidth else 0.0
    decode_s = written.tokens / batch * (max(computing, reading) + rates.step_s)
    return Generation(
        seconds=groups * (prefill_s + decode_s) / engines,
        decoding=decode_s / (prefill_s + decode_s),
        batch=batch,
        limit=limit,
        bound="memory bandwidth" if reading > computing else "computation",
        computed=round(groups * (prompts.tokens + written.tokens)),
        room=room,
    )


def learn(config: PlanConfig, a: Architecture, w: Workload, rates: Rates, where: Nodes) -> Learning:
    """Estimate the learner ranks' part of a step.

    Passes over a forward pass: 3, with all layers checkpointed 4; one more for the reference model, and one for the
    proximal policy in all updates but the first. For each micro-batch ZeRO-3 gathers the weights in the forward and in
    the backward pass and reduces float32 gradients (arXiv 1910.02054), beside the computation.
    """
    le, t, c = config.learner, config.train, config.cluster
    informative = 1.0 if t.dynamic_sampling else c.informative_share
    groups = informative * t.groups_per_step / t.updates_per_step
    group = w.learned()
    o, width = config.objective, BYTES[config.model.dtype]
    others = (1 if o.kl_coefficient else 0) + (o.decoupled and (t.updates_per_step - 1) / t.updates_per_step)
    passes = FORWARD_AND_BACKWARD + FORWARD * checkpointed_layers(config, a) / a.layers + others * FORWARD
    computing = passes * groups * forward_flops(a, group) / (le.ranks * rates.learning)
    micro_batches = ceil(groups * group.tokens / (le.ranks * le.micro_batch_tokens))
    gradients = 8 if le.optimizer == "muon" else 4  # Muon's whole gradients are reduced and gathered
    exchanged = (2 * width + gradients + others * width) * a.parameters
    exchanging = micro_batches * exchange_seconds(config, exchanged, rates, where)
    seconds = t.updates_per_step * max(computing, exchanging)
    return Learning(
        seconds=seconds,
        gathers=max(0.0, 1 - computing / exchanging) if exchanging else 0.0,
        computed=round(t.updates_per_step * groups * group.tokens),
    )


def exchange_seconds(config: PlanConfig, size: float, rates: Rates, where: Nodes) -> float:
    """Seconds to gather or reduce tensors of `size` bytes over all ranks, in rings: of one node, through the devices'
    links; of several, through the network of each node as well."""
    ranks = config.learner.ranks
    if ranks == 1 or not rates.link:
        return 0.0
    inside = size * (ranks - 1) / ranks / rates.link
    network = NETWORK * config.cluster.network_gb_s * 1e9
    across = size * (where.learning - 1) / where.learning / network
    return max(inside, across)


def step_seconds(config: PlanConfig, generating: float, learning: float, broadcast: float) -> float:
    """A step's time, of the seconds in which each side works if it has its devices to itself.

    Where there are fewer devices than processes, all have equal parts of them while both sides work.
    """
    g, le = config.generator, config.learner
    if config.train.max_staleness == 0:
        return generating + learning + broadcast
    if config.cluster.device == CPU:
        devices, engines, ranks = float(config.cluster.cores), float(g.count), float(le.ranks)
    elif g.num_gpus >= 1 and le.num_gpus >= 1:
        return max(generating, learning)
    else:
        devices = ceil(g.count * g.num_gpus + le.ranks * le.num_gpus)
        engines, ranks = g.count * max(1.0, g.num_gpus), le.ranks * max(1.0, le.num_gpus)
    both = min(1.0, devices / (engines + ranks))
    alone = min(1.0, devices / (engines if generating > learning else ranks))
    return min(generating, learning) / both + abs(generating - learning) / alone


def matrix_bytes(config: PlanConfig, a: Architecture) -> int:
    """Bytes of the matrices that a decoding step reads: all layers and the head."""
    return forward_flops(a, Computed(tokens=1, predicted=1)) // 2 * BYTES[config.model.dtype]


def kv_room(config: PlanConfig, a: Architecture) -> int:
    """Bytes for the KV cache of an engine, on all of its devices."""
    room = cache_bytes(config, a, device_memory(config))
    assert room is not None  # the memory is known
    return room


def fitting(config: PlanConfig, a: Architecture) -> int:
    """What an engine makes of generator.max_sequences=0."""
    sequences = fitting_sequences(config, a, device_memory(config))
    assert sequences is not None  # the memory is known
    return sequences


def device_memory(config: PlanConfig) -> int | None:
    """Bytes of a GPU; None on CPUs."""
    return None if config.cluster.device == CPU else int(DEVICES[config.cluster.device].memory)


def checkpointed_layers(config: PlanConfig, a: Architecture) -> int:
    """How many layers a learner rank checkpoints."""
    le = config.learner
    return layers_to_checkpoint(le, config.model.dtype, a, le.ranks, a.layers, device_memory(config))


def place(config: PlanConfig) -> Nodes:
    """Place the generators, then the learner ranks, each on the first node with room for it."""
    g, le, c = config.generator, config.learner, config.cluster
    if c.device == CPU:
        return Nodes(1, 1, 1, g.count, le.ranks)
    free: list[float] = []
    held: list[dict[str, int]] = []
    for role, number, gpus in (("generator", g.count, g.num_gpus), ("rank", le.ranks, le.num_gpus)):
        for _ in range(number):
            node = next((n for n, room in enumerate(free) if room >= gpus), len(free))
            if node == len(free):
                free.append(float(c.gpus_per_node))
                held.append({"generator": 0, "rank": 0})
            free[node] -= gpus
            held[node][role] += 1
    return Nodes(
        count=len(held),
        generating=sum(node["generator"] > 0 for node in held),
        learning=sum(node["rank"] > 0 for node in held),
        generators=max(node["generator"] for node in held),
        ranks=max(node["rank"] for node in held),
    )


def needed_memory(config: PlanConfig, a: Architecture, where: Nodes) -> Memory:
    """The memory that processes and nodes need.

    A node with generators holds a version in the object store and up to two that are staged in shared memory, with
    deltas three. A rank copies its state when a checkpoint is written, and puts its share of a version into the object
    store; rank 0 also copies the model. On a node with both roles, both are counted, though that node may not have the
    most of each.
    """
    device, host = learner_memory(config, a, checkpointed_layers(config, a))
    g, size = config.generator, BYTES[config.model.dtype] * a.parameters
    on_cpu = config.cluster.device == CPU
    learner, learner_host = sum(device.values()), sum(host.values())
    staged = (4 if config.learner.weight_deltas else 3) * size if where.generators else 0
    engines = where.generators * (PROCESS + (size + kv_room(config, a) if on_cpu else 0))
    copies = 12 * a.parameters / config.learner.ranks + size / config.learner.ranks
    ranks = where.ranks * (PROCESS + learner_host + round(copies) + (learner if on_cpu else 0)) + size
    apart = where.generating + where.learning <= where.count
    busiest = max(staged + engines, ranks) if apart else staged + engines + ranks
    return Memory(
        learner=learner,
        learner_host=learner_host,
        generator_weights=size // g.tensor_parallel,
        generator_room=kv_room(config, a) / g.tensor_parallel,
        node_host=busiest + ceil(config.scorer.count / where.count) * SCORER,
    )


def faults_of(config: PlanConfig, a: Architecture, where: Nodes, memory: Memory) -> list[str]:
    """Why a run does not fit its cluster."""
    c, g, le = config.cluster, config.generator, config.learner
    faults = []
    if memory.node_host > c.host_memory_gib * GIB:
        faults.append(
            f"a node needs {memory.node_host / GIB:.0f} GiB of host memory and has "
            f"cluster.host_memory_gib={c.host_memory_gib:g}"
        )
    if kv_room(config, a) < token_bytes(config, a) * config.agent.window:
        faults.append(
            f"an engine's KV cache has no room for agent.window={config.agent.window:,} tokens beside "
            f"{memory.generator_weights / GIB:.1f} GiB of weights: raise generator.tensor_parallel and "
            "generator.num_gpus, or shorten the conversations"
        )
    if c.device == CPU:
        return faults
    device = DEVICES[c.device]
    engine = memory.generator_weights + memory.generator_room + ENGINE_OVERHEAD
    if engine > device.memory:
        faults.append(
            f"an engine needs {engine / GIB:.1f} GiB and cluster.device={c.device} has {device.memory / GIB:.1f} GiB: "
            "lower generator.gpu_kv_cache_gib"
        )
    shared = engine if 0 < le.num_gpus < 1 and g.num_gpus < 1 else 0.0
    if memory.learner + CONTEXT + shared > device.memory:
        faults.append(
            f"a learner rank needs {(memory.learner + CONTEXT) / GIB:.1f} GiB"
            + (f" beside the {shared / GIB:.1f} GiB of an engine" if shared else "")
            + f" and cluster.device={c.device} has {device.memory / GIB:.1f} GiB: raise learner.ranks, lower "
            "learner.micro_batch_tokens, or set learner.offload=true"
        )
    if c.nodes and where.count > c.nodes:
        faults.append(
            f"{g.count} generators and {le.ranks} learner ranks need {where.count} nodes of {c.gpus_per_node} GPUs: "
            f"there are cluster.nodes={c.nodes}"
        )
    return faults


def best_split(
    config: PlanConfig, a: Architecture, workload: Workload, rates: Rates, broadcast: float = 0.0
) -> tuple[int, int, float] | None:
    """The division of the run's GPUs into generators and learner ranks with the shortest step.

    Returns:
        Generators, learner ranks and seconds of a step; None if GPUs are shared, there are none, or no division fits.
    """
    g, le = config.generator, config.learner
    if config.cluster.device == CPU or g.num_gpus < 1 or le.num_gpus != 1:
        return None
    gpus = round(g.count * g.num_gpus + le.ranks)
    found = []
    for count in range(1, ceil(gpus / g.tensor_parallel)):
        ranks = gpus - count * g.tensor_parallel
        split = replace(config, generator=replace(g, count=count), learner=replace(le, ranks=ranks))
        spread = version_broadcast(split, a) if config.train.max_staleness == 0 else broadcast
        plan = cluster_plan(split, a, workload, rates, spread)
        if not plan.faults:
            found.append((count, ranks, plan.seconds))
    return min(found, key=lambda split: split[2], default=None)
