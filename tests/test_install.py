"""requirements/install.sh, as far as it goes without installing anything."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def install(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [checkout / "requirements/install.sh"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_a_wrong_python_is_refused_with_what_to_install(checkout):
    done = install(checkout, PYTHON="/bin/false")
    assert done.returncode != 0
    assert "Python 3.11 or 3.12" in done.stderr and "apt-get install python3.11" in done.stderr
    assert not (checkout / ".venv").exists()


def test_nothing_happens_when_the_lock_is_installed_already(checkout):
    (checkout / ".venv").mkdir()
    checksum = hashlib.sha256((checkout / "requirements/cpu.txt").read_bytes()).hexdigest()
    (checkout / ".venv/installed").write_text(f"cpu {checksum}\n")
    done = install(checkout, PYTHON="/bin/false")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("lock", ["cpu", "gpu", "smollm2"])
def test_every_requirement_is_pinned(lock):
    lines = (ROOT / f"requirements/{lock}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith(("#", "--"))]
    assert pins and all(pin.count("==") == 1 for pin in pins)
    assert not {"torchvision", "torchaudio"} & {pin.partition("==")[0] for pin in pins} or lock == "gpu"
