"""Which tokens end a response: all that a model's files name."""

import asyncio
import json

import pytest

from pipeline.agents import load_agent
from pipeline.agents.memory_trace import MemoryTrace
from pipeline.data.documents.synthetic import tiny_model_config, tiny_tokenizer
from pipeline.end_tokens import end_tokens, named_end_tokens
from pipeline.errors import ConfigError
from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, run_episode
from pipeline.rollout.memory_counts import Ratio
from pipeline.run.config import load_training_config
from pipeline.sections import AgentSection
from pipeline.text import load_tokenizer

OWN, SECOND, THIRD = 1, 30, 40  # the tokenizer's own, <eos>, and two words


def model_with(folder, generation_config: object = None, config: object = None):
    """A model folder without weights."""
    tiny_tokenizer().save_pretrained(folder)
    settings = tiny_model_config().to_dict() | ({} if config is None else {"eos_token_id": config})
    (folder / "config.json").write_text(json.dumps(settings))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        (None, None, {OWN}),
        ({"eos_token_id": [OWN, SECOND]}, None, {OWN, SECOND}),  # as Qwen2.5-Instruct names its two
        ({"eos_token_id": SECOND}, None, {OWN, SECOND}),
        ({"eos_token_id": None}, [OWN, THIRD], {OWN, THIRD}),
        ({"eos_token_id": [SECOND]}, THIRD, {OWN, SECOND, THIRD}),
        ({}, OWN, {OWN}),
    ],
)
def test_the_end_tokens_are_those_of_both_files_and_the_tokenizers_own(tmp_path, generation_config, config, expected):
    assert end_tokens(load_tokenizer(str(model_with(tmp_path, generation_config, config)))) == expected


@pytest.mark.parametrize("named", ["<eos>", [1, "2"], -1, True, [None], {"a": 1}, 1.5])
def test_an_end_token_that_is_none_is_an_error_that_names_the_file(tmp_path, named):
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id is .*, neither a token id nor a list"):
        load_tokenizer(str(model_with(tmp_path, {"eos_token_id": named})))


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_a_file_that_is_not_json_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match="generation_config.json is not JSON"):
        named_end_tokens(str(tmp_path))


def test_a_folder_without_these_files_names_none(tmp_path):
    assert named_end_tokens(str(tmp_path)) == set()


def test_a_model_without_any_end_token_is_refused_before_anything_starts(tmp_path):
    from jobs.support.inputs import check_model

    folder = model_with(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(ConfigError, match="names no end-of-sequence token"):
        check_model(load_training_config(["preset=tiny", f"model.path={folder}"]), ["memory"])


@pytest.mark.parametrize("method", ["memory", "concat"])
@pytest.mark.parametrize("end", [OWN, SECOND])
def test_no_end_token_reaches_a_memory_or_an_answer(tmp_path, method, end):
    tokenizer = load_tokenizer(str(model_with(tmp_path, {"eos_token_id": [OWN, SECOND]})))
    agent = load_agent(method)(tokenizer, AgentSection(chunk_tokens=3, prompt_template="tiny"))
    memory, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("Sam Rex .", "\\boxed{ Paris }"))
    asked = []

    async def generate(prompt, max_tokens):
        asked.append(prompt)
        tokens = [*(memory if len(asked) < 3 else answer), end]
        return Completion(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop")

    problem = agent.tokenize(Problem("q", "city pet Sam", ("Paris",), "Sam Rex . Rex Paris ."))
    episode = asyncio.run(run_episode(agent, problem, generate))
    assert len(asked) == 3 and not any(end in prompt for prompt in asked[1:])
    assert episode.answer == "\\boxed{ Paris }"
    trace = MemoryTrace(tokenizer, agent.config, ())
    trace.add([*memory, end])
    assert trace.counts.tokens == Ratio(3, 1)


@pytest.mark.parametrize(
    ("tokens", "finish_reason", "kept"),
    [
        ([7, OWN], "stop", [7]),
        ([7, SECOND], "stop", [7]),
        ([7, SECOND, OWN], "stop", [7, SECOND]),
        ([7, 8], "stop", [7, 8]),
        ([7, 8], "length", [7, 8]),
        ([7, OWN], "length", [7, OWN]),  # its limit ended it, so that this one is a word like any other
        ([], "length", []),
    ],
)
def test_what_is_taken_off_a_response(tmp_path, tokens, finish_reason, kept):
    tokenizer = load_tokenizer(str(model_with(tmp_path, {"eos_token_id": [OWN, SECOND]})))
    agent = load_agent("memory")(tokenizer, AgentSection(prompt_template="tiny"))
    count = len(tokens)
    assert agent.tokens_of(Completion(tokens, [0.0] * count, [0] * count, finish_reason)) == kept


def test_a_saved_model_names_the_same_end_tokens(tmp_path, random_model):
    """As a checkpoint of the learner is saved (actors/learning/zero_engine.py), so that it is evaluated with all of
    them."""
    import shutil

    from transformers import AutoModelForCausalLM

    shutil.copytree(random_model, tmp_path / "two")
    (tmp_path / "two" / "generation_config.json").write_text(json.dumps({"eos_token_id": [OWN, SECOND]}))
    AutoModelForCausalLM.from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "saved")
    assert named_end_tokens(str(tmp_path / "saved")) == {OWN, SECOND}
