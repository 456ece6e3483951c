"""The commands of docs/extending.md, as they stand there, beside its example files."""

import importlib
import shlex

import pytest

from pipeline.config import CONFIGS
from tests.support.examples import PAGE, write_examples

LINES = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python -m jobs.") and "…" not in line]


def test_the_page_has_a_command_for_what_no_tutorial_adds():
    wanted = ("my_advantages:", "gated_memory.yaml", "my_objective:", "shared_folder:")
    assert all(any(name in command for command in COMMANDS) for name in wanted)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_accepted(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_examples(tmp_path, monkeypatch))
    (tmp_path / "configs").symlink_to(CONFIGS)
    module, *arguments = shlex.split(command.removeprefix("python -m "))
    assert importlib.import_module(module).main([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
