"""Write the hashes of every pin into the locks. Run it after a version in a lock was changed.

    python requirements/hashes.py [cpu gpu dev documents serving browser smollm2 peers uv]

It needs Python 3.11, uv on the PATH, and PyPI. The hashes of a pin are those of all files of that version on PyPI that
Linux x86-64 with Python 3.11 or 3.12 may install; a mirror of PyPI serves the same files. A version that PyPI does not
have (torch==…+cpu) keeps the hashes that stand there: copy them from the links of PyTorch's own index, which end in
#sha256=….
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LOCKS = ("cpu", "gpu", "dev", "documents", "serving", "browser", "smollm2", "peers", "uv")
PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_40"
# A pin and the hashes that follow it.
PIN = re.compile(r"^(?P<pin>[\w.-]+==[^\s\\]+)(?P<hashes>(?: \\\n    --hash=sha256:\w+)*)$", re.MULTILINE)


def main(names: list[str]) -> None:
    for lock in [FOLDER / f"{name}.txt" for name in names or LOCKS]:
        text = lock.read_text(encoding="utf-8")
        lock.write_text(with_hashes(text, hashes_on_pypi(without_hashes(text))), encoding="utf-8")


def without_hashes(lock: str) -> str:
    """The lock as uv shall resolve it: without hashes, and without versions that PyPI does not have."""
    return PIN.sub(lambda match: "" if "+" in match["pin"] else match["pin"], lock)


def with_hashes(lock: str, hashes: dict[str, set[str]]) -> str:
    """The lock with these hashes, by pin in lower case and with hyphens; the other pins stay as they are."""

    def renewed(match: re.Match) -> str:
        found = hashes.get(match["pin"].lower().replace("_", "-"))
        return match["pin"] + "".join(f" \\\n    --hash=sha256:{h}" for h in sorted(found)) if found else match[0]

    return PIN.sub(renewed, lock)


def hashes_on_pypi(lock: str) -> dict[str, set[str]]:
    """The hashes of all files of each pin that may be installed, as uv finds them."""
    hashes: dict[str, set[str]] = {}
    for python in PYTHONS:
        command = ["uv", "pip", "compile", "--quiet", "--no-config", "--no-deps", "--format=pylock.toml"]
        command += [f"--python-version={python}", f"--python-platform={PLATFORM}", "-"]
        done = subprocess.run(command, input=lock, stdout=subprocess.PIPE, text=True, check=True)
        for package in tomllib.loads(done.stdout)["packages"]:
            files = package.get("wheels") or [package["sdist"]]
            pin = f"{package['name']}=={package['version']}"
            hashes.setdefault(pin, set()).update(file["hashes"]["sha256"] for file in files)
    return hashes


if __name__ == "__main__":
    main(sys.argv[1:])
