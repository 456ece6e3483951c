"""Presets outside configs/: a preset may be named by its file's path."""

import pytest

from jobs.support.inputs import check_model_there
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.run.config import load_training_config


def test_a_file_is_a_preset_and_may_build_on_another(tmp_path):
    path = tmp_path / "my_preset.yaml"
    path.write_text("preset: tiny\ntrain:\n  steps: 7\n")
    config, tiny = load_training_config([f"preset={path}"]), load_training_config(["preset=tiny"])
    assert config.train.steps == 7 and config.train.group_size == tiny.train.group_size
    assert config.run.name.startswith("my_preset-")  # a name is no path


def test_a_file_that_is_missing_or_wrong_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("train:\n  stepz: 7\n")
    with pytest.raises(ConfigError, match=r"preset=missing\.yaml: no such file \(from /"):
        load_training_config(["preset=missing.yaml"])
    with pytest.raises(ConfigError, match=r"wrong\.yaml: unknown key 'train\.stepz'; did you mean 'train\.steps'"):
        load_training_config(["preset=wrong.yaml"])


def test_a_preset_of_another_job_is_refused_with_the_presets_of_this_one():
    with pytest.raises(ConfigError, match="eval_ruler is no preset of this job; its presets are: .*, smollm2, tiny"):
        load_training_config(["preset=eval_ruler"])


def test_a_preset_finds_its_model_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_training_config(["preset=tiny"]).model.path == str(CONFIGS / "models" / "tiny")
    (tmp_path / "configs" / "models" / "tiny").mkdir(parents=True)
    assert (
        load_training_config(["preset=tiny"]).model.path == "configs/models/tiny"
    )  # the working directory's comes first
    assert load_training_config(["preset=tiny", "model.path=some/name"]).model.path == "some/name"


def test_a_model_folder_that_is_missing_is_not_looked_for_in_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such folder \(from /.*\); run `make smollm2`"):
        check_model_there("models/smollm2")
    for path in ("./mine", "../mine", "/mine", "~/mine", "runs/mine/hf"):
        with pytest.raises(FileNotFoundError, match=r"no such folder \(from /.*\)$"):
            check_model_there(path)
    check_model_there("Qwen/Qwen2.5-7B-Instruct")
    check_model_there("gpt2")
