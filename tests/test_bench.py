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
