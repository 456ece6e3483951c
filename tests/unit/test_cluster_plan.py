"""The plan of a run on a cluster, against numbers worked by hand and against measured ones."""

import json
import re
from dataclasses import replace
from math import ceil

import pytest

from jobs import plan
from pipeline.agents.prompts import estimated_layout, load_template
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.learning.device_memory import architecture_of
from pipeline.learning.flops import PEAKS, Computed, forward_flops
from pipeline.run.calibration import LEARNING, core_rates, gpu_rates
from pipeline.run.cluster_config import load_plan_config
from pipeline.run.cluster_plan import (
    KV,
    best_split,
    cluster_plan,
    exchange_seconds,
    generate,
    kv_room,
    learn,
    matrix_bytes,
    place,
    step_seconds,
)
from pipeline.run.devices import DEVICES
from pipeline.run.kv_cache import token_bytes
from pipeline.run.workload import Workload

SEVEN = architecture_of(json.loads((CONFIGS / "models" / "Qwen2.5-7B-Instruct" / "config.json").read_text()))
H100 = gpu_rates(DEVICES["H100"])
PAPER = Workload(
    6, 16, 16, 64, 4667, 512, 3, 512, [60, "problem", 10, "memory", 10, "chunk", 20], [50, "problem", 10, "memory", 20]
)
SECTION_FIRST = replace(PAPER, reading=[60, "problem", 10, "chunk", 10, "memory", 20])


def config(*arguments: str, preset: str = "memagent_7b"):
    return load_plan_config([f"preset={preset}", *arguments])


# Devices.


def test_every_device_with_a_peak_has_a_memory():
    assert list(DEVICES) == list(PEAKS)
    assert all(device.peak == PEAKS[name] for name, device in DEVICES.items())
    h100 = DEVICES["H100"]
    assert (h100.memory, h100.bandwidth, h100.link) == (79 * 2**30, 3.35e12, 450e9)


def test_the_rates_of_a_gpu_say_that_they_are_assumed():
    assert H100.source.startswith("ASSUMED")
    assert H100.learning == pytest.approx(0.4 * 989e12) and H100.bandwidth == pytest.approx(0.7 * 3.35e12)


@pytest.mark.parametrize(
    ("tokens", "pairs", "measured"),
    [
        (98_304, 16 * 6144 * 6145 // 2, 1.763),  # packed
        (21_504, 5120 * 5121 // 2 + 16 * (1024 * 5120 + 1024 * 1025 // 2), 0.573),  # trees
    ],
)
def test_the_learners_utilization_is_near_the_one_measurement_on_a_gpu(tokens, pairs, measured):
    """docs/performance.md, "Sharing on a GPU": one H200, G = 16, four layers, activations checkpointed. A sequence has
    5,000 + 512 + 512 tokens and 120 of the template, of which the last 1,024 are its own in the tree."""
    four = replace(SEVEN, layers=4)
    flops = 4 * forward_flops(four, Computed(tokens, pairs, 16 * 512))
    assert flops / (LEARNING * PEAKS["H200"]) == pytest.approx(measured, rel=0.25)
    assert 0.38 < flops / measured / PEAKS["H200"] < 0.49  # as pipeline/run/calibration.py says


# Generation.


def test_prefill_takes_two_flops_for_a_parameter_and_token():
    """Of 7.6e9 parameters the two embeddings of 152,064 × 3,584 are no matrices of the layers: 6.5e9 remain. A group of
    one chunk and no sharing to speak of: 16 × 4,000 tokens at 13 GFLOP are 0.85 PFLOP; attention adds 2%."""
    layers = 7_615_616_512 - 2 * 152_064 * 3584
    assert forward_flops(SEVEN, Computed(tokens=1)) == pytest.approx(2 * layers, rel=1e-4)
    w = Workload(2, 16, 16, 1, 4000, 1, 1, 1, [0, "memory", 0, "chunk", 0, "problem"], [0, "memory", 0])
    c = config("generator.count=1", "train.max_staleness=0")
    generation = generate(c, SEVEN, w, replace(H100, prefill=1e15, decode=1e15, step_s=0), groups=1)
    first, later, answers = 4002, 16 * 4002, 16
    attention = 4 * 28 * 3584 * 17 * 4002 * 4003 / 2
    assert generation.seconds == pytest.approx((2 * layers * (first + later + answers) + attention) / 1e15, rel=1e-3)
    assert generation.decoding == 0


def test_a_key_value_cache_of_the_7b_model_takes_57_kilobytes_a_token():
    """28 layers × (4 heads of 128 for keys + as many for values) × 2 bytes. An H100 at 0.9 of 79 GiB, less 2 GiB of
    its own use and 15.23 GB of weights, has room for 59.0 GB."""
    c = config()
    assert token_bytes(c, SEVEN) == 57_344
    assert kv_room(c, SEVEN) == pytest.approx(58.97e9, rel=1e-3)
    assert matrix_bytes(c, SEVEN) == pytest.approx(15.23e9 - 2 * 152_064 * 3584, rel=1e-3)  # not the input embedding
    two = config("generator.tensor_parallel=2", "generator.num_gpus=2")
    assert kv_room(two, SEVEN) == pytest.approx(2 * (0.9 * 79 - 2) * 2**30 - 15.23e9, rel=1e-3)
    assert kv_room(config("generator.gpu_kv_cache_gib=5"), SEVEN) == 5 * 2**30


def test_decoding_reads_the_weights_once_and_every_sequences_cache():
    """100 sequences of 6,000 tokens in the cache: 14.1 + 34.4 GB at 2.345 TB/s are 20.7 ms, and 3 of the engine's host.
    So 5,110 responses of two tokens, of which one is decoded, take 51.1 steps."""
    w = Workload(1, 2555, 2555, 0, 5980, 2, 20, 2, ["memory", "chunk"], ["chunk", 6000, "memory"])
    w = replace(w, answering=[5998, "memory"])
    c = config("generator.count=1", "generator.max_sequences=100")
    generation = generate(c, SEVEN, w, replace(H100, prefill=1e30), groups=1)
    assert (generation.batch, generation.limit) == (100, "generator.max_sequences")
    assert generation.bound == "memory bandwidth" and generation.decoding == pytest.approx(1)
    step = (matrix_bytes(c, SEVEN) + 100 * 57_344 * 6001) / (0.7 * 3.35e12) + 0.003
    assert step == pytest.approx(0.0237, rel=0.01)
    assert generation.seconds == pytest.approx(51.1 * step, rel=1e-3)


def test_a_group_takes_as_long_as_estimated_on_the_page_of_the_benchmarks():
    """docs/performance.md, "Coordinator", with the section first: prompts 3 s, responses 12 s, a group 15 s of an
    engine with 125 sequences at 2.3 TB/s; in round numbers, with every sequence at its full length."""
    w = Workload(6, 16, 16, 158, 4667, 512, 3, 512, SECTION_FIRST.reading, PAPER.answering)
    c = config("generator.count=1", "generator.max_sequences=125", "train.max_staleness=0")
    generation = generate(c, SEVEN, w, replace(H100, prefill=500e12, bandwidth=2.3e12, step_s=0), groups=1)
    assert generation.seconds == pytest.approx(15, rel=0.2)


def test_the_batch_is_what_is_least():
    def limit(*arguments: str) -> str:
        return generate(config(*arguments), SEVEN, PAPER, H100, 128).limit

    assert limit() == KV and limit("generator.max_sequences=16") == "generator.max_sequences"
    # With 0 the engine takes as many whole windows of 8,192 tokens as fit: 58.97 GB / 57,344 / 8,192.
    assert generate(config(), SEVEN, PAPER, H100, 128).batch == 125
    assert limit("train.groups_per_step=16", "train.max_staleness=0") == "the episodes in flight"


# Learning.


def test_learning_takes_three_forward_passes_and_one_for_each_thing_more():
    def seconds(*arguments: str) -> float:
        given = ("learner.checkpoint_layers=all", "objective.kl_coefficient=0", "train.updates_per_step=1")
        c = config(*given, "cluster.network_gb_s=1000", *arguments)
        return learn(c, SEVEN, PAPER, H100, place(c)).seconds

    forward = forward_flops(SEVEN, PAPER.prompts() + PAPER.written()) * 128 / 24 / (0.4 * 989e12)
    assert seconds("learner.checkpoint_layers=0") == pytest.approx(3 * forward)
    assert seconds("learner.checkpoint_layers=7") == pytest.approx(3.25 * forward)  # of 28
    assert seconds() == pytest.approx(4 * forward)
    assert seconds("objective.kl_coefficient=0.1") == pytest.approx(5 * forward)
    assert seconds("train.updates_per_step=16") == pytest.approx((4 + 15 / 16) * forward)
    assert seconds("train.updates_per_step=16", "objective.decoupled=false") == pytest.approx(4 * forward)
    assert seconds("cluster.informative_share=0.5") == pytest.approx(2 * forward)
    assert seconds("cluster.informative_share=0.5", "train.dynamic_sampling=true") == pytest.approx(4 * forward)


def test_a_slow_network_makes_the_ranks_wait_for_the_exchange():
    """For each micro-batch weights are gathered twice in bfloat16 and gradients reduced once in float32: 8 bytes of
    7.6e9 parameters. Two thirds of them come from the two other nodes, at 0.8 of 1 GB/s: 50.8 s."""
    c = config("objective.kl_coefficient=0", "train.updates_per_step=1", "cluster.network_gb_s=1")
    group = (PAPER.prompts() + PAPER.written()).tokens
    learning = learn(c, SEVEN, PAPER, H100, place(c))
    assert learning.seconds == pytest.approx(ceil(128 * group / 24 / 32768) * 50.77, rel=1e-3)
    assert learning.gathers > 0.5


def test_inside_a_node_the_exchange_goes_through_the_gpus_links():
    c = config("learner.ranks=4", "learner.min_ranks=1", preset="one_node")
    assert exchange_seconds(c, 12e9, H100, place(c)) == pytest.approx(12e9 * 3 / 4 / (0.8 * 450e9))
    assert exchange_seconds(config("learner.ranks=1", preset="one_node"), 12e9, H100, place(c)) == 0


# The step.


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["preset=memagent_7b"], 40),  # GPUs of their own
        (["preset=memagent_7b", "train.max_staleness=0"], 40 + 20 + 3),
        (["preset=one_gpu"], 60),  # both on one GPU
        # One engine and two ranks on two cores: 20 s at two thirds of a core each are 30 s, then 20 s remain.
        (["preset=tiny", "learner.ranks=2"], 50),
        (["preset=tiny", "learner.ranks=2", "cluster.cores=3"], 40),
    ],
)
def test_both_sides_work_at_the_same_time_as_far_as_there_are_devices(arguments, seconds):
    assert step_seconds(load_plan_config(arguments), 40.0, 20.0, broadcast=3.0) == pytest.approx(seconds)


def test_learning_may_be_the_longer_side():
    """Two ranks that need 40 s of a core each, and an engine that needs 20: 30 s together, then 20 s at full speed."""
    assert step_seconds(load_plan_config(["preset=tiny", "learner.ranks=2"]), 20.0, 40.0, 0.0) == pytest.approx(50)


# Nodes and memory.


def test_the_host_memory_of_a_node():
    """7B in bfloat16 has 15.23 GB. The node with eight engines: 4 GiB each, three versions. A node with eight of 24
    ranks: 4 GiB each, the share of a version on its way and in the object store and of the reference model (0.63 GB
    each), 12 bytes for each of 317M parameters while a checkpoint is written, and on one node the model. With deltas
    each rank keeps another share. A scorer has 1 GiB."""
    gib = 2**30
    ranks = 8 * (4 * gib + 3 * 15.231e9 / 24 + 12 * 7.6156e9 / 24) + 15.231e9
    engines = 8 * 4 * gib + 3 * 15.231e9
    assert cluster_plan(config(), SEVEN, PAPER, H100).memory.node_host == pytest.approx(
        max(ranks, engines) + gib, rel=1e-3
    )
    deltas = cluster_plan(config("learner.weight_deltas=true"), SEVEN, PAPER, H100).memory.node_host
    assert deltas == pytest.approx(max(ranks + 8 * 15.231e9 / 24, engines + 15.231e9) + gib, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "nodes"),
    [
        ([], (4, 1, 3, 8, 8)),
        (["cluster.gpus_per_node=16"], (2, 1, 2, 8, 16)),
        # Engines of two GPUs, nodes of four: two engines on the first, one and two ranks on the second.
        (
            ["generator.count=3", "generator.tensor_parallel=2", "generator.num_gpus=2", "learner.ranks=2"]
            + ["cluster.gpus_per_node=4"],
            (2, 2, 1, 2, 2),
        ),
    ],
)
def test_processes_are_placed_on_whole_nodes(arguments, nodes):
    where = place(config(*arguments))
    assert (where.count, where.generating, where.learning, where.generators, where.ranks) == nodes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cluster.nodes=3"], ["need 4 nodes of 8 GPUs: there are cluster.nodes=3"]),
        (["cluster.host_memory_gib=50"], ["host memory and has cluster.host_memory_gib=50"]),
        (["learner.ranks=1"], ["a learner rank needs"]),
        (["cluster.device=L4"], ["a learner rank needs"]),
        (["generator.gpu_memory_share=0.2"], ["no room for agent.window=8,192 tokens beside 14.2 GiB of weights"]),
        (["generator.gpu_kv_cache_gib=70"], ["an engine needs 86.2 GiB and cluster.device=H100 has 79.0 GiB"]),
        (["cluster.device=H200"], []),
    ],
)
def test_what_does_not_fit_is_said(arguments, said):
    faults = cluster_plan(config(*arguments), SEVEN, PAPER, H100).faults
    assert len(faults) == len(said) and all(part in fault for part, fault in zip(said, faults, strict=True))


def test_the_best_division_has_the_shortest_step_of_all():
    c = config()
    generators, ranks, seconds = best_split(c, SEVEN, PAPER, H100)
    assert generators + ranks == 32 and seconds < cluster_plan(c, SEVEN, PAPER, H100).seconds
    for count in range(1, 32):
        other = config(f"generator.count={count}", f"learner.ranks={32 - count}")
        tried = cluster_plan(other, SEVEN, PAPER, H100)
        assert tried.faults or tried.seconds >= seconds - 1e-9
    assert best_split(config(preset="one_gpu"), SEVEN, PAPER, H100) is None


# Calibration.


def test_the_rates_of_a_core_follow_from_a_runs_rows():
    """One engine and two ranks on two cores. The ranks train for 30 of 50 s, when each thread has two thirds of a core:
    40 core seconds. The engine is busy for 45 s, of which 30 at two thirds: 35 core seconds. So 1.2 TFLOP of the ranks
    are 30 GFLOP/s, and 0.7 TFLOP of the engine 20 GFLOP/s."""
    row = {
        "learner_ranks": 2,
        "seconds": 50.0,
        "train_seconds": 30.0,
        "generators_waited": 0.1,
        "learner_tflops": 1.26 / (2 * 30),
        "generator_tflops": 0.72 / 45,
        "update_pause_max": 2.0,
        "publish_seconds": 1.0,
    }
    rates = core_rates([row, row], model_bytes=100, cores=2, source="by hand")
    assert (rates.learning, rates.prefill, rates.decode) == pytest.approx((30e9, 20e9, 20e9))
    assert rates.host_link == 50
    three = core_rates([row], model_bytes=100, cores=3, source="by hand")  # no thread waits for a core
    assert (three.learning, three.decode) == pytest.approx((21e9, 16e9))


# The configuration.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cluster.device=H1000"], "must be one of GB200, B200"),
        (["cluster.device=CPU"], "cluster.device=CPU does not go with generator.num_gpus=1"),
        (["cluster.gpus_per_node=0"], "cluster.gpus_per_node=0 must be greater than 0"),
        (["cluster.informative_share=0"], "cluster.informative_share=0 must be above 0"),
        (["cluster.distinct_memories=17"], "must be 0, or lie between 1 and train.group_size=16"),
        (["cluster.memory_tokens=2000"], "must be at most agent.memory_tokens=1024"),
        (["train.method=direct"], "a plan knows the method memory only"),
        (["cluster.pirce=3"], "did you mean 'cluster.price'"),
        (["train.group_size=1"], "train.group_size=1 must be at least 2"),
    ],
)
def test_a_wrong_configuration_is_explained(arguments, said):
    with pytest.raises(ConfigError, match=said):
        config(*arguments)


def test_the_device_is_a_gpu_where_the_run_has_gpus():
    assert config().cluster.device == "H100" and config(preset="tiny").cluster.device == "CPU"


# The command.


def test_the_command_prints_the_plan_and_its_price(capsys):
    assert plan.main(["preset=memagent_7b", "cluster.price=2.5", "cluster.document_tokens=32000"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == "" and printed in (CONFIGS.parent / "docs/cluster.md").read_text(encoding="utf-8")
    assert "rates: ASSUMED, not measured" in printed and "is from one measured pass on an H200\n" in printed
    assert "on 32 GPUs: 4 nodes of 8 H100, 50 GB/s between nodes" in printed
    assert "document: 32,000 tokens: 7 chunks" in printed and "= 16,384 conversations" in printed
    (step,) = re.findall(r"^step +([\d,]+) s  learning binds", printed, re.MULTILINE)
    hours, gpu_hours, price = re.findall(
        r"^400 steps: ([\d.]+) hours, ([\d,]+) GPU-hours .*, ([\d,]+) at", printed, re.M
    )[0]
    assert float(hours) == pytest.approx(400 * float(step.replace(",", "")) / 3600, rel=0.01)
    assert float(gpu_hours.replace(",", "")) == pytest.approx(32 * float(hours), rel=0.01)
    assert float(price.replace(",", "")) == pytest.approx(2.5 * 32 * float(hours), rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["preset=memagent_7b", "cluster.nodes=3"], 1, "does not fit: 8 generators and 24 learner ranks need 4 nodes"),
        (["preset=memagent_7b", "cluster.device=H1000"], 2, "configuration error:\ncluster.device='H1000'"),
        (["preset=tiny", "model.dtype=bfloat16"], 2, "nothing was measured for 343,040 parameters in bfloat16"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, status, said, capsys):
    assert plan.main(arguments) == status
    assert said in capsys.readouterr().err


def test_an_estimated_layout_has_the_templates_slots_in_order():
    template = load_template("memagent_chunk_first")
    layout = estimated_layout(template, "memory", ("problem", "memory", "chunk"), 4.5)
    assert [part for part in layout if isinstance(part, str)] == ["problem", "chunk", "memory"]
    fixed = template.prompts["memory"].format(problem="", memory="", chunk="")
    assert sum(part for part in layout if isinstance(part, int)) == pytest.approx(len(fixed) / 4.5, abs=2)
