"""Presets outside configs/: a preset may be named by its file's path."""

import pytest

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
