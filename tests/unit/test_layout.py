"""The layout that docs/architecture.md draws: imports run down only, and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("pipeline", "actors", "jobs")  # from the lowest
ROLES = ("actors.generation", "actors.scoring", "actors.learning")


def modules() -> dict[str, Path]:
    files = (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Our modules that a file imports, wherever it does; a package only where nothing more is named."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {node.module}
    return found & MODULES.keys()


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    """The folder below a floor, `pipeline.data`; a module beside those stands for itself."""
    name = ".".join(module.split(".")[:2])
    return name if (ROOT / name.replace(".", "/")).is_dir() else module


def test_imports_run_down_only():
    upward = {
        (name, other)
        for name, imported in IMPORTS.items()
        for other in imported
        if FLOORS.index(other.split(".")[0]) > FLOORS.index(name.split(".")[0])
    }
    assert not upward


def test_no_import_runs_in_a_circle_not_even_between_packages():
    TopologicalSorter(IMPORTS).prepare()
    packages: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        mine = package_of(name)
        packages.setdefault(mine, set()).update({package_of(other) for other in imported} - {mine})
    for floor in FLOORS:
        packages.pop(floor, None)
    TopologicalSorter(packages).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("role", ROLES)
def test_the_roles_of_actors_import_nothing_of_each_other(role):
    others = tuple(f"{other}." for other in ROLES if other != role)
    mixed = {(n, o) for n, all_of in IMPORTS.items() if n.startswith(role) for o in all_of if o.startswith(others)}
    assert not mixed


def test_the_first_level_of_jobs_is_started_by_people():
    for path in (ROOT / "jobs").glob("*.py"):
        if path.name != "__init__.py":
            assert '__name__ == "__main__"' in path.read_text(encoding="utf-8"), f"{path} is started by nobody"
