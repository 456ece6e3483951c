"""What the other parts need: a device that computes, packages, room, and a compiler."""

import contextlib
import importlib
import shutil
import subprocess
from pathlib import Path

from jobs.gpu_check.report import Measured, Missed, Report, Skipped
from jobs.gpu_check.samples import model_settings
from jobs.gpu_check.settings import Settings
from pipeline.errors import reason_of
from pipeline.learning.device_memory import architecture_of
from pipeline.weights.bucket_files import SHARED_MEMORY

PACKAGES = {  # distribution and module, and the parts that cannot do without
    "transformers": "learner, attention, engine, training",
    "deepspeed": "learner, training",
    "ray": "engine, training",
    "vllm": "engine, training",
}
GIB = 2**30
DEVICE_GIB = 16.0  # estimate: weights, gradients and optimizer state of the 0.5B model, its activations, and room
# Bytes per parameter. Files: three models, and a checkpoint of weights and optimizer state in float32.
FILES, BUCKETS = 32, 4
TOLERANCE = 0.01  # of a product in bfloat16, relative
LEAST_CAPABILITY = 8.0  # the kernels of attention in bfloat16 need it


def run(settings: Settings, folder: Path, report: Report) -> None:
    with contextlib.suppress(Exception), report.check("device computes") as measured:  # the others do not depend on it
        device(settings, measured)
    if settings.on_gpu:
        with report.check("device memory") as measured:
            free, total = device_memory()
            measured.at_least(f"of {total / GIB:.0f} GiB, free", free / GIB, DEVICE_GIB)
    for package, parts in PACKAGES.items():
        with report.check(f"import {package}") as measured:
            measured.note(version(package, parts))
    architecture = architecture_of(model_settings(settings))
    assert architecture is not None  # Qwen2 is a known family
    for name, place, each in (("shared memory", SHARED_MEMORY, BUCKETS), ("disk", folder, FILES)):
        with report.check(name) as measured:
            room = shutil.disk_usage(place).free / GIB
            measured.at_least(f"{place}, GiB free", room, round(each * architecture.parameters / GIB, 1))
    with report.check("compiler") as measured:
        compiler(settings, measured)


def device(settings: Settings, measured: Measured) -> None:
    """Name the device, and compare a product on it to one in float64."""
    import torch

    measured.note(f"torch {torch.__version__}")
    if settings.on_gpu:
        major, minor = torch.cuda.get_device_capability()
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        measured.note(f"CUDA {torch.version.cuda}, driver {driver()}, {', '.join(names)}")
        measured.at_least("compute capability", major + minor / 10, LEAST_CAPABILITY)
    torch.manual_seed(0)
    dtype = getattr(torch, settings.dtype)
    a, b = (torch.randn(512, 512).to(dtype) for _ in range(2))
    got, exact = (a.to(settings.device) @ b.to(settings.device)).double().cpu(), a.double() @ b.double()
    measured.at_most("error of a product", float((got - exact).norm() / exact.norm()), TOLERANCE)


def driver() -> str:
    """The version of NVIDIA's driver; "unknown" without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "unknown"
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
    except subprocess.TimeoutExpired:
        lines = []
    return lines[0] if lines else "unknown"


def device_memory() -> tuple[int, int]:
    """Free bytes of the first GPU, and all of them."""
    import torch

    return torch.cuda.mem_get_info()


def version(package: str, parts: str) -> str:
    """Import a package; return its version.

    Raises:
        Skipped: it is not installed.
        Missed: it cannot be imported.
    """
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise Skipped(f"not installed; needed by {parts}") from None
        raise Missed(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # a library that was built for another one may raise anything
        raise Missed(f"{type(error).__name__}: {error}") from error
    return module.__version__


def compiler(settings: Settings, measured: Measured) -> None:
    """Compile a function as vLLM compiles its models, with Triton and the C compiler that it calls.

    Raises:
        Skipped: on a CPU, where nothing of this project is compiled.
        Missed: it does not compile.
    """
    found = [f"{name} {'found' if shutil.which(name) else 'missing'}" for name in ("cc", "gcc", "nvcc", "ninja")]
    if not settings.on_gpu:
        raise Skipped(f"nothing is compiled on a CPU; {', '.join(found)}")
    import torch

    measured.note(", ".join(found))

    def function(x):
        return (x.sin() * x).sum(-1)

    x = torch.linspace(0, 9, 2**16, device=settings.device).view(256, 256)
    try:
        got = torch.compile(function)(x)
    except Exception as error:  # of any of the tools
        raise Missed(reason_of(error)) from error
    expected = function(x)
    measured.at_most("error of a compiled function", float((got - expected).norm() / expected.norm()), 1e-4)
