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


def fake(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("uv", ["works", "fails", "is not there"])
def test_uv_installs_what_pip_would_from_where_pip_would_and_pip_does_where_uv_cannot(checkout, tmp_path, uv):
    calls = tmp_path / "calls"
    fake(
        checkout / ".venv/bin/uv.made", f'echo "uv $UV_DEFAULT_INDEX $UV_INDEX $*" >>{calls}; exit {int(uv == "fails")}'
    )
    bring_uv = "exit 1" if uv == "is not there" else "cp .venv/bin/uv.made .venv/bin/uv"
    settings = "global.index-url='https://not-mine.example/simple'\n"
    settings += r"global.extra-index-url='https://a.example/simple\nhttps://b.example/simple'"
    fake(
        checkout / ".venv/bin/python",
        f"""case "$*" in
            *uv.txt*) {bring_uv};;
            *"config list"*) echo ":env:.index-url='https://mine.example/simple'"; echo "{settings}";;
            *) echo "pip $*" >>{calls};;
        esac""",
    )
    done = install(checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv/installed").exists()
    torch, lock = "torch==2.13.0+cpu", "-r requirements/cpu.txt"
    made = [line for line in calls.read_text().splitlines() if "-c import" not in line]
    by_uv = [line for line in made if line.startswith("uv ")]
    by_pip = [line for line in made if line.startswith("pip ")]
    assert [any(what in line for line in by_uv) for what in (torch, lock)] == [uv != "is not there"] * 2
    assert [any(what in line for line in by_pip) for what in (torch, lock)] == [uv != "works"] * 2
    assert all("--no-deps" in line for line in made)
    places = "uv https://mine.example/simple https://a.example/simple https://b.example/simple "
    assert all(line.startswith(places) for line in by_uv)


@pytest.mark.parametrize("lock", ["cpu", "gpu", "smollm2", "uv"])
def test_every_requirement_is_pinned(lock):
    lines = (ROOT / f"requirements/{lock}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith(("#", "--"))]
    assert pins and all(pin.count("==") == 1 for pin in pins)
    assert not {"torchvision", "torchaudio"} & {pin.partition("==")[0] for pin in pins} or lock == "gpu"
