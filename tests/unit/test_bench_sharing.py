"""The benchmark of sharing computes the same gradient in every variant, and its columns say what they divide."""

from dataclasses import replace

import pytest

from jobs.bench import __main__ as bench
from jobs.bench import sharing
from jobs.bench.sharing import PACKED, PADDED, PAPER, SECTION_FIRST, TREES, TREES_FIRST, Settings
from pipeline.errors import ConfigError

TINY = Settings(
    groups=[3],
    sections=2,
    section_tokens=40,
    response_tokens=8,
    layers=1,
    hidden=192,
    vocabulary=100,
    micro_batch_tokens=250,
    rounds=1,
)


@pytest.mark.parametrize("variant", [PACKED, TREES, TREES_FIRST])
def test_every_variant_computes_the_gradient_of_the_padded_batches(variant):
    assert sharing.measure("distance", variant, 3, vars(TINY))["distance"] <= 1e-5


def test_a_variant_computes_fewer_tokens_than_the_one_before_it():
    measured = [sharing.measure("learner", name, 3, vars(TINY)) for name in (PADDED, PACKED, TREES, TREES_FIRST)]
    tokens = [row["tokens"] for row in measured]
    assert tokens == sorted(set(tokens), reverse=True)
    assert all(row["seconds"] > 0 for row in measured)


def test_both_layouts_have_prompts_of_the_same_tokens():
    paper, first = (sharing.simulated_group(TINY, layout, 3) for layout in (PAPER, SECTION_FIRST))
    assert len(paper.lengths) == 3 * (TINY.sections + 1)
    assert paper.lengths.tolist() == first.lengths.tolist()
    for c in range(len(paper.lengths)):
        assert sorted(paper.inputs(c)) == sorted(first.inputs(c))
    words = sharing.draw_words(TINY)
    memory, section = [7] * 5, words.sections[1]
    assert sharing.prompt(words, PAPER, memory, section) == words.root + memory + section + words.request
    assert sharing.prompt(words, SECTION_FIRST, memory, section) == words.root + section + memory + words.request


def test_no_conversation_is_longer_than_the_window():
    group = sharing.simulated_group(TINY, PAPER, 40)
    assert group.lengths.max() == TINY.longest_conversation


def test_a_section_ends_with_a_block_of_the_engines_cache():
    assert sharing.ROOT_TOKENS + Settings().section_tokens == 10 * 32


def test_ratios_of_the_learner_are_more_if_it_is_better():
    def row(seconds, mebibytes):
        return {"seconds": seconds, "bytes": mebibytes * 2**20, "tokens": 1000}

    measured = {PADDED: [row(6.0, 90), row(2.0, 100)], PACKED: [row(3.0, 45), row(2.0, 50)], TREES: [row(1.0, 30)] * 2}
    rows = sharing.learner_rows(4, measured, {TREES: [{"distance": 1.5e-6}]})
    columns = [dict(zip(sharing.LEARNER_HEAD, row, strict=True)) for row in rows]
    assert [row["× faster than padded"] for row in columns] == ["1.00", "1.50 (1.00–2.00)", "4.00 (2.00–6.00)"]
    assert [row["× faster than packed"] for row in columns] == ["0.75 (0.50–1.00)", "1.00", "2.50 (2.00–3.00)"]
    assert [row["× less memory than padded"] for row in columns] == ["1.00", "2.00", "3.17 (3.00–3.33)"]
    assert (
        columns[2]
        | {
            "G": 4,
            "learner": TREES,
            "tokens computed": "1,000",
            "time": "1.00 s",
            "peak MiB": "30",
            "gradient's distance": "1.5e-06",
        }
        == columns[2]
    )
    assert columns[0]["gradient's distance"] == ""


def test_ratios_of_the_engine_are_to_the_papers_order():
    def row(seconds, computed):
        return {"seconds": seconds, "prompts": 2000, "computed": computed}

    measured = {PAPER: [row(6.0, 1000), row(4.0, 800)], SECTION_FIRST: [row(2.0, 250), row(2.0, 400)]}
    columns = [dict(zip(sharing.ENGINE_HEAD, row, strict=True)) for row in sharing.engine_rows(8, measured)]
    assert columns[1] == {
        "G": 8,
        "engine": SECTION_FIRST,
        "prompt tokens": "2,000",
        "computed": "325",
        "computed ÷ paper's order": "0.38 (0.25–0.50)",
        "time": "2.00 s",
        "× faster than paper's order": "2.50 (2.00–3.00)",
    }
    assert columns[0]["computed ÷ paper's order"] == columns[0]["× faster than paper's order"] == "1.00"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": []}, "groups="),
        ({"groups": [4, 0]}, "groups="),
        ({"rounds": 0}, "rounds=0"),
        ({"sections": 0}, "sections=0"),
        ({"section_tokens": 0}, "section_tokens=0"),
        ({"response_tokens": 0}, "response_tokens=0"),
        ({"layers": 0}, "layers=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"vocabulary": -1}, "vocabulary=-1"),
        ({"hidden": 100}, "multiple of 64"),
        ({"dtype": "float23"}, "float32, bfloat16"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens=0"),
        ({"micro_batch_tokens": TINY.longest_conversation - 1}, "the longest conversation"),
    ],
)
def test_settings_that_cannot_be_measured_are_explained(change, said):
    sharing.check(TINY)
    sharing.check(replace(TINY, micro_batch_tokens=TINY.longest_conversation))
    with pytest.raises(ConfigError, match=said):
        sharing.check(replace(TINY, **change))


def test_nothing_is_measured_with_wrong_settings(monkeypatch, capsys):
    monkeypatch.setattr(sharing, "in_own_process", lambda *_: pytest.fail("measured"))
    assert bench.main(["sharing", "hidden=100"]) == 2
    assert "hidden=100" in capsys.readouterr().err
