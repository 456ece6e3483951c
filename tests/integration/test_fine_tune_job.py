"""The shipped start of the embedded default: it is what its recipe makes. And the job that made it."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import CONFIGS
from pipeline.fine_tuning.record import RECORD
from pipeline.run.metric_names import FINE_TUNING_KEYS
from tests.support.faults import run_job

TINY = CONFIGS / "models" / "tiny"
STEPS = 50
SAVED = 30  # between two points of the curve


@pytest.fixture(scope="module")
def fine_tune(shared_ray):
    """Runs the job to its end; returns its exit status and what it printed."""

    def run(folder: Path, *arguments: str) -> tuple[int, str]:
        settings = (f"run.folder={folder}", "run.name=run", "wandb.mode=disabled")
        return run_job("jobs.fine_tune", *settings, *arguments, environment=shared_ray)

    return run


@pytest.fixture(scope="module")
def shipped() -> dict:
    return json.loads((TINY / RECORD).read_text())


@pytest.fixture(scope="module")
def again(fine_tune, tmp_path_factory) -> Path:
    """The folder of a run with the shipped recipe that was stopped early."""
    folder = tmp_path_factory.mktemp("runs")
    status, output = fine_tune(folder, f"fine_tuning.stop_after={STEPS}", f"fine_tuning.checkpoint_every={SAVED}")
    assert status == 0, output
    return folder / "run"


def test_the_recipe_repeats_the_data_and_the_losses_of_the_record(shipped, again):
    summary = json.loads((again / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["steps"] == STEPS and summary["error"] is None
    record = json.loads((Path(summary["checkpoint"]) / "hf" / RECORD).read_text())
    recorded = [point for point in shipped["curve"] if point["step"] <= STEPS]
    assert [point["data_sha256"] for point in record["curve"]] == [point["data_sha256"] for point in recorded]
    losses = [point["loss"] for point in record["curve"]]
    assert losses == pytest.approx([point["loss"] for point in recorded], rel=0.02)
    assert losses[0] > 1.2 * losses[-1]


def test_a_run_that_was_stopped_goes_on_where_it_was(fine_tune, again, tmp_path):
    """Data and losses are those of a run that was not stopped; other data are refused."""
    shutil.copytree(again, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))  # as if killed before
    status, output = fine_tune(tmp_path, f"fine_tuning.stop_after={STEPS}")
    assert status == 2 and "resume that run with resume=auto" in output
    status, output = fine_tune(tmp_path, "resume=auto", "run.seed=1")
    assert status == 1 and f"the first {SAVED} steps would get other data" in output
    status, output = fine_tune(tmp_path, f"fine_tuning.stop_after={STEPS}", "fine_tuning.keep_last=1", "resume=auto")
    assert status == 0 and f"· resuming after step {SAVED}" in output, output
    resumed, whole = (
        json.loads((run / f"checkpoints/{STEPS}/hf" / RECORD).read_text()) for run in (tmp_path / "run", again)
    )
    assert resumed["tokens"] == whole["tokens"] and resumed["data_sha256"] == whole["data_sha256"]
    for one, other in zip(resumed["curve"], whole["curve"], strict=True):
        assert one == other | {"loss": pytest.approx(other["loss"], rel=1e-3)}
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(STEPS)]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_a_run_leaves_a_figure_and_a_model_for_plain_transformers(again):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (again / "training.png").stat().st_size > 0
    rows = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} == FINE_TUNING_KEYS
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    folder = again / "checkpoints" / str(STEPS) / "hf"
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == 343_040
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"


def test_conversations_in_a_file_are_learned(fine_tune, tmp_path):
    """From the shipped model: what it says after the prompts becomes more likely, and a bad row is counted once. The
    run is stopped in between, and goes on with another number of ranks."""
    rows = [{"prompt": f"Rex {value}", "response": "Paris Paris ."} for value in ("Rome", "Oslo", "Lima", "Cairo") * 5]
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "Rex"}])) + "\n")
    arguments = [
        "fine_tuning.from_scratch=false",
        "data.source=file",
        f"data.path={path}",
        "learner.optimizer=adamw",
        "fine_tuning.steps=8",
        "fine_tuning.tokens_per_step=60",
        "fine_tuning.record_every=2",
    ]
    status, output = fine_tune(tmp_path, *arguments, "fine_tuning.stop_after=5")
    assert status == 0, output
    status, output = fine_tune(tmp_path, *arguments, "learner.ranks=1", "resume=auto")
    assert status == 0 and "· resuming after step 5" in output, output
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows_quarantined"] == 1
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]


def test_a_wrong_file_is_said_before_anything_starts(fine_tune, tmp_path):
    status, output = fine_tune(tmp_path, "data.source=file", "data.path=nowhere.jsonl")
    assert status == 2 and "nowhere.jsonl" in output
    status, output = fine_tune(tmp_path, "model.path=no-such-folder/model")
    assert status == 2 and "model.path=no-such-folder/model" in output
