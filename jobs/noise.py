"""What libraries say about nothing, by name, with the reason why it is nothing.

A job's terminal shows all that its workers print but these lines. All of it is in Ray's logs of the workers.
"""

import re

# What Ray forwards is (name pid=…) and then the line as the worker printed it.
KNOWN = {
    # vLLM
    r"Triton is installed, but doesn't include CPU backend": "there is no GPU, and on a CPU nothing of ours needs Triton",
    r"Triton is not installed\. triton-cpu is expected": "likewise",
    r"Model Runner V2 requires Triton": "likewise; the runner that it takes instead is the one that we test",
    r"The global random seed is set to \d+\. Since VLLM_ENABLE_V1_MULTIPROCESSING": "the generator has its process alone",
    r"does not officially support disabling chunked prefill": "it is disabled on purpose (actors/vllm_engine.py)",
    r"Enforce eager set, disabling torch\.compile": "that is what generator.enforce_eager says",
    r"Inductor compilation was disabled by user settings": "likewise",
    r"Reset SSM cache type to float32": "of another kind of models",
    r"lib(tcmalloc|iomp) is not found in LD_PRELOAD": "a hint for large models on CPUs",
    r"NUMA binding: Using MEMBIND policy": "vLLM allocates on the node that it runs on",
    r"Passing raw prompts to InputProcessor is deprecated": "tokens in, tokens out: our prompts have nothing to render",
    r"Using None for EOS token id because tokenizer is not initialized": "every request names its own stop tokens",
    r"(RotaryEmbedding|ParallelLMHead): Failed to load weights": "tables that are computed, and a head that is tied: "
    "they have none of their own",
    # torch, called by DeepSpeed and vLLM
    r"FutureWarning: `torch\.distributed\.\w+` is deprecated": "its callers are pinned to this torch",
    r"^  (return func\(\*args, \*\*kwargs\)|if hasattr\(value, \"__dict__\"\):|wrapper = lookup\()": "their second lines",
    # Ray
    r"Using blocking ray\.get inside async actor": "said of any thread of such an actor; ours reads Ray Data in one",
    r"Tip: use `ray status` to view detailed cluster status": "no tip is due at every start",
    # wandb: where the run is, the job says itself
    r"wandb: *$": "an empty line",
    r"wandb: .{0,3}(Tracking run with|W&B syncing is set to|Run data is saved|View this run in|Find logs at)": "greetings",
    r"wandb: .{0,3}(Syncing run|View project at|View run|Synced \d+ W&B file)": "likewise",
    r"wandb: WARNING URL not available in offline run": "no run that is offline has one",
}
_KNOWN = re.compile(r"(^|\) |\] |[\s:])(" + "|".join(KNOWN) + ")")


def is_noise(line: str) -> bool:
    """Whether a worker's line is one of the known."""
    return bool(_KNOWN.search(line))


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
