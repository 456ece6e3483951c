"""The benchmarks compare like with like, say what they measured, and keep what was measured before."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jobs.bench import __main__ as bench
from jobs.bench import asynchrony, claims, coordinator, length, loss, measuring, page, pipeline, server_load, stand_ins
from jobs.bench.claims import CLAIMS, Result
from jobs.support.keys import sections_of

SMALL = loss.Settings(
    vocabulary=300, hidden=128, layers=1, conversations=2, prompt_tokens=20, response_tokens=10, rounds=1, repeats=1
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results and the page are in a folder of the test."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    return tmp_path


# Turns, numbers and tables.


def test_variants_take_turns_in_reverse_order_every_second_round(capsys):
    order = []

    def run(variant: str) -> int:
        order.append(variant)
        return len(order)

    assert measuring.take_turns(["a", "b", "c"], 3, run) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert "".join(order) == "abccbaabc"
    assert capsys.readouterr().err.splitlines()[3] == "· round 2 of 3: c"


def test_ratios_are_to_the_first_variant_of_the_same_round():
    ratios = measuring.to_first({"plain": [2.0, 10.0], "ours": [1.0, 20.0]})
    assert ratios == {"plain": [1.0, 1.0], "ours": [0.5, 2.0]}
    with pytest.raises(ValueError):
        measuring.to_first({"plain": [2.0, 10.0], "ours": [1.0]})


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([1.0], "1.00"),
        ([3.0, 1.0, 2.0], "2.00 (1.00–3.00)"),
        ([1.001, 1.002], "1.00"),
        ([1.0, 1.0, 2.0], "1.00 (1.00–2.00)"),
    ],
)
def test_a_number_is_a_median_with_the_lowest_and_highest(numbers, shown):
    assert measuring.spread(numbers) == shown


def test_a_table_is_markdown():
    assert measuring.table(("a", "b"), [(1, "x"), (2, "y")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | x |",
        "| 2 | y |",
    ]


def test_the_machine_is_described_without_its_name():
    import socket

    said = measuring.machine()
    assert " of " in said and "GiB" in said and "core" in said
    assert socket.gethostname() not in said


def test_a_turn_of_its_own_has_one_thread_and_returns_what_it_measured(monkeypatch):
    ran = []

    def popen(command, env, **_):
        ran.append((command, env))
        return SimpleNamespace(
            args=command, returncode=0, communicate=lambda: ('a line of a library\n{"seconds": 2}\n', "")
        )

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert measuring.in_own_process("loss", "ours", {"layers": 1}) == {"seconds": 2}
    ((command, environment),) = ran
    assert command == [sys.executable, "-m", "jobs.bench", "loss", "--measure", '["ours", {"layers": 1}]']
    assert environment["OMP_NUM_THREADS"] == "1"


def test_the_output_of_a_turn_that_fails_is_shown():
    with pytest.raises(RuntimeError, match="(?s)no-such-claim ended with status 2.*claims: "):
        measuring.output_of(["jobs.bench", "no-such-claim"])


def test_a_claim_measures_the_turn_that_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr(loss, "measure", lambda variant, given: {"is": [variant, given]})
    assert bench.main(["loss", "--measure", json.dumps(["ours", {"layers": 1}])]) == 0
    assert json.loads(capsys.readouterr().out) == {"is": ["ours", {"layers": 1}]}


# Commands.


def test_help_lists_the_claims_with_a_line_each(capsys):
    assert bench.main(["--help"]) == 0
    printed = capsys.readouterr()
    listed = printed.out.partition("Claims:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(CLAIMS) and printed.err == ""
    assert all(len(line.split()) > 5 and line.endswith(".") for line in listed)


@pytest.mark.parametrize("claim", CLAIMS)
def test_help_of_a_claim_says_what_it_compares_and_lists_its_keys(claim, capsys):
    assert bench.main([claim, "-h"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"python -m jobs.bench {claim} key=value …\n\n{claims.summary_of(claim)}\n")
    keys = [key for section in sections_of(claims.load(claim).Settings) for key in section.keys]
    assert keys and all(key.comment and f"{key.name}: " in printed for key in keys)


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_unknown_key_is_named(claim, capsys, folder):
    assert bench.main([claim, "vocabluary=5"]) == 2
    assert "vocabluary" in capsys.readouterr().err and not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "claims: "),
        (["los"], "claims: "),
        (["all", "rounds=1"], "all takes no arguments"),
        (["write", "loss"], "write takes no arguments"),
        (["loss", "rounds=0"], "rounds and repeats must be at least 1"),
        (["asynchrony", "steps=3"], "steps must be above 4"),
        (["length", "tokens=[10]"], "lengths of 36 or more"),
        (["length", "chunk_tokens=300"], "between 1 and 210"),
        (["pipeline", "groups=0"], "groups and rounds must be at least 1"),
        (["pipeline", "preset=tyni"], "tyni"),
        (["pipeline", "arguments=train.steps=3"], "leave out train.steps=3"),
        (["pipeline", "arguments=generator={count:2}"], "sets generator.count itself"),
        (["pipeline", "arguments=run.name=mine"], "sets run.name itself"),
        (["pipeline", "arguments=train.seeded_sampling=true"], "train.seeded_sampling must be false"),
        (["serving", "readings=51"], "replicas divide readings, documents"),
        (["serving", "documents=48"], "documents=48 must be at least readings=50"),
        (["coordinator", "generators=[]"], "generators must be a list"),
        (["coordinator", "groups=3071"], "groups must be at least 3072 (3 steps)"),
        (["coordinator", "groups_per_second=0"], "groups_per_second"),
    ],
)
def test_wrong_arguments_are_explained(arguments, said, capsys, folder):
    assert bench.main(arguments) == 2
    assert said in capsys.readouterr().err and not list(folder.iterdir())


# Results and the page.


def test_a_claim_prints_its_tables_and_keeps_them(folder, monkeypatch, capsys):
    monkeypatch.setattr(length, "run", lambda settings: f"| {settings.chunk_tokens} |")
    assert bench.main(["length", "chunk_tokens=7"]) == 0
    assert capsys.readouterr().out == "| 7 |\n"
    (result,) = claims.kept("length")
    assert result.tables == "| 7 |" and result.command == "python -m jobs.bench length chunk_tokens=7"
    assert result.machine == measuring.machine()


def test_the_page_has_a_section_per_claim_with_text_command_tables_and_machine(folder):
    claims.keep("loss", Result("python -m jobs.bench loss rounds=3", "2 cores of a CPU, 16 GiB", "| a |\n| --- |"))
    assert bench.main(["write"]) == 0
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.startswith(page.BEGINNING) and max(map(len, text.splitlines())) <= page.WIDTH
    found = page.sections(text)
    assert list(found) == [claim.capitalize() for claim in CLAIMS]
    paragraphs = found["Loss"].rstrip().split("\n\n")
    assert paragraphs[0] == "## Loss" and paragraphs[1].replace("\n", " ") == claims.summary_of("loss")
    assert paragraphs[-3:] == [
        "    python -m jobs.bench loss rounds=3",
        "| a |\n| --- |",
        "Measured on 2 cores of a CPU, 16 GiB.",
    ]
    assert all(page.NOT_MEASURED in text for name, text in found.items() if name != "Loss")


def test_a_claim_keeps_one_result_per_command_and_shows_all(folder):
    for command, tables in (("loss rounds=3", "old"), ("loss", "plain"), ("loss rounds=3", "new")):
        claims.keep("loss", Result(f"python -m jobs.bench {command}", "a machine", f"{tables} table"))
    page.write_page()
    text = page.sections(page.PAGE.read_text(encoding="utf-8"))["Loss"]
    shown = [text.index(part) for part in ("bench loss\n", "plain table", "bench loss rounds=3", "new table")]
    assert shown == sorted(shown) and "old table" not in text
    (claims.RESULTS / "loss.json").unlink()  # as on another machine
    claims.keep("loss", Result("python -m jobs.bench loss rounds=5", "another machine", "other table"))
    page.write_page()
    there = page.sections(page.PAGE.read_text(encoding="utf-8"))["Loss"]
    assert "other table" in there and page.commands(text).items() <= page.commands(there).items()


def test_an_item_of_a_list_is_wrapped_without_the_indentation_of_its_docstring():
    assert page.paragraphs("Two:\n\n- an item that\n  has two lines\n- another") == [
        "Two:",
        "- an item that has two lines\n- another",
    ]


def test_a_section_is_replaced_and_the_others_stay(folder):
    for claim in CLAIMS:
        claims.keep(claim, Result(f"python -m jobs.bench {claim}", "a machine", f"{claim}: old"))
    page.write_page()
    before = page.sections(page.PAGE.read_text(encoding="utf-8"))
    for claim in CLAIMS:  # as on another machine, and after a checkout
        (claims.RESULTS / f"{claim}.json").unlink()
    page.write_page()
    assert page.sections(page.PAGE.read_text(encoding="utf-8")) == before
    claims.keep("loss", Result("python -m jobs.bench loss", "a machine", "loss: new"))
    page.write_page()
    after = page.sections(page.PAGE.read_text(encoding="utf-8"))
    assert "loss: new" in after["Loss"] and "loss: old" not in after["Loss"]
    assert {**after, "Loss": ""} == {**before, "Loss": ""}


def test_a_section_of_no_claim_stays_and_one_without_numbers_follows_its_module(folder):
    page.PAGE.write_text(f"# Old\n\n## Loss\n\nOld text.\n\n{page.NOT_MEASURED}\n\n## By hand\n\nNumbers.\n")
    page.write_page()
    found = page.sections(page.PAGE.read_text(encoding="utf-8"))
    assert found["By hand"] == "## By hand\n\nNumbers.\n" and list(found)[-1] == "By hand"
    assert "Old text" not in found["Loss"]


def test_all_measures_every_claim_and_writes_the_page_even_if_one_fails(folder, monkeypatch, capsys):
    def run(command):
        claim = command[-1]
        if claim != "loss":
            claims.keep(claim, Result(f"python -m jobs.bench {claim}", "a machine", f"{claim} measured"))
        return SimpleNamespace(returncode=int(claim == "loss"))

    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=run))
    assert bench.main(["all"]) == 1
    assert "not measured: loss;" in capsys.readouterr().err
    found = page.sections(page.PAGE.read_text(encoding="utf-8"))
    assert page.NOT_MEASURED in found.pop("Loss")
    assert all(f"{name.lower()} measured" in text for name, text in found.items())


def test_the_page_of_the_repository_has_all_claims():
    headings = list(page.sections(page.PAGE.read_text(encoding="utf-8")))
    assert headings[: len(CLAIMS)] == [page.title(claim) for claim in CLAIMS]  # then what was measured by hand


# Each claim.


def test_all_variants_of_the_loss_compute_the_same():
    turns = {name: [loss.measure(name, vars(SMALL))] for name in loss.VARIANTS}
    values = [row["loss"] for (row,) in turns.values()]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5) and values[0] != 0
    lines = loss.tables(SMALL, turns).splitlines()
    assert len(lines) == 2 + len(loss.VARIANTS) and cells(lines[2])[2] == "1.00"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_the_loss_has_medians_and_ratios_within_a_round():
    def row(mebibytes, seconds):
        return {"bytes": mebibytes * 2**20, "seconds": seconds, "loss": 1.0}

    turns = {"plain": [row(90, 6.0), row(100, 2.0)], "ours": [row(45, 3.0), row(25, 0.5)]}
    plain, ours = loss.tables(SMALL, turns).splitlines()[2:]
    assert cells(plain) == ["plain", "95 (90–100)", "1.00", "20 (10–30)", "1.00", "1.000000"]  # of 60 tokens
    assert cells(ours) == ["ours", "35 (25–45)", "0.38 (0.25–0.50)", "70 (20–120)", "3.00 (2.00–4.00)", "1.000000"]


def test_the_table_of_lengths_compares_with_the_length_nearest_to_64k():
    reads = {8192: [(8.192, 50, 2**20), (8.192, 50, 2**21)], 65536: [(32.768, 400, 2**20), (65.536, 400, 2**20)]}
    short, long = length.tables(reads).splitlines()[2:]
    assert cells(short) == ["8,192", "50", "8.2", "1000.0", "1.50 (1.00–2.00)", "2"]
    assert cells(long) == ["65,536", "400", "49.2 (32.8–65.5)", "750.0 (500.0–1000.0)", "1.00", "1"]


def test_the_table_of_asynchrony_compares_with_its_first_row():
    def row(seconds: float, stale: int, pause: float | None) -> dict:
        waited = {f"{pool}_waited": seconds / 10 for pool in ("generators", "scorers", "learners")}
        return {
            "seconds": seconds,
            "update_pause_max": pause,
            "staleness_mean": stale / 2,
            "staleness_max": stale,
        } | waited

    plain, other = [row(4, 0, None)] * 3, [row(3, 1, 0.05), row(1, 1, None), row(2, 0, 0.07)]
    first, second = asynchrony.tables({0: [plain, plain], 1: [other, [row(4, 1, 0.06)]]}).splitlines()[2:]
    assert cells(first) == ["0", "4.00 s", "1.00", "40%", "40%", "40%", "-", "0.00", "0"]
    assert cells(second) == ["1", "3.00 (2.00–4.00) s", "0.75 (0.50–1.00)", "25%", "25%", "25%", "60 ms", "0.38", "1"]


def turn(begin: float, end: float, tokens: int) -> pipeline.Turn:
    return pipeline.Turn(begin, end, [1] * 3, tokens)


EPISODES = [[turn(10.0, 11.0, 5), turn(11.5, 12.0, 1)], [turn(10.5, 14.0, 4)]]


def test_the_rate_of_a_run_is_from_its_first_request_to_its_last_response(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("".join(json.dumps(turns) + "\n" for turns in reversed(EPISODES)))
    episodes = pipeline.noted(notes)
    assert episodes == EPISODES  # by the time at which they began
    assert pipeline.tokens(episodes) == 10 and pipeline.seconds(episodes) == 4.0


def test_cpu_time_is_counted_while_the_run_generates():
    times = [(0, 0.0), (10, 7.0), (13, 8.5), (14, 9.0), (20, 100.0)]
    samples = [pipeline.Sample(time, {"engine": used}) for time, used in times]
    assert pipeline.shares_of(samples, EPISODES) == {"engine": 0.5}
    with pytest.raises(RuntimeError, match="measure more groups"):
        pipeline.shares_of(samples[:2], EPISODES)


def test_a_run_whose_groups_were_repeated_is_no_measurement():
    config = SimpleNamespace(train=SimpleNamespace(groups_per_step=1, group_size=2))
    pipeline.check(config, EPISODES)
    with pytest.raises(RuntimeError, match="had 1 episodes instead of 2"):
        pipeline.check(config, EPISODES[:1])


class Engine:
    """Stands for vLLM's: each step ends the oldest request."""

    def __init__(self):
        self.open, self.order = [], []

    def add_request(self, request_id: str, prompt: list[int], tokens: int) -> None:
        self.open.append((request_id, tokens))

    def has_unfinished_requests(self) -> bool:
        return bool(self.open)

    def step(self) -> list[SimpleNamespace]:
        request_id, tokens = self.open.pop(0)
        self.order.append((request_id, len(self.open)))
        output = SimpleNamespace(token_ids=[0] * tokens)
        return [SimpleNamespace(finished=True, request_id=request_id, outputs=[output])]


def test_offline_a_turn_begins_when_the_one_before_it_is_complete(monkeypatch):
    monkeypatch.setattr(pipeline, "request_of", lambda config, turn: (turn.prompt, turn.tokens))
    engine = Engine()
    assert pipeline.by_turn(SimpleNamespace(llm_engine=engine), None, [*EPISODES, EPISODES[0]]) == 16
    # Both episodes' first turns, then a second turn as soon as its first one has ended.
    assert engine.order == [("0 0", 2), ("1 0", 2), ("2 0", 1), ("0 1", 1), ("2 1", 0)]


def test_the_run_is_compared_with_the_engine_that_knows_no_more():
    rates = {pipeline.RUN: [90.0, 80.0], pipeline.BY_TURN: [100.0, 100.0], pipeline.AT_ONCE: [120.0, 110.0]}
    lines = [cells(line) for line in pipeline.speeds(rates).splitlines()[2:]]
    assert lines == [
        ["run", "85 (80–90)", "0.85 (0.80–0.90)"],
        ["offline, turn by turn", "100", "1.00"],
        ["offline, all at once", "115 (110–120)", "1.15 (1.10–1.20)"],
    ]


def test_the_tables_of_a_server_under_load():
    calm = server_load.Load(seconds=10, conversations=500, first=[3.0, 1.0, 2.0], answer=[9.0])
    calm.ends[server_load.RIGHT] = 3
    calm.memory = {"frontend": [100, 102, 150, 104, 106, 104], "Serve's proxy": []}
    broken = server_load.Load(seconds=4, conversations=100, deaths=2, memory={"frontend": [7], "Serve's proxy": [8]})
    broken.ends[server_load.ERROR] = 2
    broken.errors["no engine"] = 2
    shown = server_load.tables({"engine": 100.0, "readings": 80.0}, [calm, broken], 31.4, 0)
    for line in (
        "| engines alone | 100 | 1.00 |",
        "| readings beside their engines | 80 | 0.80 |",
        "| server, undisturbed | 50 | 0.50 |",
        "| server, disturbed | 25 | 0.25 |",
        "| replicas killed | 0 | 2 |",
        "| requests: the right answer | 3 | 0 |",
        "| requests: a clear error | 0 | 2 |",
        "| first memory, p50 | 2.00 s | nan s |",
        "| first memory, p95 | 3.00 s | nan s |",
        "| memory of frontend | 101 → 105 MiB | 7 → 7 MiB |",
        "| memory of Serve's proxy | none | 8 → 8 MiB |",
        "Errors, 2 times: no engine",
        "The server answered 31 s after its start. It had 0 readings 5 s after its last client.",
    ):
        assert line in shown.split("\n"), line


@pytest.mark.parametrize(("share", "found"), [(50, 5), (95, 10), (1, 1), (100, 10)])
def test_a_percentile_is_a_number_that_was_measured(share, found):
    assert server_load.percentile(list(range(10, 0, -1)), share) == found


def test_the_coordinators_load_is_that_of_full_engines():
    small, large = (stand_ins.Load.of(generators, 8192, 12.0) for generators in (64, 256))
    assert (small.steps, large.steps) == (32, 8)
    # Groups really come at the same rate, whatever the number of generators.
    for load in (small, large):
        assert stand_ins.GROUPS_PER_STEP * load.generators / load.seconds(stand_ins.STEP_S) == pytest.approx(12.0)


def test_a_simulated_group_has_the_sizes_of_the_preset():
    group, responses = stand_ins.random_group()
    assert len(group.episode_answers) == stand_ins.EPISODES and len(group.roles) == 16 * 7 and len(responses) == 7
    assert group.lengths.max() == 5000 + 188 + 512 + 512 and len(group.tokens) == group.lengths.sum() == 583_744


def test_the_table_of_the_coordinator_has_shares_of_a_step_and_memory_at_both_ends():
    result = {"cpu": [0.6, 1.2, 1.8], "memory": [200.0, 230.0, 201.0], "journal": 0.1, "scorer": 0.05}
    again = result | {"cpu": [0.9, 2.4, 2.1]}
    (line,) = coordinator.tables({64: [result, again]}).splitlines()[2:]
    assert cells(line) == [
        "64",
        "4.3",
        "3",
        "2.5% (2.0%–3.0%)",
        "5.9 (4.7–7.0) ms",
        "200 → 201 MiB",
        "10.0%",
        "5.0%",
    ]
