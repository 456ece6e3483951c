"""The plan: what --dry-run says of a run, and its memory estimate against measured bytes and the published sizes."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from pipeline.config import CONFIGS
from pipeline.data.rows import write_problem_file
from pipeline.learning.device_memory import architecture_of, built_architecture, layer_activations, layers_to_checkpoint
from pipeline.problems import Problem
from pipeline.run.config import load_training_config
from pipeline.run.plan import GIB, document_chunks, learner_memory, plan_text

AUTO = ["preset=memagent_7b", "learner.checkpoint_layers=auto"]


def known(name: str):
    return architecture_of(json.loads((CONFIGS / "models" / name / "config.json").read_text()))


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_the_sizes_are_those_of_the_model_that_transformers_builds(family, tied, biases, tmp_path):
    named = {"attention_bias": biases} if family in (LlamaConfig, Qwen3Config) else {}
    named |= {"mlp_bias": biases} if family is LlamaConfig else {}
    family(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=50,
        tie_word_embeddings=tied,
        **named,
    ).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert architecture_of(settings) == built_architecture(AutoConfig.from_pretrained(tmp_path))


def test_the_sizes_of_another_family_are_not_guessed():
    settings = json.loads((CONFIGS / "models" / "tiny" / "config.json").read_text())
    assert architecture_of(settings) is not None
    assert architecture_of(settings | {"model_type": "gemma2"}) is None
    assert architecture_of(settings | {"num_key_value_heads": None}) is None
    assert architecture_of({key: value for key, value in settings.items() if key != "num_attention_heads"}) is None
    assert architecture_of({**settings, "model_type": "qwen3", "head_dim": None}) is None


def test_the_sizes_of_the_presets_models_are_the_published_ones():
    assert known("Qwen2.5-0.5B-Instruct").parameters == 494_032_768
    assert known("Qwen2.5-1.5B-Instruct").parameters == 1_543_714_304
    assert known("Qwen2.5-3B-Instruct").parameters == 3_085_938_688
    assert known("Qwen2.5-7B-Instruct").parameters == 7_615_616_512
    assert known("Qwen2.5-14B-Instruct").parameters == 14_770_033_664


def test_engine_and_learner_fit_one_gpu_of_24_gb():
    config = load_training_config(["preset=one_gpu"])
    assert config.generator.num_gpus + config.learner.num_gpus == 1
    device, host = learner_memory(config, known("Qwen2.5-0.5B-Instruct"), 24)
    contexts = 2 * 0.6 * GIB
    assert sum(device.values()) + config.generator.gpu_memory_share * 24e9 + contexts < 24e9
    assert list(host.values()) == [device["weights"]]


@pytest.mark.parametrize("size", ["1.5B", "3B"])
def test_a_rank_fits_a_gpu_of_one_node(size):
    sizes = known(f"Qwen2.5-{size}-Instruct")
    device, host = learner_memory(load_training_config(["preset=one_node"]), sizes, sizes.layers)
    assert sum(device.values()) < 60 * GIB and list(host.values()) == [device["weights"]]  # of 80


def test_the_state_of_a_rank_is_its_share_of_eighteen_bytes_a_parameter():
    """bfloat16 weights; float32 gradients, a float32 copy and two moments (after arXiv 1910.02054)."""
    config, sizes = load_training_config(["preset=memagent_7b"]), known("Qwen2.5-7B-Instruct")
    device, host = learner_memory(config, sizes, 28)
    state = device["weights"] + device["gradients"] + device["optimizer state"]
    assert state == pytest.approx(18 * 7_615_616_512 / 24, rel=1e-6)
    assert host == {name: device["weights"] for name in ("weights on their way to the generators", "reference model")}
    assert sum(device.values()) < 60 * GIB  # of 80

    offload = replace(
        config, learner=replace(config.learner, offload=True), objective=replace(config.objective, kl_coefficient=0.0)
    )
    device, host = learner_memory(offload, sizes, 28)
    assert "optimizer state" not in device and "gradients" not in device
    assert sum(host.values()) == pytest.approx((16 + 2) * 7_615_616_512 / 24, rel=1e-6)


@pytest.mark.parametrize("key_value_heads", [1, 4])
def test_the_activations_of_a_layer_are_about_what_torch_keeps(key_value_heads):
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        num_hidden_layers=1,
        vocab_size=10,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).bfloat16()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that its place is not used again
        return tensor

    tokens = 512
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    measured = sum(size for size, _ in kept.values())
    assert layer_activations(built_architecture(config), tokens, width=2) == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(("checkpointed", "whole"), [(28, 1), (27, 1), (20, 8), (1, 27), (0, 28)])
def test_checkpointed_layers_keep_their_inputs_and_are_recomputed_one_by_one(checkpointed, whole):
    """At the peak there are the inputs, and what the others keep; or, when those are done, one layer recomputed."""
    config, sizes = load_training_config(AUTO), known("Qwen2.5-7B-Instruct")
    layer = 32768 * (2 * (8 * 3584 + 4 * 512 + 4 * 18944) + 8 * 3584)  # test_the_activations_of_a_layer_…
    device, _ = learner_memory(config, sizes, checkpointed)
    assert device["activations"] == checkpointed * 32768 * 3584 * 2 + whole * layer


def test_auto_checkpoints_as_few_layers_as_fit_the_share_of_the_device():
    config, sizes = load_training_config(AUTO), known("Qwen2.5-7B-Instruct")
    # From the formulas by hand, in bytes: what does not depend on the number, and what a layer keeps beside its input.
    fixed = 18 * 7_615_616_512 / 24 + 2e9 + 3 * 2 * 32768 * 18944 + 4e8 + 8 * 152064 * 3584 + 12 * 2**26
    inputs, layer = 2 * 32768 * 3584, 32768 * (2 * (8 * 3584 + 4 * 512 + 4 * 18944) + 8 * 3584)

    def by_hand(memory: float) -> int:
        fits = [n for n in range(29) if fixed + n * inputs + max(1, 28 - n) * layer <= 0.8 * memory]
        return fits[0] if fits else 28

    def chosen(memory: int | None, learner=config.learner, sizes=sizes) -> int:
        return layers_to_checkpoint(learner, "bfloat16", sizes, 24, 28, memory)

    counts = [chosen(size * GIB) for size in (24, 80, 141, 400)]
    assert counts == [by_hand(size * GIB) for size in (24, 80, 141, 400)]
    assert counts[0] == 28 > counts[1] > counts[2] > counts[3] == 0
    half = replace(config.learner, num_gpus=0.5)
    assert chosen(160 * GIB, half) == counts[1]
    assert chosen(None) == chosen(400 * GIB, sizes=None) == 28
    assert chosen(None, replace(config.learner, num_gpus=0.0)) == 0
    assert [chosen(None, replace(config.learner, checkpoint_layers=n)) for n in ("0", "7", "all")] == [0, 7, 28]


def test_fewer_ranks_checkpoint_more_layers():
    config, sizes = load_training_config(AUTO), known("Qwen2.5-7B-Instruct")
    many, few = (layers_to_checkpoint(config.learner, "bfloat16", sizes, ranks, 28, 80 * GIB) for ranks in (24, 8))
    assert many < few


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["preset=memagent_7b", "learner.checkpoint_layers=auto"],
            ["learner.checkpoint_layers=auto: as few of the 28 layers as fit 80% of the device: 28 with 24 GiB,"],
        ),
        (["preset=one_gpu", "learner.checkpoint_layers=auto"], ["80% of its 0.5 of the device"]),
        (["preset=memagent_7b", "learner.checkpoint_layers=9"], ["=9 of 28 layers", "rank with 9 of 28 layers"]),
        (["preset=memagent_7b"], ["=all of 28 layers", "rank with 28 of 28 layers"]),
        (["preset=smollm2"], ["learner.checkpoint_layers=auto: 0 on CPUs", "rank with 0 of 28 layers"]),
    ],
)
def test_the_plan_says_how_many_layers_are_checkpointed_and_why(arguments, lines):
    plan = plan_text(load_training_config(arguments), known("Qwen2.5-7B-Instruct"))
    assert all(line in plan for line in lines), plan


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["preset=memagent_7b"], "model.attention=auto: the first of fa3, fa4 and fa2 that works on the learners' GPU"),
        (["preset=memagent_7b", "model.dtype=float32"], "model.attention=auto: padded"),
        (["preset=tiny"], "model.attention=auto: padded"),
        (["preset=memagent_7b", "model.attention=fa4"], "model.attention=fa4"),
    ],
)
def test_the_plan_says_which_kernels_compute_the_attention(arguments, line):
    assert line in plan_text(load_training_config(arguments), None).splitlines()


def test_the_plan_says_that_an_unknown_model_checkpoints_all_layers():
    assert "auto is all layers then" in plan_text(load_training_config(AUTO), None)
    assert "auto is all layers then" not in plan_text(load_training_config(["preset=tiny"]), None)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["preset=memagent_7b"], "conversations of 8192 tokens have 0.438 GiB each, so an engine decodes together "),
        (["preset=memagent_7b"], "127 in a KV cache of 55.8 GiB on GPUs with 80 GiB"),
        (
            ["preset=one_gpu", "generator.max_sequences=0"],
            "tokens have 0.219 GiB each, so an engine decodes together 22 ",
        ),
        (["preset=smollm2", "generator.max_sequences=0", "model.dtype=float32"], "7 in a KV cache of 0.5 GiB"),
    ],
)
def test_the_plan_says_how_many_conversations_an_engine_decodes_together(arguments, line):
    config, sizes = load_training_config(arguments), known("Qwen2.5-7B-Instruct")
    assert line in plan_text(config, sizes)
    assert "max_sequences=0: unknown" in plan_text(config, None)
    chosen = replace(config, generator=replace(config.generator, max_sequences=9))
    assert "generator.max_sequences" not in plan_text(chosen, sizes)


@pytest.mark.parametrize(
    ("preset", "document_tokens", "chunks"),
    [("tiny", None, 8), ("memagent_7b", 28000, 6), ("memagent_7b", 30001, 7), ("memagent_7b", None, None)],
)
def test_the_chunks_of_a_document(preset, document_tokens, chunks):
    assert document_chunks(load_training_config([f"preset={preset}"]), document_tokens) == chunks


@pytest.mark.parametrize(
    ("preset", "updates", "conversations"),
    [
        ("memagent_7b", 6400, 128 * 16 * 7),
        ("memagent_14b", 6400, 256 * 16 * 7),
        ("memagent_7b_dapo", 6400, 128 * 16 * 7),
    ],
)
def test_a_dry_run_of_a_paper_preset_prints_its_plan_without_a_network(
    preset, updates, conversations, capsys, tmp_path
):
    from jobs.train import main

    write_problem_file([Problem("a", "Who?", ("x",), "word " * 25_000)], tmp_path / "samples.jsonl")
    assert main([f"preset={preset}", f"data.path={tmp_path}", "--dry-run"]) == 2
    printed, problem = capsys.readouterr()
    assert "model.path=Qwen" in problem
    assert f"= {updates} optimizer steps" in printed and f"{conversations} per step" in printed
    assert "window 8192: problem ≤ 1024, memory ≤ 1024, chunk ≤ 5000" in printed
    assert "on its device" in printed and "reference model" in printed
    assert ("dynamic sampling: a step discards at most 1280" in printed) == (preset == "memagent_7b_dapo")
    assert "   400             6400          1e-06" in printed


def test_the_plan_says_why_the_documents_lengths_are_unknown():
    for arguments, why in (([], "data.path is not set: "), (["data.path=none"], "data.path=none cannot be read: ")):
        assert f"\n{why}the documents' lengths" in plan_text(
            load_training_config(["preset=memagent_7b", *arguments]), None
        )


def test_a_dry_run_prints_the_plan_and_starts_nothing(random_model, capsys):
    from jobs.train import main

    assert main(["preset=tiny", f"model.path={random_model}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    parameters = LlamaForCausalLM.from_pretrained(random_model).num_parameters()
    assert "80 learner steps × 20 problems × 8 episodes" in printed and f"{parameters:,} parameters" in printed
