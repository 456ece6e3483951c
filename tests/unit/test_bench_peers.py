"""The comparison with TRL: both sides get the same, and what is counted is the same on both."""

import asyncio
import json
import os
import random
import sys
from types import ModuleType, SimpleNamespace

import pytest

from jobs.bench import endless_model, peers, peers_trl
from jobs.bench.peers import ASYNCHRONOUS, SYNCHRONOUS, TRL, VARIANTS, Settings, Step
from pipeline.agents.reader import Reader
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Completion
from pipeline.run.config import load_training_config
from pipeline.run.rules import check_config
from pipeline.text import encode_text, load_tokenizer
from tests.support.byte_tokenizer import byte_tokenizer

SMALL = Settings(prompts=2, group_size=4, prompt_tokens=40, response_tokens=8, micro_batch=4, steps=3, rounds=1)


@pytest.fixture
def inputs(tmp_path):
    """A folder with what both sides read, except for the model's weights."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / peers.MODEL)
    (tmp_path / peers.MODEL / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 256}))
    peers.write_prompts(SMALL, tmp_path)
    return tmp_path


def rows_in(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / peers.SAMPLES).read_text().splitlines()]


# What has to be there.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0, "cores": 0}, "cores, steps must be at least 1"),
        ({"group_size": 1, "micro_batch": 1}, "group_size=1 must be at least 2"),
        ({"micro_batch": 3}, "prompts × group_size = 8 must be a multiple of micro_batch=3"),
        ({"cores": 10**6}, "cores=1000000: this process may use only"),
        ({"model": "models/none"}, "`make smollm2`"),
        ({}, "run `make peers`"),
    ],
)
def test_what_is_wrong_or_missing_is_said_with_what_to_do(monkeypatch, tmp_path, change, said):
    monkeypatch.setattr(peers, "PEERS", tmp_path / ".venv-peers")
    settings = Settings(**vars(SMALL) | {"model": "configs/models/tiny", "cores": 1} | change)
    with pytest.raises(ConfigError) as error:
        peers.run(settings)
    assert said in str(error.value)


def test_the_version_of_trl_is_that_in_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PEERS", tmp_path)
    assert peers.version_of_trl() is None
    (tmp_path / "trl-9.8.7.dist-info").mkdir()
    (tmp_path / "trl-9.8.7.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 9.8.7\n")
    assert peers.version_of_trl() == "9.8.7"


def test_the_cores_are_given_back_even_after_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), peers.pinned(1):
        assert os.sched_getaffinity(0) == {min(before)}
        _ = 1 / 0
    assert os.sched_getaffinity(0) == before


# What both sides get.


def test_every_prompt_is_different_and_has_exactly_the_tokens_wanted(inputs):
    prompts = [row["question"] for row in rows_in(inputs)]
    tokenizer = load_tokenizer(str(inputs / peers.MODEL))
    assert {len(encode_text(tokenizer, prompt)) for prompt in prompts} == {SMALL.prompt_tokens}
    # Enough of them that the longest variant reads none twice: 2 + 3 + 1 steps of two.
    assert len(set(prompts)) == len(prompts) == 12


def test_words_that_cannot_fit_are_an_error():
    with pytest.raises(ConfigError, match="exactly prompt_tokens=1"):
        peers.random_words(byte_tokenizer(), random.Random(0), 1)


def test_the_end_token_is_a_special_token_without_a_purpose():
    assert endless_model.unused_token(byte_tokenizer(), "x") == "<|tool|>"
    added = {0: SimpleNamespace(content="<end>", special=True), 1: SimpleNamespace(content="word", special=False)}
    plain = SimpleNamespace(
        eos_token="<end>", bos_token=None, pad_token=None, unk_token=None, added_tokens_decoder=added
    )
    with pytest.raises(ConfigError, match="model=x: its tokenizer has no special token"):
        endless_model.unused_token(plain, "x")


def test_the_copy_of_the_model_is_in_float32_with_another_end_token(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "source")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    source = LlamaForCausalLM(config).to(torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    endless_model.write_endless_model(str(tmp_path / "source"), tmp_path / "copy")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert copy.dtype == torch.float32
    assert torch.equal(copy.lm_head.weight, source.lm_head.weight.float())
    # The only end token for this system, which reads all files, and for transformers.
    unused = tokenizer.convert_tokens_to_ids("<|tool|>")
    read = load_tokenizer(str(tmp_path / "copy"))
    assert read.end_tokens | {read.eos_token_id} == {unused} == {copy.generation_config.eos_token_id}


@pytest.mark.parametrize("variant", [SYNCHRONOUS, ASYNCHRONOUS])
def test_the_job_keeps_the_rules_of_a_training_run(inputs, variant):
    config = load_training_config(peers.job_of(SMALL, variant, inputs))
    check_config(config)
    assert config.train.max_staleness == (variant == ASYNCHRONOUS)
    assert config.train.steps == {SYNCHRONOUS: 1 + 3, ASYNCHRONOUS: 2 + 3 + 1}[variant]
    assert config.train.checkpoint_every == config.train.steps  # so that none is saved in a measured step
    assert config.objective.kl_coefficient == config.objective.entropy_coefficient == 0
    assert config.learner.learning_rate == peers.LEARNING_RATE and config.learner.schedule == "constant"


def test_the_prompt_is_the_problem_alone_and_a_full_response_counts(inputs):
    config = load_training_config(peers.job_of(SMALL, SYNCHRONOUS, inputs))
    agent = peers.PromptAgent(load_tokenizer(str(inputs / peers.MODEL)), config.agent)
    text = rows_in(inputs)[0]["question"]
    problem = agent.tokenize(peers.Problem("p", text, ("-",), document="-"))
    asked = []

    async def llm(prompt: list[int], max_tokens: int, role: str) -> Completion:
        asked.append((prompt, max_tokens))
        return Completion(encode_text(agent.tokenizer, "aeiouxyz"), [0.0] * 8, [0] * 8, "length")

    answer = asyncio.run(agent.run(problem, llm))
    assert asked == [(encode_text(agent.tokenizer, text), SMALL.response_tokens)]
    assert (answer.text, answer.cut) == ("aeiouxyz", False)
    assert isinstance(agent, Reader) and agent.longest_prompts()[0].tokens == SMALL.prompt_tokens


def test_the_reward_is_the_share_of_vowels():
    assert peers.vowels("banana", ("-",)) == 0.5 and peers.vowels("") == 0.0


# What is counted.


@pytest.mark.parametrize(
    ("variant", "counted"), [(TRL, [1, 2, 3]), (SYNCHRONOUS, [1, 2, 3]), (ASYNCHRONOUS, [2, 3, 4])]
)
def test_the_first_steps_do_not_count_nor_the_last_without_generation(monkeypatch, tmp_path, variant, counted):
    steps = [Step(seconds, 8, 64) for seconds in range(peers.steps_in_all(SMALL, variant))]
    monkeypatch.setattr(peers, "of_trl", lambda *_: steps)
    monkeypatch.setattr(peers, "of_palimpsest", lambda *_: steps)
    assert [step.seconds for step in peers.steps_of(SMALL, variant, tmp_path)] == counted
    assert len(steps) - 1 - counted[-1] == (variant == ASYNCHRONOUS)


def test_a_run_is_read_from_its_metrics(monkeypatch, tmp_path):
    started = []

    def job(module: list[str], environment: dict[str, str]) -> str:
        started.append(module)
        (folder,) = (argument.partition("=")[2] for argument in module if argument.startswith("run.folder="))
        os.mkdir(f"{folder}/bench")
        row = {"seconds": 2.5, "episodes": 8, "tokens_trained": 64, "groups_of_equal_reward": 0}
        with open(f"{folder}/bench/metrics.jsonl", "w") as file:
            file.write(f"{json.dumps(row)}\n" * 2)
        return ""

    monkeypatch.setattr(peers, "output_of", job)
    assert peers.of_palimpsest(SMALL, SYNCHRONOUS, tmp_path) == [Step(2.5, 8, 64)] * 2
    assert started[0][0] == "jobs.train" and "run.name=bench" in started[0]


def test_a_group_that_trains_nothing_is_an_error():
    row = {"seconds": 1.0, "episodes": 8, "tokens_trained": 32, "groups_of_equal_reward": 1}
    with pytest.raises(RuntimeError, match="equal rewards"):
        peers.steps_in([row])


def test_trl_runs_with_its_own_folder_and_a_thread_per_core(monkeypatch, tmp_path):
    started = []

    def process(module: list[str], environment: dict[str, str]) -> str:
        started.append((module, environment))
        return "noise\n[[1.5, 8, 64], [1.0, 8, 64]]\n"

    monkeypatch.setattr(peers, "output_of", process)
    assert peers.of_trl(SMALL, tmp_path) == [Step(1.5, 8, 64), Step(1.0, 8, 64)]
    (module, environment) = started[0]
    assert environment["PYTHONPATH"] == str(peers.PEERS)
    assert environment["OMP_NUM_THREADS"] == str(SMALL.cores)
    given = json.loads(module[1])
    assert module[0] == "jobs.bench.peers_trl" and Settings(**given["settings"]) == SMALL and given["steps"] == 4


def test_the_table_has_rates_and_ratios_to_trl_in_the_same_round():
    def turns(*seconds: float) -> list[dict[str, float]]:
        return [peers.rates([Step(s, 16, 768), Step(s, 16, 768)]) for s in seconds]

    lines = peers.tables({TRL: turns(40, 60), SYNCHRONOUS: turns(20, 20)}).splitlines()
    assert lines[0] == "| variant | step | episodes/s | trained tokens/s | ratio |"
    assert lines[2] == "| TRL | 50.0 (40.0–60.0) s | 0.33 (0.27–0.40) | 16.0 (12.8–19.2) | 1.00 |"
    assert lines[3] == "| palimpsest, synchronous | 20.0 s | 0.80 | 38.4 | 2.50 (2.00–3.00) |"


def test_variants_have_enough_prompts_and_trl_is_the_measure():
    assert VARIANTS[0] == TRL and set(peers.STALENESS) == set(VARIANTS[1:])


# TRL's process, with a stand-in for TRL.


@pytest.fixture
def trl(monkeypatch):
    """A stand-in for the packages of .venv-peers; its attribute `config` is what the trainer was configured with."""
    module, data = ModuleType("trl"), ModuleType("datasets")

    class Trainer:
        def __init__(self, *, args, train_dataset, reward_funcs, callbacks, **_):
            module.config = args
            self.prompts, self.reward, (self.callback,) = train_dataset["prompt"], reward_funcs, callbacks

        def train(self):
            self.callback.on_train_begin(None, None, None)
            for step in range(module.config["max_steps"]):
                module.rewards = self.reward(completions=["aaxx", "axxx"], completion_ids=[[1] * 4, [1] * (2 + step)])
                self.callback.on_step_end(None, None, None)

    module.GRPOConfig, module.GRPOTrainer = dict, Trainer
    data.Dataset = SimpleNamespace(from_dict=dict)
    monkeypatch.setitem(sys.modules, "trl", module)
    monkeypatch.setitem(sys.modules, "datasets", data)
    return module


def test_trl_reports_each_steps_time_episodes_and_tokens(trl, inputs, capsys):
    arguments = {"settings": vars(SMALL), "folder": str(inputs), "steps": 2}
    assert peers_trl.main([json.dumps(arguments)]) == 0
    steps = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [step[1:] for step in steps] == [[2, 6], [2, 7]] and all(0 < step[0] < 5 for step in steps)
    assert trl.rewards == [0.5, 0.25]


def test_trl_gets_what_this_system_gets(trl, inputs):
    peers_trl.train(SMALL, inputs, 2)
    ours = load_training_config(peers.job_of(SMALL, SYNCHRONOUS, inputs))
    c = trl.config
    assert c["per_device_train_batch_size"] * c["gradient_accumulation_steps"] == 2 * 4
    assert c["num_generations"] == ours.train.group_size
    assert c["max_completion_length"] == ours.agent.answer_tokens
    assert (c["learning_rate"], c["weight_decay"]) == (ours.learner.learning_rate, ours.learner.weight_decay)
    assert (c["max_grad_norm"], c["beta"]) == (ours.learner.max_grad_norm, ours.objective.kl_coefficient)
    assert c["model_init_kwargs"] == {"dtype": ours.model.dtype} and not c["bf16"]
    assert not c["gradient_checkpointing"] and ours.learner.checkpoint_layers == "auto" and not ours.learner.num_gpus


def test_prompts_that_trl_reads_as_other_tokens_are_an_error(trl, inputs):
    from tokenizers import Tokenizer, processors

    file = inputs / peers.MODEL / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 257)])
    tokenizer.save(str(file))
    with pytest.raises(RuntimeError, match="TRL reads the prompts as other tokens"):
        peers_trl.train(SMALL, inputs, 1)
