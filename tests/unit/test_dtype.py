"""model.dtype=auto: bfloat16 where the hardware computes it, and what it was resolved to is in sight."""

import json

import pytest

import pipeline.dtype
from jobs.support.run_folder import check_earlier
from jobs.train import main
from pipeline.config import load_config, save_config
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.summary import evaluation_summary
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.run.history import RunTotals
from pipeline.run.report import run_summary
from pipeline.sections import ModelSection


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """A machine whose cores have these flags; None: it does not say."""

    def make(flags: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if flags is not None:
            file.write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\n{flags}\n")
        monkeypatch.setattr(pipeline.dtype, "CPUINFO", file)

    return make


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx avx2 avx512f", "float32"),  # no instructions for it: bfloat16 is emulated
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", "bfloat16"),
        ("Features\t: fp asimd bf16", "bfloat16"),  # ARM
        ("Features\t: fp asimd", "float32"),
        ("model name\t: a CPU that is called bf16", "float32"),
        (None, "float32"),
    ],
)
def test_auto_follows_the_cpu_where_no_gpu_is_asked_for(cpu, flags, expected):
    cpu(flags)
    for schema in (TrainingConfig, EvaluationConfig, FineTuningConfig):
        assert ModelSection().dtype == "auto"
        assert load_config(["model.path=m"], schema).model.dtype == expected
        assert load_config(["model.path=m", "model.dtype=float32"], schema).model.dtype == "float32"
    assert load_training_config(["preset=smollm2"]).model.dtype == expected
    assert load_training_config(["preset=tiny"]).model.dtype == "float32"


@pytest.mark.parametrize("argument", ["generator.num_gpus=1", "learner.num_gpus=0.5"])
def test_auto_is_bfloat16_where_gpus_are_asked_for(cpu, argument):
    cpu("flags : avx2")
    assert load_training_config(["model.path=m", argument]).model.dtype == "bfloat16"


def test_the_resolved_dtype_is_in_the_plan_the_summaries_and_the_configuration(cpu, random_model, tmp_path, capsys):
    cpu("flags : avx2")
    main(["preset=smollm2", f"model.path={random_model}", f"data.path={tmp_path}", "--dry-run"])
    printed = capsys.readouterr().out
    assert "weights in float32" in printed and "dtype: float32" in printed
    config = load_training_config(["preset=smollm2"])
    assert run_summary(config, "completed", RunTotals())["dtype"] == "float32"
    evaluation = load_config(["preset=eval_smollm2"], EvaluationConfig)
    assert json.dumps(evaluation_summary(evaluation, "failed", [], failures={}, error=None)["dtype"]) == '"float32"'


def test_a_run_is_resumed_in_the_dtype_in_which_it_began(cpu, tmp_path):
    cpu("flags : avx2 avx512_bf16")
    save_config(load_training_config(["preset=smollm2"]), tmp_path / "config.yaml")
    cpu("flags : avx2")  # another laptop
    with pytest.raises(ConfigError, match="set model.dtype=bfloat16 to resume it"):
        check_earlier(load_training_config(["preset=smollm2", "resume=auto"]), tmp_path)
    check_earlier(load_training_config(["preset=smollm2", "resume=auto", "model.dtype=bfloat16"]), tmp_path)
    check_earlier(load_training_config(["preset=smollm2", "resume=auto"]), tmp_path / "new")
    with pytest.raises(ConfigError, match="has no section fine_tuning: another job ran there"):
        check_earlier(
            load_config(["preset=fine_tune_tiny", "resume=auto", "model.dtype=bfloat16"], FineTuningConfig), tmp_path
        )
