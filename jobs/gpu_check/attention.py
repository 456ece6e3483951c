"""The kernels of attention at the model's sizes: each against float32, and timed, forward and backward.

The same conversations are computed as

- padded: a padded batch in torch's scaled dot-product attention, as transformers calls it,
- varlen: the learner's attention of rows in which nothing is shared,
- trees: the learner's attention of rows in which a shared prefix is computed once.

On a GPU, varlen and trees are computed with torch's own flash attention, then with fa3 and fa4 if they can be used, and
trees with the learner's padded batches. The first check says which of them `model.attention=auto` chooses.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jobs.gpu_check.report import Measured, Report, Skipped
from jobs.gpu_check.samples import model_settings, random_group
from jobs.gpu_check.settings import Settings
from pipeline.errors import reason_of
from pipeline.learning.attention import forest_attention, parts_of
from pipeline.learning.attention_choice import AUTO, PADDED, obstacle
from pipeline.learning.flash_attention import Heads, activate, select_attention
from pipeline.learning.forest import Forest, build_forest
from pipeline.rollout.prefix_tree import PrefixTree

# Distance to float32, relative to the norm: of outputs and of the gradients of queries, keys and values.
TOLERANCE = {"bfloat16": 0.02, "float32": 1e-5}
TIMED = 5  # passes, after one for warm-up
OWN, OTHERS = "fa2", ("fa3", "fa4")  # torch's flash attention, and what may take its place

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Rows:
    """Some conversations, and their tokens in a row in which each shared prefix is once.

    forest    the row, of T tokens
    places    int64 [N]  place in the row of each token of one conversation after the other
    lengths   tokens of each conversation
    """

    forest: Forest
    places: torch.Tensor
    lengths: list[int]

    @property
    def ends(self) -> list[int]:
        return np.cumsum([0, *self.lengths]).tolist()

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of the row [T, …] as those of one conversation after the other, [N, …]."""
        return x[self.places]

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """Sum what belongs to the same token of the row: [N, …] to float32 [T, …]."""
        total = x.new_zeros(self.forest.tokens, *x.shape[1:], dtype=torch.float32)
        return total.index_add_(0, self.places, x.float())


def rows_of(settings: Settings) -> Rows:
    group = random_group(settings, seed=0)
    tree = PrefixTree.of([group.inputs(c) for c in range(len(group.lengths))])
    forest, places = build_forest(tree.lengths.tolist(), tree.shared.tolist())
    return Rows(forest, torch.as_tensor(np.concatenate(places), device=settings.device), tree.lengths.tolist())


class Kernel:
    """A way to compute the attention of the same tokens.

    Args:
        rows: the conversations.
        dtype: of queries, keys and values.
    """

    def __init__(self, rows: Rows, dtype: torch.dtype):
        self.rows = rows

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of the row [T, …], laid out as the kernel takes them."""
        return self.rows.apart(x)

    def take_gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The gradient of the outputs of one conversation after the other [N, …], laid out as the outputs."""
        return x

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The outputs, from what `take` returned."""
        raise NotImplementedError

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Undo the layout of outputs: [N, …]."""
        return x

    def gradients(self, x: torch.Tensor) -> torch.Tensor:
        """Gradients of what `take` returned as those of the row, float32 [T, …]."""
        return self.rows.together(x)


class Exact(Kernel):
    """One conversation after the other, by torch's plain formula; on a GPU, where its scores would not fit, by the
    memory-efficient kernel."""

    def attend(self, query, key, value):
        ends, groups = self.rows.ends, query.shape[1] // key.shape[1]
        outputs = []
        for start, end in zip(ends, ends[1:], strict=False):
            q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if q.is_cuda else SDPBackend.MATH):
                outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1))
        return torch.cat(outputs)


class Padded(Kernel):
    def __init__(self, rows: Rows, dtype: torch.dtype):
        super().__init__(rows, dtype)
        lengths = torch.tensor(rows.lengths, device=rows.places.device)
        steps = torch.arange(max(rows.lengths), device=rows.places.device)
        self._is_token = steps < lengths[:, None]  # the padding follows each conversation, so no token sees it

    def take(self, x):
        return self._padded(self.rows.apart(x))

    def take_gradient(self, x):
        return self._padded(x)

    def _padded(self, x):
        batch = x.new_zeros(*self._is_token.shape, *x.shape[1:])
        batch[self._is_token] = x
        return batch

    def attend(self, query, key, value):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    def outputs(self, x):
        return x[self._is_token]

    def gradients(self, x):
        return self.rows.together(x[self._is_token])


class Varlen(Kernel):
    def __init__(self, rows: Rows, dtype: torch.dtype):
        super().__init__(rows, dtype)
        device = rows.places.device
        self._parts = parts_of(self.forest(), device, self.kernels(device))

    def kernels(self, device: torch.device) -> str:
        return OWN if device.type == "cuda" else PADDED

    def forest(self) -> Forest:
        return Forest(tuple(self.rows.ends))

    def attend(self, query, key, value):
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return forest_attention(None, q, k, v, None, forest=self._parts)[0][0]


class Trees(Varlen):
    def forest(self):
        return self.rows.forest

    def take(self, x):
        return x

    def take_gradient(self, x):
        return self.rows.together(x).to(x.dtype)

    def outputs(self, x):
        return self.rows.apart(x)

    def gradients(self, x):
        return x.float()


class PaddedTrees(Trees):
    def kernels(self, device):
        return PADDED


LEARNERS: dict[str, type[Kernel]] = {"varlen": Varlen, "trees": Trees}


def run(settings: Settings, folder: Path, report: Report) -> None:
    rows, dtype = rows_of(settings), getattr(torch, settings.dtype)
    inputs, upstream = tensors_of(settings, rows)
    wide = torch.float32 if settings.on_gpu else torch.float64
    exact = results(Exact(rows, wide), [x.to(wide) for x in inputs], upstream.to(wide))
    with report.check("model.attention=auto") as measured:
        chosen = select_attention(AUTO, torch.device(settings.device), dtype, heads_of(settings))
        activate(PADDED)
        measured.note(str(chosen))
    kernels: dict[str, type[Kernel]] = {"padded": Padded, **LEARNERS}
    if settings.on_gpu:  # elsewhere they are the same as trees
        kernels["trees, padded"] = PaddedTrees
    for name, kernel in kernels.items():
        with contextlib.suppress(Exception), report.check(name) as measured:  # the others do not depend on it
            measure(kernel(rows, dtype), inputs, upstream, exact, settings, measured)
    for other in OTHERS:
        for name, kernel in LEARNERS.items():
            with report.check(f"{name}, {other}") as measured, activated(other, settings):
                try:
                    measure(kernel(rows, dtype), inputs, upstream, exact, settings, measured)
                except Exception as error:  # torch calls these kernels prototypes
                    raise Skipped(f"not available: {reason_of(error)}") from error


def heads_of(settings: Settings) -> Heads:
    sizes = model_settings(settings)
    heads = sizes["num_attention_heads"]
    return Heads(heads, sizes["num_key_value_heads"], sizes["hidden_size"] // heads)


def tensors_of(settings: Settings, rows: Rows) -> tuple[Tensors, torch.Tensor]:
    """Queries, keys and values of the row, [T, heads, D], and the gradient of the outputs, [N, heads, D]."""
    dtype, (heads, key_heads, width) = getattr(torch, settings.dtype), heads_of(settings)
    torch.manual_seed(0)
    shapes = [(rows.forest.tokens, n, width) for n in (heads, key_heads, key_heads)]
    made = [torch.randn(shape).to(settings.device, dtype) for shape in [*shapes, (len(rows.places), heads, width)]]
    return tuple(made[:3]), made[3]


def results(kernel: Kernel, inputs: Sequence[torch.Tensor], upstream: torch.Tensor) -> Tensors:
    """The outputs [N, heads, D], and the gradients of the row's queries, keys and values, float32 [T, heads, D]."""
    leaves = [kernel.take(x).detach().requires_grad_() for x in inputs]
    out = kernel.attend(*leaves)
    gradients = torch.autograd.grad(out, leaves, kernel.take_gradient(upstream))
    return kernel.outputs(out.detach()).float(), *map(kernel.gradients, gradients)


def measure(
    kernel: Kernel,
    inputs: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    exact: Tensors,
    settings: Settings,
    measured: Measured,
) -> None:
    """Compare a kernel to the exact results, then time it."""
    got = results(kernel, inputs, upstream)
    for name, mine, theirs in zip(("output", "of queries", "of keys", "of values"), got, exact, strict=True):
        measured.at_most(name, float((mine - theirs).norm() / theirs.norm()), TOLERANCE[settings.dtype])
    leaves = [kernel.take(x).detach().requires_grad_() for x in inputs]
    gradient, seconds = kernel.take_gradient(upstream), []
    for _ in range(1 + TIMED):
        synchronize(settings)
        begin = time.perf_counter()
        torch.autograd.grad(kernel.attend(*leaves), leaves, gradient)
        synchronize(settings)
        seconds.append(time.perf_counter() - begin)
    measured.note(f"{1000 * statistics.median(seconds[1:]):.2f} ms")


@contextlib.contextmanager
def activated(name: str, settings: Settings) -> Iterator[None]:
    """Context manager in which torch's flash attention is another one.

    Raises:
        Skipped: it is not available.
    """
    capability = torch.cuda.get_device_capability() if settings.on_gpu else None
    if why := obstacle(name, capability, settings.dtype, heads_of(settings).size):
        raise Skipped(f"not available: {why}")
    try:
        activate(name)
    except Exception as error:  # whatever the import of its package raises
        raise Skipped(f"not available: {reason_of(error)}") from error
    try:
        yield
    finally:
        activate(PADDED)


def synchronize(settings: Settings) -> None:
    if settings.on_gpu:
        torch.cuda.synchronize()
