"""What libraries say about nothing: by the reason why it is nothing, the lines.

A job's terminal shows all that its workers print but these lines. All of it is in Ray's logs of the workers.
"""

import re

KNOWN = {
    # vLLM
    "there is no GPU, and on a CPU nothing of ours needs Triton": (
        r"Triton is installed, but doesn't include CPU backend",
        r"Triton is not installed\. triton-cpu is expected",
        r"Model Runner V2 requires Triton",
    ),
    "so it is set (actors/generation/vllm_engine.py)": (
        r"Enforce eager set, disabling torch\.compile",
        r"Inductor compilation was disabled by user settings",
        r"does not officially support disabling chunked prefill",
    ),
    "an engine that is ended has nothing to lose, also in the middle of loading weights": (
        r"\[shutdown\] Process manager: force killing remaining process",
    ),
    "a generator has its process alone": (r"The global random seed is set to \d+\. Since VLLM_ENABLE_V1",),
    "of another kind of models": (r"Reset SSM cache type to float32",),
    "hints for large models on CPUs": (
        r"lib(tcmalloc|iomp) is not found in LD_PRELOAD",
        r"NUMA binding: Using MEMBIND policy",
    ),
    "tokens in, tokens out: our prompts have nothing to render, and name their own stop tokens": (
        r"Passing raw prompts to InputProcessor is deprecated",
        r"Using None for EOS token id because tokenizer is not initialized",
    ),
    "a table that is computed and a head that is tied have no weights of their own": (
        r"(RotaryEmbedding|ParallelLMHead): Failed to load weights",
    ),
    # torch, called by DeepSpeed and vLLM
    "the callers are pinned to this torch": (
        r"FutureWarning: `torch\.distributed\.\w+` is deprecated",
        r"^  return func\(\*args, \*\*kwargs\)",  # the second lines of these
        r"^  if hasattr\(value, \"__dict__\"\):",
        r"^  wrapper = lookup\(",
    ),
    # Ray
    "said of any thread of an actor with an event loop; ours reads Ray Data in one": (
        r"Using blocking ray\.get inside async actor",
    ),
    "no tip is due at every start": (r"Tip: use `ray status` to view detailed cluster status",),
    # wandb
    "the job itself says where its run is": (
        r"wandb: *$",
        r"wandb: .{0,3}(Tracking run with|W&B syncing is set to|Run data is saved|View this run in|Find logs at)",
        r"wandb: .{0,3}(Syncing run|View project at|View run|Synced \d+ W&B file)",
        r"wandb: WARNING URL not available in offline run",
    ),
}
_ANY = re.compile("|".join(f"(?:{pattern})" for patterns in KNOWN.values() for pattern in patterns))


def is_noise(line: str) -> bool:
    """Whether a worker's line is one of the known."""
    return bool(_ANY.search(line))


def hush_workers() -> None:
    """Keep the known lines out of what Ray prints of this job's workers; called once Ray is joined."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as printers

    for name, show in list(printers.handlers):
        printers.remove_handler(name)
        printers.add_handler(name, lambda data, show=show: _show_rest(data, show))


def _show_rest(data: dict, show) -> None:
    lines = [line for line in data["lines"] if not is_noise(line)]
    if lines:
        show({**data, "lines": lines})
