"""Plan a training run before paying for it: `python -m jobs.plan preset=<name> cluster.device=H100 key=value …`.

Takes the keys of jobs.train and the section `cluster`. Prints GPUs, nodes and memory of each role, tokens per second of
both sides, the time of a step, what binds it, and hours and price of the run. Starts nothing. Numbers for GPUs are
estimates from data sheets: one pass of a learner was measured on an H200, all else is assumed
(pipeline/run/calibration.py).
Exit status: 0 the run fits, 1 it does not, 2 wrong configuration.
"""

import sys
from math import ceil
from pathlib import Path

from jobs.support.driver import asks_for_help, show_help
from jobs.support.inputs import load_model_files
from jobs.train import CHARACTERS_OF_A_TOKEN, architecture, document_tokens
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import Prompts, estimated_layout, load_template
from pipeline.errors import ConfigError
from pipeline.learning.device_memory import Architecture
from pipeline.run.calibration import MEASURED, Rates, gpu_rates
from pipeline.run.cluster_config import CPU, PlanConfig, load_plan_config
from pipeline.run.cluster_plan import best_split, cluster_plan, version_broadcast
from pipeline.run.cluster_report import report
from pipeline.run.devices import DEVICES
from pipeline.run.workload import Workload

TYPICAL_DOCUMENT = 28000  # tokens: that of the paper's training data
TYPICAL_QUESTION = 64  # tokens


def main(arguments: list[str]) -> int:
    """Print the plan; return the exit status."""
    if asks_for_help(arguments):
        return show_help(__doc__, PlanConfig)
    try:
        config = load_plan_config(arguments)
        sizes = architecture(config)
        if sizes is None:
            raise ConfigError(
                f"model.path={config.model.path}: the model's sizes are unknown; name a folder with its files"
            )
        rates = rates_of(config, sizes)
        tokens, document = mean_document(config)
        workload = workload_of(config, tokens)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    broadcast = version_broadcast(config, sizes)
    plan = cluster_plan(config, sizes, workload, rates, broadcast)
    best = best_split(config, sizes, workload, rates, broadcast)
    print(report(config, sizes, plan, rates, document, best))
    for fault in plan.faults:
        print(f"does not fit: {fault}", file=sys.stderr)
    return 1 if plan.faults else 0


def rates_of(config: PlanConfig, sizes: Architecture) -> Rates:
    """The rates of the cluster's devices. Raises `ConfigError` if none were measured for this model on a CPU."""
    if config.cluster.device != CPU:
        return gpu_rates(DEVICES[config.cluster.device])
    measured = MEASURED.get((sizes.parameters, config.model.dtype))
    if measured is None:
        known = ", ".join(f"{parameters:,} parameters in {dtype}" for parameters, dtype in MEASURED)
        raise ConfigError(
            f"cluster.device={CPU}: nothing was measured for {sizes.parameters:,} parameters in {config.model.dtype}, "
            f"only for {known}"
        )
    return measured


def mean_document(config: PlanConfig) -> tuple[int, str]:
    """Tokens of the mean document, and the same in words."""
    if config.cluster.document_tokens:
        return config.cluster.document_tokens, f"{config.cluster.document_tokens:,} tokens"
    if config.data.source == "synthetic":
        tokens = config.data.synthetic_chunks * config.agent.chunk_tokens
        return tokens, f"{tokens:,} tokens (data.synthetic_chunks)"
    if tokens := document_tokens(config) or 0:
        return tokens, f"about {tokens:,} tokens (data.path)"
    return TYPICAL_DOCUMENT, f"{TYPICAL_DOCUMENT:,} tokens (assumed; set cluster.document_tokens or data.path)"


def workload_of(config: PlanConfig, document: int) -> Workload:
    """A group's conversations, for a document of so many tokens."""
    a, c = config.agent, config.cluster
    chunks = ceil(document / a.chunk_tokens)
    template = load_template(a.prompt_template)
    if Path(config.model.path).is_dir():
        tokenizer, _ = load_model_files(config.model)
        prompts = Prompts(tokenizer, template, MemoryAgent.slots)
        layouts = {name: prompts.layout(name) for name in MemoryAgent.slots}
        empty = len(prompts.empty_memory)
    else:
        layouts = {
            name: estimated_layout(template, name, slots, CHARACTERS_OF_A_TOKEN)
            for name, slots in MemoryAgent.slots.items()
        }
        empty = round(len(template.empty_memory or "") / CHARACTERS_OF_A_TOKEN)
    return Workload(
        chunks=chunks,
        group_size=config.train.group_size,
        distinct=c.distinct_memories or config.train.group_size,
        problem=c.problem_tokens or min(TYPICAL_QUESTION, a.problem_tokens),
        chunk=ceil(document / chunks),
        memory=c.memory_tokens or ceil(a.memory_tokens / 2),
        empty=empty,
        answer=c.answer_tokens or ceil(a.answer_tokens / 2),
        reading=layouts["memory"],
        answering=layouts["answer"],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
