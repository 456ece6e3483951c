"""Commands that only print are quick: they import nothing heavy."""

import subprocess
import sys

import pytest

from pipeline.config import CONFIGS


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("jobs.train --help", "max_staleness: 1"),
        ("jobs.submit --help", "max_staleness: 1"),
        ("jobs.evaluate --help", "top_p: 0.95"),
        ("jobs.fine_tune --help", "stop_after: 0"),
        ("jobs.figures --help", "at_once: 1"),
        ("jobs.prepare --help", "hotpotqa"),
        ("jobs.prepare hotpotqa --help", "documents: 200"),
        ("jobs.prepare filter --help", "output: ???"),
        ("jobs.submit preset=tiny --dry-run", "343,040 parameters"),
        ("jobs.train preset=tiny --dry-run", "343,040 parameters"),
        ("jobs.evaluate preset=eval_tiny --dry-run", "synthetic_count: 256"),
    ],
)
def test_what_only_prints_imports_nothing_heavy(command, key):
    """Its seconds would be those of torch, transformers' models, Ray or matplotlib: a user who asks should not wait."""
    module, *arguments = command.split()
    heavy = ("torch", "vllm", "deepspeed", "matplotlib", "ray")
    program = f"import runpy, sys; sys.argv = {[module, *arguments]!r}\n"
    program += f"try: runpy.run_module({module!r}, run_name='__main__')\n"
    program += f"finally: print('heavy:', [m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=CONFIGS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert key in done.stdout and done.stdout.endswith("heavy: []\n")
