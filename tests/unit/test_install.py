"""requirements/install.sh, as far as it goes without installing anything."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from requirements.hashes import with_hashes, without_hashes

ROOT = Path(__file__).parents[2]


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
    parts = "setuptools", "deepspeed", "torch"
    made = [line for line in calls.read_text().splitlines() if "-c import" not in line]
    by_uv = [line for line in made if line.startswith("uv ")]
    by_pip = [line for line in made if line.startswith("pip ")]
    files = [*(f"/{part}.txt" for part in parts), " requirements/cpu.txt"]
    assert [line.endswith(file) for line, file in zip(by_uv, files, strict=False)] == [True] * 4 * (
        uv != "is not there"
    )
    assert [line.endswith(file) for line, file in zip(by_pip, files, strict=False)] == [True] * 4 * (uv != "works")
    assert all("--no-deps" in line and "--require-hashes" in line for line in made)
    assert all(("--no-build-isolation" in line) == ("deepspeed.txt" in line) for line in made)
    places = "uv https://mine.example/simple https://a.example/simple https://b.example/simple "
    assert all(line.startswith(places) for line in by_uv)


PIN = re.compile(r"[\w.-]+==[^\s\\]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n")


def test_what_is_installed_first_has_the_pin_and_the_hashes_of_the_lock(checkout, tmp_path):
    (tmp_path / "read").mkdir()
    fake(
        checkout / ".venv/bin/python",
        f'for file; do :; done; case "$*" in *"install "*"-r "*) cp "$file" {tmp_path}/read/;; esac',
    )
    assert install(checkout).returncode == 0
    lock = (checkout / "requirements/cpu.txt").read_text()
    read = {path.stem: path.read_text() for path in (tmp_path / "read").iterdir()}
    assert set(read) == {"uv", "setuptools", "deepspeed", "torch", "cpu"} and read["cpu"] == lock
    for part in ("setuptools", "deepspeed", "torch"):
        assert PIN.fullmatch(read[part]) and read[part].startswith(f"{part}==") and read[part] in lock


@pytest.mark.parametrize("lock", ["cpu", "gpu", "dev", "documents", "serving", "browser", "smollm2", "peers", "uv"])
def test_every_requirement_is_pinned_and_has_hashes(lock):
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    pins = [match[0] for match in PIN.finditer(text)]
    rest = [line for line in PIN.sub("", text).splitlines() if not line.startswith(("#", "--"))]
    assert pins and rest == []
    names = {pin.partition("==")[0] for pin in pins}
    assert len(names) == len(pins)
    assert not {"torchvision", "torchaudio"} & names or lock == "gpu"


def test_new_hashes_are_written_into_the_lock_and_nothing_else_is_changed():
    lock = "# A comment.\n--only-binary :all:\nA_b==1.0\n"
    lock += "torch==2+cpu \\\n    --hash=sha256:0f\nz==3 \\\n    --hash=sha256:1e\n"
    assert without_hashes(lock) == "# A comment.\n--only-binary :all:\nA_b==1.0\n\nz==3\n"
    assert with_hashes(lock, {"a-b==1.0": {"b", "a"}, "z==3": {"c"}}) == (
        "# A comment.\n--only-binary :all:\nA_b==1.0 \\\n    --hash=sha256:a \\\n    --hash=sha256:b\n"
        "torch==2+cpu \\\n    --hash=sha256:0f\nz==3 \\\n    --hash=sha256:c\n"
    )
