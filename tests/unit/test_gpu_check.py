"""The checks of a GPU machine: what counts as a failure, what is printed, and that a wrong number is found."""

import io
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from jobs.gpu_check import __main__ as command
from jobs.gpu_check import attention, engine, learner, machine, training
from jobs.gpu_check.report import FAILED, PASSED, SKIPPED, Measured, Missed, Report, Result, Skipped, received, table_of
from jobs.gpu_check.settings import PARTS, Settings, check
from pipeline.config import load_config
from pipeline.learning.packing import build_micro_batch
from tests.support.forests import seen_by

SMALL = Settings(device="cpu", length=128)
WRITER = "import json, os, sys, time, subprocess\ndef send(**line): print(json.dumps(line), flush=True)\n"


# Settings.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parts=[learner,gpu]"], "gpu"),
        (["parts=[]"], "parts is empty"),
        (["device=tpu"], "device=tpu must be cuda or cpu"),
        (["device=cpu", "length=16"], "length=16 must lie between 128"),
        (["limit_s=0"], "limit_s=0 must be above 0"),
        (["part=[learner]"], "did you mean 'parts'"),
    ],
)
def test_a_wrong_value_is_refused(arguments, said, capsys):
    assert command.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_lengths_follow_from_the_device():
    assert load_config(["device=cpu"], Settings).length == 512
    assert load_config([], Settings).length == 7168
    assert load_config(["length=1000"], Settings).length == 1000
    check(load_config([], Settings))  # a good one


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    said = capsys.readouterr().err
    assert "torch sees no GPU" in said and "make setup GPU=1" in said and "device=cpu" in said


def test_every_part_is_a_module_and_the_help_names_it():
    for part in PARTS:
        assert callable(sys.modules[f"jobs.gpu_check.{part}"].run)
        assert f"\n{part} " in command.__doc__


# Results.


def reported(body) -> list[Result | str]:
    """What a report sends of a function that gets it."""
    lines = io.StringIO()
    body(Report("part", lines))
    return list(map(received, lines.getvalue().splitlines()))


def checked(body) -> Result:
    """The result of a check with this body."""

    def one(report):
        with report.check("it") as measured:
            body(measured)

    begun, result = reported(one)
    assert begun == "it" and result.seconds >= 0
    return replace(result, seconds=0.0)


def test_a_number_beyond_its_limit_fails_and_the_others_are_measured_all_the_same():
    def body(measured):
        measured.at_most("a", 1.0, 1.0)
        measured.at_least("b", 0.5, 1.0)
        measured.note("c")

    assert checked(body) == Result("part", "it", FAILED, 0.0, "a 1 ≤ 1, b 0.5 < 1, c")


@pytest.mark.parametrize("compare", [Measured.at_most, Measured.at_least])
def test_what_is_not_a_number_fails(compare):
    assert checked(lambda measured: compare(measured, "a", float("nan"), 1.0)).state == FAILED


def test_numbers_within_their_limits_pass():
    def body(measured):
        measured.at_most("a", 0.5, 1.0)
        measured.at_least("b", 2.0, 1.0)

    assert checked(body) == Result("part", "it", PASSED, 0.0, "a 0.5 ≤ 1, b 2 ≥ 1")


def test_a_part_continues_after_what_was_missed_or_skipped_and_ends_at_any_other_error(capsys):
    def body(report):
        with report.check("one"):
            raise Missed("wrong")
        with report.check("two"):
            raise Skipped("not here")
        with pytest.raises(KeyError), report.check("three"):
            raise KeyError("gone")

    results = [sent for sent in reported(body) if isinstance(sent, Result)]
    assert [(r.check, r.state, r.measured) for r in results] == [
        ("one", FAILED, "wrong"),
        ("two", SKIPPED, "not here"),
        ("three", FAILED, "KeyError: 'gone'"),
    ]
    assert "Traceback" in capsys.readouterr().err


def test_the_table_has_a_line_per_check():
    assert table_of([Result("learner", "MFU", PASSED, 1.26, "MFU 0.3 ≥ 0.05")]).splitlines() == [
        "| part | check | result | seconds | measured |",
        "| --- | --- | --- | --- | --- |",
        "| learner | MFU | passed | 1.3 | MFU 0.3 ≥ 0.05 |",
    ]


# Processes of the parts.


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Runs scripts in place of parts; returns the exit status and the written results."""

    def run(limit_s: float = 60.0, **parts: str) -> tuple[int, list[dict]]:
        monkeypatch.setattr(command, "command_of", lambda part, *_: [sys.executable, "-c", WRITER + parts[part]])
        output = tmp_path / "results.json"
        settings = Settings([*parts], device="cpu", limit_s=limit_s, output=str(output))
        return command.run_all(settings), json.loads(output.read_text())["results"]

    return run


def result(part: str, name: str, state: str = PASSED) -> str:
    return f"send(begins={name!r}); send(result={vars(Result(part, name, state, 1.0, 'said'))!r})\n"


def test_a_part_that_crashes_leaves_the_others(scripts, capsys):
    status, results = scripts(
        learner=result("learner", "step", FAILED) + "send(begins='MFU'); os.kill(os.getpid(), 11)",
        attention=result("attention", "trees"),
    )
    assert status == 1
    assert [(r["part"], r["check"], r["state"]) for r in results] == [
        ("learner", "step", FAILED),
        ("learner", "MFU", FAILED),
        ("attention", "trees", PASSED),
    ]
    assert "status -11" in results[1]["measured"] and "learner.log" in results[1]["measured"]
    printed = capsys.readouterr().out
    assert "| learner | MFU | failed |" in printed and "1 passed, 2 failed, 0 skipped" in printed


def test_a_failure_that_was_reported_is_not_reported_twice(scripts):
    status, results = scripts(learner=result("learner", "step", FAILED) + "sys.exit(1)")
    assert status == 1 and [r["check"] for r in results] == ["step"]


def test_what_is_skipped_is_no_failure(scripts):
    status, results = scripts(attention=result("attention", "FA3", SKIPPED))
    assert status == 0 and results[0]["state"] == SKIPPED


def test_a_part_that_takes_too_long_is_ended_with_what_it_has_started(scripts, tmp_path):
    started = tmp_path / "started"
    sleeper = f"child = subprocess.Popen(['sleep', '600']); open({str(started)!r}, 'w').write(str(child.pid))\n"
    status, results = scripts(limit_s=3.0, engine="send(begins='start')\n" + sleeper + "time.sleep(600)")
    assert status == 1
    assert (results[0]["check"], results[0]["state"]) == ("start", FAILED)
    assert "limit_s=3" in results[0]["measured"]
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(started.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(started.read_text()))


def test_sigterm_ends_the_command_and_the_part_that_runs(monkeypatch, tmp_path, capsys):
    part = tmp_path / "part"
    script = f"open({str(part)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), 15); time.sleep(600)"
    monkeypatch.setattr(command, "command_of", lambda *_: [sys.executable, "-c", WRITER + script])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main(["device=cpu", "parts=[engine]", f"output={tmp_path / 'results.json'}"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted" in capsys.readouterr().err
    assert not psutil.pid_exists(int(part.read_text()))


def test_a_part_for_a_cpu_sees_no_gpu():
    assert command.environment(SMALL, "learner")["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in command.environment(Settings(), "engine")
    for part, allocator in (("learner", "expandable_segments:True"), ("engine", None)):
        assert command.environment(Settings(), part).get("PYTORCH_CUDA_ALLOC_CONF") == allocator


# Machine.


def test_a_missing_package_is_skipped_and_a_broken_one_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "halfway.py").write_text("import no_such_module")
    (tmp_path / "unloadable.py").write_text("raise OSError('libcudart.so: cannot open')")
    with pytest.raises(Skipped, match="not installed; needed by engine"):
        machine.version("no_such_package", "engine")
    with pytest.raises(Missed, match="no_such_module"):
        machine.version("halfway", "engine")
    with pytest.raises(Missed, match="libcudart"):
        machine.version("unloadable", "engine")


# Learner.


def steps_of(folder: Path, *weights: dict[str, list]) -> tuple[Path, list[learner.Step]]:
    """Files of the weights at the start, and steps with the other weights."""
    files = [folder / str(number) for number in range(len(weights))]
    for file, tensors in zip(files, weights, strict=True):
        torch.save({name: torch.tensor(value) for name, value in tensors.items()}, file)
    return files[0], [learner.Step(-0.5, 2.0, file) for file in files[1:]]


def compared(step, expected, start) -> Measured:
    measured = Measured()
    learner.compare(SMALL, step, expected, start, measured)
    return measured


def test_the_distance_of_weights_is_relative_to_their_way(tmp_path):
    """Expected to move by (3, 4) and 12, together 13; off by (0, 0.03) and 0.04, together 0.05."""
    start, (step, expected) = steps_of(
        tmp_path,
        {"matrix": [[1.0, 1.0]], "bias": [0.0]},
        {"matrix": [[4.0, 5.03]], "bias": [12.04]},
        {"matrix": [[4.0, 5.0]], "bias": [12.0]},
    )
    assert compared(step, expected, start).said == [
        "loss 0 ≤ 0.001",
        "gradient norm 0 ≤ 0.01",
        "weights 0.00385 ≤ 0.01",
        "worst matrix (matrix) 0.006 ≤ 0.05",
        "weights that should have moved 0 ≤ 0",
    ]


def failed(measured: Measured) -> bool:
    try:
        measured.settle()
    except Missed:
        return True
    return False


def test_equal_steps_pass_and_a_step_that_did_nothing_or_another_one_fails(tmp_path):
    before, after, other = {"m": [[1.0, 1.0]]}, {"m": [[1.1, 0.9]]}, {"m": [[1.1, 1.1]]}
    start, (step, same, still, wrong) = steps_of(tmp_path, before, after, after, before, other)
    assert not failed(compared(same, step, start))
    assert failed(compared(still, step, start)) and failed(compared(wrong, step, start))
    assert failed(compared(replace(same, loss=-0.51), step, start))
    assert failed(compared(replace(same, grad_norm=2.1), step, start))


def test_weights_of_other_names_and_a_gradient_that_is_not_finite_fail(tmp_path):
    start, (step, other) = steps_of(tmp_path, {"m": [[1.0]]}, {"m": [[2.0]]}, {"n": [[2.0]]})
    with pytest.raises(Missed, match="only one of the steps has m, n"):
        compared(other, step, start)
    with pytest.raises(Missed, match="not finite"):
        compared(replace(step, grad_norm=None), step, start)


def test_a_buffer_of_another_dtype_or_value_is_found():
    buffer = torch.tensor([1.0, 0.5])
    assert learner.same(buffer.clone(), buffer)
    assert not learner.same(buffer.bfloat16(), buffer)
    assert not learner.same(buffer * (1 + 2**-8), buffer)
    assert not learner.same(None, buffer)


def test_what_a_step_computes_is_counted_from_its_rows():
    groups, advantages, update = learner.batch_of(SMALL)
    rows = [build_micro_batch(m, groups, advantages, learner.no_rewards(groups)) for m in update.micro_batches]
    assert len(rows) == learner.GROUPS and all(len(row.forest.branches) > 2 for row in rows)
    counted = learner.computed(SMALL)
    assert counted.tokens == sum(len(row.tokens) for row in rows)
    assert counted.pairs == sum(int(seen_by(row.forest).sum()) for row in rows)
    assert counted.predicted == sum(len(row.targets) for row in rows) == update.tokens


def test_the_longest_conversation_has_the_length_that_was_asked_for():
    groups, _, _ = learner.batch_of(SMALL)
    assert [max(group.lengths) for group in groups.values()] == [SMALL.length] * learner.GROUPS
    assert len(set(groups[0].lengths.tolist())) > 1  # so that a padded batch has padding


# Attention.


class Unscaled(attention.Varlen):
    """Forgets the scale of the scores."""

    def attend(self, query, key, value):
        return super().attend(2 * query, key, value)


class Blind(attention.Trees):
    """Its branches do not see the prefix that they share."""

    def forest(self):
        return attention.Forest(self.rows.forest.branches)


class Leaking(attention.Padded):
    """Tokens see those that follow."""

    def attend(self, query, key, value):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)


@pytest.fixture(scope="module")
def measured_by():
    """Measures a kernel."""
    rows = attention.rows_of(SMALL)
    inputs, upstream = attention.tensors_of(SMALL, rows)
    exact = attention.results(attention.Exact(rows, torch.float64), [x.double() for x in inputs], upstream.double())

    def run(kernel) -> Measured:
        measured = Measured()
        attention.measure(kernel(rows, torch.float32), inputs, upstream, exact, SMALL, measured)
        return measured

    return run


@pytest.mark.parametrize("kernel", [attention.Padded, attention.Varlen, attention.Trees])
def test_the_kernels_agree_with_the_plain_formula_and_are_timed(measured_by, kernel):
    measured = measured_by(kernel)
    assert not failed(measured), measured.said
    assert measured.said[-1].endswith(" ms") and float(measured.said[-1].split()[0]) > 0


@pytest.mark.parametrize("kernel", [Unscaled, Blind, Leaking])
def test_a_wrong_kernel_is_found(measured_by, kernel):
    assert failed(measured_by(kernel))


def test_a_kernel_that_torch_cannot_activate_is_skipped(monkeypatch):
    on_gpu = Settings()
    with pytest.raises(Skipped, match="not available: it needs a GPU"), attention.activated("fa3", SMALL):
        pass
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(Skipped, match="not available: ModuleNotFoundError"), attention.activated("fa3", on_gpu):
        pass
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(Skipped, match=r"compute capability 9\.x, and this one has 8\.0"):
        with attention.activated("fa3", on_gpu):
            pass


# Engine and training.


@pytest.mark.parametrize(
    ("versions", "is_wrong"),
    [
        ([[0, 0, 1], [1, 2, 2], [3], [2, 3]], False),
        ([[0, 1, 2, 3]], False),
        ([[0, 1], [2, 3]], True),  # nothing was in flight at update 2
        ([[0, 1, 2, 3], [1, 0]], True),
        ([[0, 1, 2, 3, 4]], True),
    ],
)
def test_versions_rise_and_every_update_finds_requests_in_flight(versions, is_wrong):
    measured = Measured()
    engine.check_versions(versions, 3, measured)
    assert failed(measured) == is_wrong


def test_models_buckets_hold_what_was_saved(tmp_path):
    from jobs.gpu_check.samples import write_model
    from pipeline.weights.buckets import unpack_bucket

    model = write_model(tmp_path, SMALL, seed=0)
    names = {name for bucket in engine.buckets_of(model, SMALL) for name, *_ in bucket.entries}
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names  # the head is tied
    (first, *_) = engine.buckets_of(model, SMALL)
    assert all(t.isfinite().all() for _, t in unpack_bucket(first.entries, torch.from_numpy(first.data.copy())))


def rows(rewards, **values) -> list[dict]:
    return [{"reward": r, "updates_skipped": 0, "logprob_mismatch_mean": None, **values} for r in rewards]


def judged(rows) -> bool:
    measured = Measured()
    try:
        training.judge(rows, measured)
    except Missed:
        return False
    return not failed(measured)


def test_training_passes_if_the_last_five_rewards_are_above_the_first_five():
    rising = np.linspace(0.2, 0.8, 20).tolist()
    assert judged(rows(rising))
    assert not judged(rows(rising[::-1])) and not judged(rows([0.5] * 20))
    assert not judged(rows(rising[:19]))  # not all steps
    assert not judged(rows(rising, updates_skipped=1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_arguments_of_training_are_a_good_configuration(device):
    from pipeline.run.config import load_training_config
    from pipeline.run.rules import check_config

    config = load_training_config(training.arguments(Settings(device=device)))
    check_config(config)
    assert config.train.steps == training.STEPS
    assert (config.generator.num_gpus, config.learner.num_gpus) == ((0.5, 0.5) if device == "cuda" else (0, 0))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_engines_configuration_is_a_good_one(device, tmp_path):
    config = engine.configuration(load_config([f"device={device}"], Settings), tmp_path)
    assert config.generator.enforce_eager == (device == "cpu")
    assert config.model.dtype == ("float32" if device == "cpu" else "bfloat16")
    assert config.agent.window == (512 if device == "cpu" else 7168)
    assert os.fspath(config.model.path) == str(tmp_path)
