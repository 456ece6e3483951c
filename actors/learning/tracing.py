"""Traces of training steps: what a rank's processor and GPU did when, for Perfetto."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


@contextlib.contextmanager
def traced(path: str) -> Iterator[None]:
    """Context manager that writes a trace of what the processor and the GPU do inside; with an empty path, of nothing.

    The trace has names and times of operators and kernels. It has no shapes, values or source lines, so nothing of the
    documents. If it cannot be written, the rank's log says why, and training continues.

    Args:
        path: a file that ends in .json.gz.
    """
    if not path:
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    profiler = profile(activities=activities, record_shapes=False, profile_memory=False, with_stack=False)
    try:
        profiler.start()
    except RuntimeError as error:  # the GPU's counters are in use or not permitted
        log.warning("no trace in %s: %s", path, error)
        yield
        return
    try:
        yield
    finally:
        profiler.stop()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(path)
    except (OSError, RuntimeError) as error:
        log.warning("no trace in %s: %s", path, error)
