"""`jobs.gpu_check` by its own command on a CPU: without Ray and vLLM, and whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "vllm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""


def checked(output: Path, *arguments: str, **environment: str) -> tuple[int, dict[tuple[str, str], dict], str]:
    """The exit status, the results by part and check, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.gpu_check", "device=cpu", "limit_s=1800", f"output={output}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    logs = "".join(f"\n{log}:\n{log.read_text()[-2000:]}" for log in output.parent.glob("*.log"))
    results = json.loads(output.read_text())["results"] if output.exists() else []
    return done.returncode, {(r["part"], r["check"]): r for r in results}, done.stdout + logs


def test_machine_learner_and_attention_run_where_ray_and_vllm_are_not_installed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    status, results, said = checked(
        tmp_path / "out" / "results.json",
        "parts=[machine,learner,attention]",
        "length=128",
        PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
    )
    assert status == 0, said
    states = {check: result["state"] for check, result in results.items()}
    assert {check for check, state in states.items() if state == "skipped"} == {
        ("machine", "import ray"),
        ("machine", "import vllm"),
        ("machine", "compiler"),
        ("learner", "Liger's kernels take the same step"),
        *(("attention", f"{kernel}, {name}") for kernel in ("varlen", "trees") for name in ("fa3", "fa4")),
    }
    assert set(states.values()) == {"passed", "skipped"}
    assert {name for part, name in states if part == "learner"} == {
        "write the model",
        "plain step",
        "ZeRO-3 step equals the plain step",
        "buffers of a plain load",
        "MFU",
        "a checkpoint resumes with the same step",
        "Liger's kernels take the same step",
    }
    assert "| learner | MFU | passed |" in said


@pytest.mark.parametrize("part", ["engine", "training"])
def test_engine_and_training_pass_on_a_cpu(tmp_path, part):
    status, results, said = checked(tmp_path / "results.json", f"parts=[{part}]", RAY_ADDRESS="local")
    assert status == 0, said
    states = {name: result["state"] for (_, name), result in results.items()}
    expected = {
        "engine": {
            "write the models": "passed",
            "start": "passed",
            "CUDA graphs": "skipped",
            "samples": "passed",
            "three updates while requests run": "passed",
            "samples after the updates": "passed",
            "log-probs before the updates": "passed",
            "log-probs after the updates": "passed",
            "tensor parallel 2": "skipped",
        },
        "training": {"reward rises in 20 steps": "passed"},
    }
    assert states == expected[part]
