"""How fast devices compute for a plan: what was measured, where, and what is only assumed.

GPUs: **assumed**. No run of this project has been on a GPU. A rate is the data sheet's peak times a utilization below.
One thing was measured: the learner's pass with Qwen2.5-7B's sizes, four layers deep, on one H200 without ZeRO-3 and
optimizer (docs/performance.md, "Sharing on a GPU"). It reached 0.39 (trees) to 0.48 (packed rows) of the peak,
recomputation counted; `LEARNING` is the lower end.

CPUs: **measured**, in runs on two cores (`MEASURED`). A run's rows do not tell the engines' time for prompts from that
for responses, so both have the rate of all they computed. It holds for runs with about the same share of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.run.devices import Device

GIB = 2**30
LEARNING = 0.4  # of the peak, recomputation counted as work
PREFILL = 0.5  # of the peak, assumed
DECODE_BANDWIDTH = 0.7  # of the memory's bandwidth, assumed
NETWORK = 0.8  # of the bandwidth of links and networks in collectives, assumed
STEP_S = 0.003  # of an engine's host for each decoding step: scheduling, sampling; assumed
HOST_LINK = 10e9  # bytes/s between a GPU and host memory that is not pinned, as what engines read; assumed
CONTEXT = 3 * GIB // 2  # of a GPU for CUDA's and NCCL's own use, in a learner rank; assumed
PROCESS = 4 * GIB  # of host memory for an engine's or a learner rank's process beside weights and states; assumed
SCORER = GIB  # of host memory for a scorer's process; assumed


@dataclass(frozen=True)
class Rates:
    """How fast one device works; of a CPU, one core.

    prefill    FLOP/s of an engine on prompts
    decode     FLOP/s of an engine on responses
    learning   FLOP/s of a learner, recomputation counted
    bandwidth  bytes/s of memory in decoding; 0: `decode` says it all
    step_s     seconds of an engine's host for each decoding step
    link       bytes/s between devices of a node; 0: `learning` contains the exchange
    host_link  bytes/s of weights on their way from a learner rank, and into an engine
    block      tokens of a block of the prefix cache
    source     where the numbers come from, for the user
    """

    prefill: float
    decode: float
    learning: float
    bandwidth: float
    step_s: float
    link: float
    host_link: float
    block: int
    source: str


def gpu_rates(device: Device) -> Rates:
    """The assumed rates of a GPU."""
    return Rates(
        prefill=PREFILL * device.peak,
        decode=PREFILL * device.peak,
        learning=LEARNING * device.peak,
        bandwidth=DECODE_BANDWIDTH * device.bandwidth,
        step_s=STEP_S,
        link=NETWORK * device.link,
        host_link=HOST_LINK,
        block=16,
        source=f"ASSUMED, not measured: {PREFILL:.0%} of the data sheet's peak in prefill, {DECODE_BANDWIDTH:.0%} of "
        f"its memory bandwidth in decoding; {LEARNING:.0%} of the peak in learning is from one measured pass on an "
        "H200",
    )


def core_rates(rows: Sequence[dict], model_bytes: int, cores: int, source: str) -> Rates:
    """The rates of a core from the rows of a measured run on a CPU, with one engine of one thread.

    Engine and ranks share the cores: while both compute, every thread has `cores / (1 + ranks)` of one, at most one.
    The engine's time without work is spread evenly over the step.

    Args:
        rows: consecutive rows of metrics.jsonl, without validation in them.
        model_bytes: bytes of the model's weights.
        cores: cores of the machine.
        source: the run and the machine, in words.
    """
    engine_s = learner_s = generated = learned = paused = published = 0.0
    for row in rows:
        ranks, training = row["learner_ranks"], row["train_seconds"]
        share, alone = min(1.0, cores / (1 + ranks)), min(1.0, cores / ranks)
        busy = 1 - row["generators_waited"]
        engine_s += busy * (row["seconds"] - (1 - share) * training)
        learner_s += ranks * training * (busy * share + (1 - busy) * alone)
        generated += 1e12 * row["generator_tflops"] * busy * row["seconds"]
        learned += 1e12 * row["learner_tflops"] * row["learner_ranks"] * row["train_seconds"]
        paused += row["update_pause_max"] or 0.0
        published += row["publish_seconds"]
    return Rates(
        prefill=generated / engine_s,
        decode=generated / engine_s,
        learning=learned / learner_s,
        bandwidth=0.0,
        step_s=0.0,
        link=0.0,
        host_link=len(rows) * model_bytes / max(paused, published),
        block=32,
        source=source,
    )


# By the number of the model's parameters and its dtype.
MEASURED: dict[tuple[int, str], Rates] = {
    (134_515_008, "bfloat16"): Rates(  # SmolLM2-135M
        prefill=98.5e9,
        decode=98.5e9,
        learning=51.0e9,
        bandwidth=0.0,
        step_s=0.0,
        link=0.0,
        host_link=287e6,
        block=32,
        source="measured in two steps of `make learn` on two cores of AMD EPYC with bfloat16 instructions",
    ),
}
