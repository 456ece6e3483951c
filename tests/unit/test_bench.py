"""The benchmark of the loss compares like with like, and says what it measured."""

import pytest

from jobs.bench.loss import VARIANTS, Settings, main, measure, table

SMALL = Settings(
    vocabulary=300, hidden=128, layers=1, conversations=2, prompt_tokens=20, response_tokens=10, rounds=1, repeats=1
)


def test_all_variants_compute_the_same_loss():
    results = {name: [measure(name, SMALL)] for name in VARIANTS}
    losses = [row["loss"] for (row,) in results.values()]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5) and losses[0] != 0
    lines = table(SMALL, results)
    assert len(lines) == 1 + len(VARIANTS) and lines[1].split()[-2] == "1.00"


def test_the_table_has_medians_and_ratios_to_the_first_variant():
    def row(mebibytes, seconds):
        return {"bytes": mebibytes * 2**20, "seconds": seconds, "loss": 1.0}

    lines = table(SMALL, {"plain": [row(90, 6.0), row(100, 2.0), row(200, 3.0)], "ours": [row(25, 1.0)]})
    assert lines[1].split() == ["plain", "100", "1.00", "20", "1.00", "1.000000"]  # 60 tokens in three seconds
    assert lines[2].split() == ["ours", "25", "0.25", "60", "3.00", "1.000000"]


def test_an_unknown_setting_is_named(capsys):
    assert main(["vocabluary=5"]) == 2
    assert "vocabluary" in capsys.readouterr().err


def test_the_lengths_of_the_length_benchmark_are_checked(capsys):
    from jobs.bench.length import main as length

    assert length(["tokens=[10]"]) == length(["chunk_tokens=300"]) == length(["token=5"]) == 2
    printed = capsys.readouterr().err
    assert "lengths of 36 or more" in printed and "between 1 and 210" in printed and "did you mean 'tokens'" in printed


def test_the_table_of_the_asynchrony_benchmark_compares_with_its_first_row():
    from jobs.bench.asynchrony import table as table_of_asynchrony

    def row(seconds: float, stale: int, pause: float | None) -> dict:
        waited = {f"{pool}_waited": seconds / 10 for pool in ("generators", "scorers", "learners")}
        return {
            "seconds": seconds,
            "update_pause_max": pause,
            "staleness_mean": stale / 2,
            "staleness_max": stale,
        } | waited

    lines = table_of_asynchrony({0: [row(4, 0, None)] * 3, 1: [row(3, 1, 0.05), row(1, 1, None), row(2, 0, 0.07)]})
    assert lines.splitlines()[2:] == [
        "| 0 | 4.00 | 1.00 | 40% | 40% | 40% | - | 0.00, 0 |",
        "| 1 | 2.00 | 0.50 | 20% | 20% | 20% | 60 ms | 0.33, 1 |",
    ]


def test_the_settings_of_the_asynchrony_benchmark_are_checked(capsys):
    from jobs.bench.asynchrony import main as asynchrony

    assert asynchrony(["steps=3"]) == 2 and "steps must be above 4" in capsys.readouterr().err
    assert asynchrony(["stps=3"]) == 2 and "stps" in capsys.readouterr().err
