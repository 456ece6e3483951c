"""Harmless lines that libraries print, listed by the reason why they are harmless.

A job's terminal shows its workers' output without these lines. Ray's worker logs have all of it.
"""

import re

KNOWN = {
    # vLLM
    "no GPU, and nothing here needs Triton on a CPU": (
        r"Triton is installed, but doesn't include CPU backend",
        r"Triton is not installed\. triton-cpu is expected",
        r"Model Runner V2 requires Triton",
    ),
    "set on purpose (actors/generation/vllm_engine.py)": (
        r"Enforce eager set, disabling torch\.compile",
        r"Inductor compilation was disabled by user settings",
        r"does not officially support disabling chunked prefill",
    ),
    "an engine can be killed at any time, even while loading weights: it holds nothing to lose": (
        r"\[shutdown\] Process manager: force killing remaining process",
    ),
    "a generator does not share its process": (r"The global random seed is set to \d+\. Since VLLM_ENABLE_V1",),
    "about another kind of model": (r"Reset SSM cache type to float32",),
    "hints for large models on CPUs": (
        r"lib(tcmalloc|iomp) is not found in LD_PRELOAD",
        r"NUMA binding: Using MEMBIND policy",
    ),
    "tokens in, tokens out: prompts need no rendering and carry their stop tokens": (
        r"Passing raw prompts to InputProcessor is deprecated",
        r"Using None for EOS token id because tokenizer is not initialized",
    ),
    "a computed table and a tied head have no weights of their own": (
        r"(RotaryEmbedding|ParallelLMHead): Failed to load weights",
    ),
    # torch, called by DeepSpeed and vLLM
    "the callers are pinned to this torch": (
        r"FutureWarning: `torch\.distributed\.\w+` is deprecated",
        r"^  return func\(\*args, \*\*kwargs\)",  # the second lines of these warnings
        r"^  if hasattr\(value, \"__dict__\"\):",
        r"^  wrapper = lookup\(",
    ),
    # Ray
    "printed for any thread of an actor with an event loop; one of them reads Ray Data": (
        r"Using blocking ray\.get inside async actor",
    ),
    "said by Ray Serve when a server starts or ends": (
        r"Cannot deregister autoscaling state for deployment",
        r"Task ServeController\.graceful_shutdown failed",
    ),
    "gRPC's, of the fork that starts an engine on a CPU, which uses no gRPC": (r"skipping fork\(\) handlers",),
    "a tip, repeated at every start": (r"Tip: use `ray status` to view detailed cluster status",),
    # wandb
    "the job prints the location of its wandb run itself": (
        r"wandb: *$",
        r"wandb: .{0,3}(Tracking run with|W&B syncing is set to|Run data is saved|View this run in|Find logs at)",
        r"wandb: .{0,3}(Syncing run|View project at|View run|Synced \d+ W&B file)",
        r"wandb: WARNING URL not available in offline run",
    ),
}
_ANY = re.compile("|".join(f"(?:{pattern})" for patterns in KNOWN.values() for pattern in patterns))


def is_noise(line: str) -> bool:
    """Whether a worker's line is one of the known harmless ones."""
    return bool(_ANY.search(line))


def hush_workers() -> None:
    """Filter the known lines from the worker output that Ray prints. Call it after `ray.init`."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as printers

    for name, show in list(printers.handlers):
        printers.remove_handler(name)
        printers.add_handler(name, lambda data, show=show: _show_rest(data, show))


def mute_workers() -> None:
    """Print nothing more of workers: when all of them are ended, some complain. Their logs keep it."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as printers

    for name, _ in list(printers.handlers):
        printers.remove_handler(name)


def _show_rest(data: dict, show) -> None:
    lines = [line for line in data["lines"] if not is_noise(line)]
    if lines:
        show({**data, "lines": lines})
