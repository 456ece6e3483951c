"""The order of the files, for `make test`, whose processes take the next file when they have finished one."""

import pytest

# The longest first: one that began last would leave the other process without work.
LONGEST = (
    "recovery",
    "gpu_check",
    "train",
    "fine_tune_job",
    "checkpoints",
    "evaluate",
    "extending_credit",
    "run_folder",
)
ORDER = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}


def place(item: pytest.Item) -> int:
    """After the unit tests; files that are not named keep their order."""
    if "integration" not in item.path.parts:
        return -1
    return ORDER.get(item.path.name, len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)
