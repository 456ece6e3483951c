"""A wrong training configuration is said before anything starts."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.group_sise=4"], "did you mean 'train.group_size'"),
        (["train.steps=many"], "train.steps=many"),
        (["preset=tinny"], "did you mean 'tiny'"),
        (["agent.chunk_tokens=60"], "agent.window=64 cannot hold"),
        (["agent.window=50", "agent.chunk_tokens=16"], "with the prompt memory of agent.prompt_template=tiny"),
        (["agent.window=512", "learner.micro_batch_tokens=1024"], "256 positions"),
        (["data.source=file", "data.path=/no/such/file"], "no such file"),
        (["data.source=file"], "set data.path"),
        (["train.method=pipeline.agents.memory:MemoryAgnet"], "the method 'pipeline.agents.memory:MemoryAgnet'"),
        (["model.path=/no/such/model"], "model.path=/no/such/model: no such folder (from /"),
        (["model.path=models/none"], "model.path=models/none: no such folder (from /"),
        (["model.path=runs/mine/checkpoints/8/hf"], "no such folder (from /"),
        (["learner.ranks=0", "train.max_staleness=-1"], "train.max_staleness=-1"),
    ],
)
def test_a_wrong_configuration_says_what_to_do_before_anything_starts(arguments, message, random_model, capsys):
    from jobs.train import main

    base = [] if any(a.startswith("model.path") for a in arguments) else [f"model.path={random_model}"]
    assert main(["preset=tiny", *base, *arguments]) == 2
    assert message in capsys.readouterr().err
