"""Presets outside configs/: a preset may be named by its file's path."""

import re

import pytest

from jobs.support.inputs import check_model_there
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.run.config import load_training_config
from pipeline.run.rules import check_config


def test_a_file_is_a_preset_and_may_build_on_another(tmp_path):
    path = tmp_path / "my_preset.yaml"
    path.write_text("preset: tiny\ntrain:\n  steps: 7\n")
    config, tiny = load_training_config([f"preset={path}"]), load_training_config(["preset=tiny"])
    assert config.train.steps == 7 and config.train.group_size == tiny.train.group_size
    assert config.run.name.startswith("my_preset-")  # a name is no path


def test_a_file_that_a_preset_builds_on_is_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "base.yaml").write_text("preset: tiny\ntrain:\n  steps: 7\n")
    (tmp_path / "mine" / "large.yaml").write_text("preset: base.yaml\ntrain:\n  group_size: 3\n")
    (tmp_path / "mine" / "other.yaml").write_text("preset: ../mine/../mine/large.yaml\n")
    monkeypatch.chdir(tmp_path)
    for named in ("mine/large.yaml", "mine/other.yaml", tmp_path / "mine" / "large.yaml"):
        train = load_training_config([f"preset={named}"]).train
        assert (train.steps, train.group_size) == (7, 3)
    (tmp_path / "mine" / "base.yaml").write_text("preset: ../mine/large.yaml\n")
    with pytest.raises(ConfigError, match="builds on itself"):
        load_training_config(["preset=mine/large.yaml"])
    (tmp_path / "mine" / "base.yaml").unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path}/mine/base.yaml: no such file"):
        load_training_config(["preset=mine/large.yaml"])


@pytest.mark.parametrize(
    ("file", "name"), [("gru mem.yaml", "gru_mem-"), ("-x@ü.yml", "x_ü-"), ("--.yaml", ""), ("v1.5.yaml", "v1.5-")]
)
def test_a_run_has_a_legal_name_whatever_its_preset_file_is_called(tmp_path, file, name):
    (tmp_path / file).write_text("preset: tiny\n")
    config = load_training_config([f"preset={tmp_path / file}"])
    check_config(config)
    assert re.fullmatch(re.escape(name) + r"\d{8}-\d{6}", config.run.name)


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
