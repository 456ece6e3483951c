"""What the fine-tuner does before it starts anything: it finds a run's place again, or says why it cannot."""

import asyncio
import hashlib
import json

import pytest

from actors.fine_tuner import MAX_SKIPPED, FineTuner
from actors.learning.rank import Description
from jobs.support.run_folder import check_earlier
from pipeline.alerts import Alert
from pipeline.config import load_config, save_config
from pipeline.data.problem_stream import START
from pipeline.errors import ConfigError, RunFailed
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.examples import pack_examples, respond
from pipeline.fine_tuning.record import RECORD, fine_tuning_record
from pipeline.lease import take_lease
from pipeline.run.checkpoints import MODEL, Checkpoints, RunState, file_entries

STEPS, PLACE = 3, [{"step": 2, "loss": 1.5, "data_sha256": "x"}]
CONFIG = ["preset=fine_tune_tiny", "resume=auto", "fine_tuning.tokens_per_step=8"]


def examples():
    for token in range(1000):
        yield respond([token, 1, 2, 3], [4])


def record() -> dict:
    """Of a run of three steps with `CONFIG` and `examples`."""
    digest, drawn = hashlib.sha256(), examples()
    for _ in range(STEPS):
        pack_examples([next(drawn), next(drawn)]).hash_into(digest)
    made = fine_tuning_record(load_config(CONFIG, FineTuningConfig))
    return made | {"curve": PLACE, "losses": [0.5], "tokens": 30, "data_sha256": digest.hexdigest()}


@pytest.fixture
def resume(tmp_path):
    """Takes up a run that left a record; returns the fine-tuner when it has drawn the data again."""

    def resume(left: dict, *settings: str, stop: bool = False) -> FineTuner:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.begin(STEPS)
        folder = tmp_path / "checkpoints" / str(STEPS)
        (folder / MODEL).mkdir()
        (folder / MODEL / RECORD).write_text(json.dumps(left))
        files = file_entries(folder, [folder / MODEL / RECORD])
        checkpoints.finish(RunState(STEPS, STEPS, START, ranks=2, wandb_id="mine"), files)
        tuner = FineTuner.__ray_metadata__.modified_class(
            load_config([*CONFIG, *settings], FineTuningConfig), str(tmp_path), take_lease(tmp_path)
        )

        async def run() -> None:
            if stop:
                await tuner.stop()
            await tuner.keeper.find()
            await tuner._draw_again(examples(), tuner.keeper.newest)

        asyncio.run(run())
        return tuner

    return resume


def test_a_run_is_taken_up_where_it_was(resume):
    tuner = resume(record(), "learner.ranks=3", "fine_tuning.checkpoint_every=7")
    assert (tuner.step, tuner.tokens, tuner.curve, tuner.losses) == (STEPS, STEPS * 10, PLACE, [0.5])
    assert tuner.wandb_id == "mine" and tuner.digest.hexdigest() == record()["data_sha256"]


def test_other_data_are_refused(resume):
    with pytest.raises(RunFailed, match="the first 3 steps would get other data"):
        resume(record() | {"data_sha256": "other"})


def test_settings_that_determine_the_model_must_not_change(tmp_path):
    def config(*settings: str) -> FineTuningConfig:
        return load_config([*CONFIG, *settings], FineTuningConfig)

    save_config(config(), tmp_path / "config.yaml")
    check_earlier(config("fine_tuning.checkpoint_every=7", "learner.num_cpus=1", "learner.ranks=3"), tmp_path)
    check_earlier(config("model.attention=padded"), tmp_path)
    with pytest.raises(ConfigError, match=r"other values than learner.learning_rate=0.001, fine_tuning.steps=17;"):
        check_earlier(config("learner.learning_rate=1e-3", "fine_tuning.steps=17"), tmp_path)


@pytest.mark.parametrize("left", [{}, {"curve": []}, []])
def test_a_checkpoint_without_a_record_is_refused(resume, left):
    with pytest.raises(RunFailed, match=f"{RECORD} cannot be read"):
        resume(left)


def test_a_damaged_checkpoint_is_not_resumed_from(resume, tmp_path):
    tuner = resume(record())
    (tmp_path / "checkpoints" / str(STEPS) / MODEL / RECORD).write_text("{}")
    with pytest.raises(RunFailed, match="no checkpoint to resume from"):
        asyncio.run(tuner.keeper.find())


def test_a_stop_ends_the_drawing(resume):
    tuner = resume(record(), stop=True)
    assert tuner.drawn == 0 and tuner.step == STEPS and tuner.tokens == 30


def test_a_skipped_step_is_reported_and_many_end_the_run(resume):
    tuner, alerts = resume(record()), []

    class Tracker:
        async def log(self, row: dict) -> None: ...

        def alert(self, alert: Alert) -> None:
            alerts.append((alert.topic, alert))

    class Gang:
        async def train(self, batch) -> list[dict]:
            return [{"loss": float("nan"), "grad_norm": None, "learning_rate": 1.0}]

    tuner.tracker, tuner.gang = Tracker(), Gang()
    with pytest.raises(RunFailed, match=f"{MAX_SKIPPED} steps in a row were skipped"):
        asyncio.run(tuner._train(examples()))
    line = f"· step {STEPS + 1} was skipped: its loss or gradient is not finite"
    assert alerts[0] == ("update skipped", line) and len(alerts) == MAX_SKIPPED


def test_the_losses_of_skipped_steps_are_left_out(resume):
    nan = float("nan")
    tuner, rows = resume(record(), "fine_tuning.record_every=2", "fine_tuning.stop_after=8"), []
    steps = iter([(1.5, 1.0), (nan, None), (2.0, None), (2.5, 1.0), (nan, None)])  # loss, grad_norm of steps 4 to 8

    class Tracker:
        async def log(self, row: dict) -> None:
            rows.append(row)

        def alert(self, alert: Alert) -> None: ...

    class Gang:
        async def train(self, batch) -> list[dict]:
            loss, grad_norm = next(steps)
            return [{"loss": loss, "grad_norm": grad_norm, "learning_rate": 1.0}]

    tuner.tracker, tuner.gang = Tracker(), Gang()
    asyncio.run(tuner._train(examples()))
    assert [row["loss"] for row in rows] == [1.5, None, None, 2.5, None]
    assert [(point["step"], point["loss"]) for point in tuner.curve] == [(2, 1.5), (4, 1.0), (6, None), (8, 2.5)]
    assert [line.split("  ")[1] for line in tuner._lines if line.startswith("step ")] == [
        "loss 1.0000",
        "loss -",
        "loss 2.5000",
    ]


@pytest.mark.parametrize(
    ("device", "settings", "said"),
    [
        (
            "NVIDIA H100",
            [],
            [
                "· learner.checkpoint_layers=auto: 3 layers on NVIDIA H100",
                "· model.attention=auto: on NVIDIA H100 fa2; not fa3: no package",
            ],
        ),
        ("NVIDIA H100", ["learner.checkpoint_layers=all", "model.attention=fa2"], []),
        ("", [], []),  # on a CPU there is nothing to choose
    ],
)
def test_what_was_chosen_by_the_gpu_is_said(resume, device, settings, said):
    class Gang:
        async def up(self) -> None: ...

        async def check_folder(self, *_) -> None: ...

        async def start(self, checkpoint: str) -> None: ...

        async def describe(self) -> Description:
            return Description(device, None, 3, "fa2; not fa3: no package")

    tuner = resume(record(), *settings)
    before = len(tuner._lines)
    asyncio.run(tuner._start_gang(Gang(), ""))
    assert list(tuner._lines)[before:] == said


@pytest.mark.parametrize("last", [False, True])
def test_only_the_last_checkpoint_must_be_written(resume, tmp_path, last):
    tuner = resume(record())
    tuner.step += 1

    class Gang:
        async def copy_checkpoint(self, folder: str) -> None: ...

        async def write_checkpoint(self) -> None:
            raise OSError("no space left on device")

    tuner.gang = Gang()
    if last:
        with pytest.raises(RunFailed, match="checkpoints/4, the last, could not be saved"):
            asyncio.run(tuner._save_the_last())
    else:
        asyncio.run(tuner._save())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(STEPS)]
    assert tuner.keeper.step == STEPS and tuner.keeper.failed == 1
    assert any("checkpoints/4 could not be saved: " in line and "no space left" in line for line in tuner._lines)
