"""The evaluation that follows a run: of a run that goes on, of a model in an object store, and what is not drawn."""

from pathlib import Path

import pytest

from jobs.support import run_evaluation
from jobs.support.evaluation import check_folder
from jobs.support.run_evaluation import evaluate_run
from pipeline.config import save_config
from pipeline.evaluation.plots import MOST_PANELS
from pipeline.evaluation.questions import input_states
from pipeline.run.config import load_training_config
from tests.support.result_rows import row, rows_of
from tests.support.run_folders import write_lines


@pytest.fixture
def config():
    return load_training_config(["preset=tiny"])


@pytest.fixture
def evaluated(monkeypatch) -> list:
    """The configurations of the evaluations, each of which leaves `evaluated.rows`."""

    class Evaluated(list):
        rows = rows_of([1, 0])

    done = Evaluated()

    def evaluate(config):
        folder = Path(config.run.folder) / config.run.name
        check_folder(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / "config.yaml")
        write_lines(folder / "results.jsonl", done.rows)
        done.append(config)
        return {"status": "completed"}, folder

    monkeypatch.setattr(run_evaluation, "evaluate", evaluate)
    return done


def checkpoint(folder: Path, step: int) -> str:
    model = folder / str(step) / "hf"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text(f"{name} of step {step}")
    return str(model.parent)


def test_a_run_that_goes_on_is_evaluated_again(tmp_path, config, evaluated):
    for step in (80, 160):
        assert evaluate_run(config, tmp_path, checkpoint(tmp_path / "checkpoints", step)) == 0
    names = [evaluation.run.name for evaluation in evaluated]
    assert names == ["before-RL", "after-RL-80", "before-RL", "after-RL-160"]
    assert (tmp_path / "evaluation/accuracy.md").exists() and (tmp_path / "evaluation/accuracy.png").exists()


def test_a_model_in_a_store_is_copied_once_and_whole(tmp_path, config, evaluated):
    """Else its new times of modification would keep an interrupted evaluation from going on."""
    stores = {step: f"file://{checkpoint(tmp_path / 'store', step)}" for step in (80, 160)}
    cut = tmp_path / "evaluation" / "model-80.partial" / "model.safetensors"
    cut.parent.mkdir(parents=True)
    cut.write_text("mod")  # a copy that was interrupted
    states = []
    for _ in range(2):
        evaluate_run(config, tmp_path, stores[80])
        states.append(input_states(evaluated[-1].data, [], evaluated[-1].model.path, "tiny"))
    assert states[0] == states[1] and len(states[0]) == 2 and not cut.parent.exists()
    for step, store in stores.items():
        evaluate_run(config, tmp_path, store)
        model = Path(evaluated[-1].model.path)
        assert (model / "model.safetensors").read_text() == f"model.safetensors of step {step}"


def test_more_sets_than_a_figure_has_room_for_are_in_the_table(tmp_path, config, evaluated, capsys):
    evaluated.rows = [row(set=f"set {number}") for number in range(MOST_PANELS + 1)]
    assert evaluate_run(config, tmp_path, checkpoint(tmp_path / "checkpoints", 4)) == 0
    table = (tmp_path / "evaluation" / "accuracy.md").read_text()
    printed = capsys.readouterr().out
    assert "| set 64 |" in table and table in printed and not (tmp_path / "evaluation" / "accuracy.png").exists()
    assert "· no figure: 65 sets are too many for one figure, which has room for 64" in printed.splitlines()
