"""Compares a small policy with Liger's kernels to a plain one: `python -m tests.support.liger <family>`.

Prints the largest distance of a log-prob, the largest of a parameter's gradient relative to its norm, and how often
Liger's norms, SwiGLUs and rotations were called. The rows share a prefix, and the first layer is checkpointed. Without
a GPU the kernels run in Triton's interpreter.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import liger_kernel.ops.rms_norm as rms_norm  # noqa: E402
import liger_kernel.ops.rope as rope  # noqa: E402
import liger_kernel.ops.swiglu as swiglu  # noqa: E402
import numpy as np  # noqa: E402
import triton.language as tl  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config  # noqa: E402

from pipeline.learning.forest import build_forest  # noqa: E402
from pipeline.learning.liger import use_liger  # noqa: E402
from pipeline.learning.policy import Policy  # noqa: E402

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def complete_interpreter() -> None:
    """Give the interpreter of Triton 3.9 what it lacks: numbers as tensors, and the device library's square root."""
    from triton.runtime import interpreter

    plain = interpreter._implicit_cvt

    def converted(value):
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return plain(value)

    interpreter._implicit_cvt = converted
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)


def policy_of(family: str, liger: bool) -> Policy:
    torch.manual_seed(0)
    sliding = {"sliding_window": None} if family == "mistral" else {}
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**SIZES, **sliding))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    if liger:
        use_liger(model)
    policy = Policy(model.to("cuda" if torch.cuda.is_available() else "cpu"), 0.8)
    policy.checkpoint_activations(1)
    return policy


def results(policy: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs of a row of two conversations that share 10 tokens, and the gradients of their sum."""
    device = policy.model.device
    tokens = torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(1)).to(device)
    positions = torch.cat([torch.arange(25), torch.arange(10, 25)]).to(device)
    forest, _ = build_forest([25, 25], [0, 10])
    logprobs, _ = policy(tokens, positions, torch.arange(39, device=device), tokens[1:], forest)
    logprobs.sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in policy.named_parameters()}


def counted(module, name: str) -> list:
    """Count the calls of a function of a module, in the length of a list."""
    calls, plain = [], getattr(module, name)

    def counting(*arguments, **named):
        calls.append(name)
        return plain(*arguments, **named)

    setattr(module, name, counting)
    return calls


def main(family: str) -> None:
    if not torch.cuda.is_available():
        complete_interpreter()
    plain, expected = results(policy_of(family, liger=False))
    calls = [counted(rms_norm, "rms_norm_forward"), counted(swiglu, "swiglu_forward"), counted(rope, "rope_forward")]
    got, gradients = results(policy_of(family, liger=True))
    distance = max(((gradients[n] - g).norm() / g.norm()).item() for n, g in expected.items() if g.norm())
    print((got - plain).abs().max().item(), distance, *map(len, calls))


if __name__ == "__main__":
    main(sys.argv[1])
