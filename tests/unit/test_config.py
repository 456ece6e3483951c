"""The configuration: where values come from, and what is refused before anything starts."""

import dataclasses

import pytest

from pipeline.agents import LongestPrompt
from pipeline.agents.window import check_window
from pipeline.config import config_yaml, preset_names, save_config
from pipeline.errors import ConfigError
from pipeline.rules import check_data_given
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.run.rules import check_config
from pipeline.sections import TrainedModelSection


def sound(**sections: dict) -> TrainingConfig:
    """A configuration that passes, with some values changed."""
    config = TrainingConfig(model=TrainedModelSection(path="some/model"))
    config.run.name, config.data.path = "name", "questions.jsonl"
    for section, values in sections.items():
        setattr(config, section, dataclasses.replace(getattr(config, section), **values))
    return config


def test_the_defaults_are_sound():
    check_config(sound())


@pytest.mark.parametrize("preset", preset_names(TrainingConfig))
def test_presets_are_sound(preset):
    config = load_training_config([f"preset={preset}", "data.path=questions.json"])
    check_config(config)
    assert config.run.name.startswith(preset)


def test_the_command_line_wins_over_the_preset_and_the_preset_over_the_defaults():
    config = load_training_config(["preset=tiny", "agent.window=128", "learner.learning_rate=1e-5", "run.name=mine"])
    assert config.agent.window == 128  # the preset says 64
    assert config.learner.learning_rate == 1e-5
    assert config.agent.prompt_template == "tiny"  # the default is memagent
    assert config.learner.max_grad_norm == TrainingConfig().learner.max_grad_norm
    assert config.run.name == "mine"


def test_a_saved_configuration_is_a_preset_again(tmp_path, monkeypatch):
    config = load_training_config(["preset=tiny", "train.steps=3"])
    save_config(config, tmp_path / "saved.yaml")
    monkeypatch.setattr("pipeline.config.CONFIGS", tmp_path)
    assert load_training_config(["preset=saved"]) == config
    assert (tmp_path / "saved.yaml").read_text() == config_yaml(config)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("agent.chunk_token", "agent.chunk_tokens"),
        ("chunk_tokens", "agent.chunk_tokens"),
        ("train.chunk_tokens", "agent.chunk_tokens"),
        ("trian.steps", "train.steps"),
        ("learner.lerning_rate", "learner.learning_rate"),
        ("agent.window.size", "agent.window"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError) as error:
        load_training_config(["preset=tiny", f"{key}=5"])
    assert f"unknown key '{key}'" in str(error.value) and f"did you mean '{nearest}'?" in str(error.value)


def test_an_unknown_key_in_a_preset_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("agent:\n  windows: 64\n")
    monkeypatch.setattr("pipeline.config.CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match="configs/mine.yaml: unknown key 'agent.windows'; did you mean"):
        load_training_config(["preset=mine"])


@pytest.mark.parametrize(
    "argument",
    [
        "agent.window=wide",
        "agent.window=5.5",
        "agent.window=",
        "agent.window={}",
        "agent.window=[1",
        "agent.window=${train.steps}",
        "generator.enforce_eager=maybe",
        "learner.learning_rate=small",
        "train.steps=[1, 2]",
        "model.path=null",
    ],
)
def test_a_value_of_the_wrong_type_names_the_argument(argument):
    with pytest.raises(ConfigError) as error:
        load_training_config(["preset=tiny", argument])
    assert str(error.value).startswith(argument)


def test_a_missing_value_is_named_with_the_presets_that_have_it():
    with pytest.raises(ConfigError, match=r"set model.path \(or choose a preset: .*tiny\)"):
        load_training_config([])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no preset 'tinny'; did you mean 'tiny'\?; there are: .*tiny"):
        load_training_config(["preset=tinny"])


def test_arguments_are_key_value():
    with pytest.raises(ConfigError, match="arguments are key=value; got 'tiny', '--fast'"):
        load_training_config(["tiny", "--fast", "train.steps=1"])


def test_all_broken_rules_are_reported_at_once():
    config = sound(
        agent={"window": 0},
        objective={"clip_low": 1.5, "advantage": "median"},
        train={"group_size": 1, "groups_per_step": 3, "updates_per_step": 2},
        model={"dtype": "float16"},
        data={"source": "web"},
    )
    with pytest.raises(ConfigError) as error:
        check_config(config)
    lines = str(error.value).splitlines()
    for start in (
        "agent.window=0 must be greater than 0",
        "objective.clip_low",
        "objective.advantage='median' must be one of mean, std, leave_one_out",
        "train.group_size=1",
        "train.groups_per_step=3 must be a multiple of train.updates_per_step=2",
        "model.dtype='float16' must be one of auto, float32, bfloat16",
        "data.source='web'",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("learner", {"micro_batch_tokens": 8191}, "learner.micro_batch_tokens=8191 must be at least agent.window=8192"),
        ("learner", {"checkpoint_layers": "some"}, "learner.checkpoint_layers=some must be a number of layers, all or"),
        ("learner", {"checkpoint_layers": "-1"}, "learner.checkpoint_layers=-1 must be a number of layers, all or"),
        ("learner", {"environment": {"HF_TOKEN": "x"}}, "learner.environment.HF_TOKEN may be a credential"),
        ("learner", {"environment": {"WANDB_API_KEY": "x"}}, "learner.environment.WANDB_API_KEY may be a credential"),
        ("learner", {"environment": {"RANK": "1"}}, "learner.environment.RANK is set by Ray or by the rank itself"),
        ("learner", {"environment": {"RAY_ADDRESS": "x"}}, "learner.environment.RAY_ADDRESS is set by Ray or by"),
        ("learner", {"environment": {"A B": "x"}}, "learner.environment: 'A B' cannot be an environment variable"),
        ("learner", {"environment": {"A": "x\0"}}, "learner.environment: 'A' cannot be an environment variable"),
        ("learner", {"schedule": "step"}, "learner.schedule='step' must be one of constant, cosine"),
        ("objective", {"dual_clip": 1.0}, "objective.dual_clip above 1"),
        ("objective", {"importance_cap": 0.0}, "objective.importance_cap=0.0 must be greater than 0"),
        ("objective", {"overlong_share": 0.0}, "objective.overlong_share=0.0"),
        ("train", {"updates_per_step": 0}, "train.updates_per_step=0 must be greater than 0"),
        ("train", {"max_discarded": 0.0}, "train.max_discarded=0.0 must be greater than 0"),
        ("learner", {"learning_rate": float("nan")}, "learner.learning_rate=nan must be greater than 0"),
        ("train", {"temperature": 0.0}, "train.temperature=0.0 must be greater than 0"),
        ("train", {"profile_steps": [3]}, "train.profile_steps=[3] must be the first and the last step to profile"),
        ("train", {"profile_steps": [0, 1]}, "train.profile_steps=[0, 1] must be the first and the last step"),
        ("train", {"profile_steps": [3, 2]}, "train.profile_steps=[3, 2] must be the first and the last step"),
        ("train", {"profile_steps": [1, 101]}, "between 1 and train.steps=100"),
        ("train", {"keep_last": 0}, "train.keep_last=0 must be greater than 0"),
        ("train", {"checkpoint_folder": "kept"}, "train.checkpoint_folder=kept must be a URI or an absolute path"),
        ("learner", {"ranks": 2, "min_ranks": 3}, "learner.min_ranks=3"),
        ("generator", {"count": 2, "min_count": 0}, "generator.min_count=0"),
        ("generator", {"tensor_parallel": 2, "num_gpus": 1.0}, "generator.num_gpus=1.0 must equal"),
        ("generator", {"num_gpus": 0.5, "gpu_memory_share": 0.4}, "needs generator.gpu_kv_cache_gib"),
        ("generator", {"num_gpus": 0.5, "gpu_kv_cache_gib": 2.0}, "generator.gpu_memory_share=0.9 must be at most"),
        ("generator", {"resources": {"GPU": 1.0}}, "generator.resources: GPU=1 must be a resource of your own"),
        ("learner", {"resources": {"spot": -1.0}}, "learner.resources: spot=-1 must be a resource of your own"),
        ("wandb", {"mode": "on"}, "wandb.mode='on'"),
        ("data", {"source": "synthetic", "synthetic_chunks": 1}, "data.synthetic_chunks=1"),
        ("run", {"name": "../elsewhere"}, "run.name='../elsewhere'"),
        ("run", {"name": ".."}, "run.name='..'"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_reported(section, values, message):
    with pytest.raises(ConfigError) as error:
        check_config(sound(**{section: values}))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_source_that_reads_a_file_needs_one():
    check_data_given(sound())
    check_data_given(sound(data={"source": "synthetic", "path": ""}))
    with pytest.raises(ConfigError, match="set data.path: data.source=file reads samples"):
        check_data_given(sound(data={"path": ""}))


def test_a_preset_that_builds_on_another_changes_it():
    base, dapo, large = (
        load_training_config([f"preset={name}"]) for name in ("memagent_7b", "memagent_7b_dapo", "memagent_14b")
    )
    assert dapo.model == base.model and dapo.learner == base.learner
    assert (base.objective.clip_high, dapo.objective.clip_high) == (0.2, 0.28)
    assert not base.train.dynamic_sampling and dapo.train.dynamic_sampling
    assert large.model.path == "Qwen/Qwen2.5-14B-Instruct" and large.train.updates_per_step == 16


@pytest.mark.parametrize(("preset", "gpus", "problems"), [("memagent_7b", 32, 128), ("memagent_14b", 128, 256)])
def test_the_paper_presets_have_the_papers_numbers(preset, gpus, problems):
    c = load_training_config([f"preset={preset}"])
    assert c.generator.count * c.generator.num_gpus + c.learner.ranks * c.learner.num_gpus == gpus
    a, le, o, t = c.agent, c.learner, c.objective, c.train
    assert (a.window, a.problem_tokens, a.chunk_tokens, a.memory_tokens, a.answer_tokens) == (
        8192,
        1024,
        5000,
        1024,
        1024,
    )
    assert (le.learning_rate, le.schedule, le.weight_decay, le.max_grad_norm) == (1e-6, "constant", 0.01, 1.0)
    assert le.warmup_steps == 20 * t.updates_per_step
    assert (o.advantage, o.clip_low, o.clip_high, o.dual_clip) == ("mean", 0.2, 0.2, 3.0)
    assert (o.kl_coefficient, o.entropy_coefficient) == (1e-3, 0.0)
    assert (t.groups_per_step, t.updates_per_step, t.group_size) == (problems, 16, 16)
    assert c.train.temperature == 1.0 and c.train.method == "memory"


def test_the_window_holds_the_longest_conversation_with_its_template():
    config = sound(agent={"window": 1000})
    memory = LongestPrompt("memory", 900, 100, "agent.chunk_tokens")
    plan = LongestPrompt("plan", 800, 200, "mine.plan", (("notes", 700),))
    check_window(config, [memory, plan], positions=1000)
    with pytest.raises(ConfigError) as error:
        check_window(config, [memory._replace(tokens=901), plan._replace(tokens=802)], positions=1000)
    for line, prompt, response, rest in zip(
        str(error.value).splitlines(),
        (
            "memory of agent.prompt_template=memagent",
            "plan of agent.prompt_template=memagent (notes 700 + the text between)",
        ),
        (100, 200),
        ("1001 tokens; lower agent.chunk_tokens by 1", "1002 tokens; lower mine.plan by 2"),
        strict=True,
    ):
        assert line == (
            f"agent.window=1000 cannot hold the longest conversation: with the prompt {prompt} and a response of "
            f"{response} it has {rest} or raise agent.window"
        )


def test_the_window_is_within_the_models_positions():
    config = sound(agent={"window": 1000})
    check_window(config, longest=[LongestPrompt("answer", 1, 1, "agent.answer_tokens")], positions=None)
    with pytest.raises(ConfigError, match=r"agent.window=1000 is over the model's 999 positions \(some/model\)"):
        check_window(config, longest=[LongestPrompt("answer", 1, 1, "agent.answer_tokens")], positions=999)


@pytest.mark.parametrize("text", ["no", "007", "1e3", "on"])
def test_a_text_on_the_command_line_is_kept_as_it_is_written(text):
    assert load_training_config(["preset=tiny", f"run.name={text}"]).run.name == text


@pytest.mark.parametrize("value", ["007 # x", " 007", "007 ", "007\t# x", "007   #"])
def test_a_comment_and_outer_blanks_are_no_part_of_a_text(value):
    assert load_training_config(["preset=tiny", f"run.name={value}"]).run.name == "007"


def test_other_values_may_name_the_run_whose_name_was_made():
    named = "train.checkpoint_folder=/data/${run.name}"
    config = load_training_config(["preset=tiny", "interpolation=yes", named])
    assert config.run.name.startswith("tiny-") and config.train.checkpoint_folder == f"/data/{config.run.name}"
    config = load_training_config(["preset=tiny", "interpolation=yes", named, "run.name=mine"])
    assert config.train.checkpoint_folder == "/data/mine"
    with pytest.raises(ConfigError, match="Interpolation key 'run.title' not found"):
        load_training_config(["preset=tiny", "interpolation=yes", "run.name=${run.title}"])


def test_layers_to_checkpoint_are_a_number_or_a_word(tmp_path):
    preset = tmp_path / "seven.yaml"
    preset.write_text("preset: tiny\nlearner:\n  checkpoint_layers: 7\n")
    assert load_training_config([f"preset={preset}"]).learner.checkpoint_layers == "7"
    for value in ("7", "all", "auto"):
        config = load_training_config(["preset=tiny", f"learner.checkpoint_layers={value}"])
        assert config.learner.checkpoint_layers == value


def test_a_model_has_the_layers_that_are_to_be_checkpointed(capsys):
    from jobs.fine_tune import main as fine_tune
    from jobs.train import main as train

    for main in (train, fine_tune):
        assert main(["learner.checkpoint_layers=2", "--dry-run", *["preset=tiny"] * (main is train)]) == 0
        assert main(["learner.checkpoint_layers=3", "--dry-run", *["preset=tiny"] * (main is train)]) == 2
        assert "learner.checkpoint_layers=3, but the model has 2 layers" in capsys.readouterr().err
