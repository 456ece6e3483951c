"""The page of a run as a file: data that cannot end their element, a policy that names what may run, the command."""

import base64
import hashlib
import json
import re

import pytest

from jobs import view
from pipeline.view.lines import Notes
from pipeline.view.page import HERE, PAGE, SCRIPTS, page_of, run_data, write_page
from tests.support.run_folders import EVIL, answer, episode, write_lines, write_run

DATA = re.compile(r'<script type="application/json" id="([^"]+)">(.*?)</script>', re.DOTALL)


def page(folder) -> str:
    write_page(folder, folder / PAGE)
    return (folder / PAGE).read_text(encoding="utf-8")


def data_of(text: str) -> dict:
    return {name: json.loads(content) for name, content in DATA.findall(text)}


def test_the_page_holds_all_data_as_json(tmp_path):
    data = data_of(page(write_run(tmp_path / "mine")))
    assert data["data"]["run"]["name"] == "mine"
    assert data["data"]["episodes"] == {
        "step": [1, 12],
        "reward": [0, 1],
        "task": ["qa", "qa"],
        "question": ["city pet Sam"] * 2,
    }
    assert data["episode-1"]["memories"][0] == "word-0-0 word-0-1 word-0-2"
    assert data["pair-0-0"][1] == "question a" and data["data"]["comparisons"][1]["pairs"] == [
        ["synthetic 144", "question v", 0, 1]
    ]


def test_the_policy_allows_its_own_style_and_script_only(tmp_path):
    text = page(write_run(tmp_path))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "base-uri 'none'" in policy
    assert policy.count("'sha256-") == 2
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=(?!\"#)", text) and "@import" not in text and "url(" not in text


def test_the_script_makes_no_markup_of_texts():
    for name in SCRIPTS:
        code = (HERE / name).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(|setTimeout|fetch", code
        )
    assert {path.name for path in HERE.glob("*.js")} == set(SCRIPTS)


@pytest.mark.parametrize("text", [EVIL, "<!--<script>", "\u2028</SCRIPT \ud800 {script}{data}", "{style hash} \\u003c"])
def test_markup_in_data_stays_data(tmp_path, text):
    harmless = page(write_run(tmp_path / "harmless"))
    folder = write_run(tmp_path / "run", {1: [episode(question=text, task=text, memories=[text] * 4, answers=[text])]})
    answers = [answer("a", score, answer=text, memories=[text], set=text) for score in (0, 1)]
    for place, row in zip(("before-RL", "after-RL-12"), answers, strict=True):
        write_lines(folder / "evaluation" / place / "results.jsonl", [row])
    write_lines(folder / "metrics.jsonl", [{"step": 1, text: 1}])
    shown = page(folder)
    data = data_of(shown)
    assert data["episode-0"]["question"] == text and data["pair-0-0"][4][0] == text
    assert data["data"]["curves"]["metrics"] == {text: [1]}
    # Without its data the page is the same as any other.
    assert DATA.sub("", shown).split() == DATA.sub("", harmless).split()


def test_markup_in_the_name_of_the_folder_stays_data(tmp_path):
    name = "<img src=x onerror=alert(1)> &amp; {data}"
    shown = page(write_run(tmp_path / name))
    assert "<img" not in shown and data_of(shown)["data"]["run"]["name"] == name


def test_200_episodes_of_64_sections_are_a_page_of_bounded_size(tmp_path):
    rows = {step: [episode(read=64, words=20) for _ in range(4)] for step in range(1, 61)}
    text = page_of(run_data(write_run(tmp_path, rows), Notes()))
    assert len(data_of(text.decode())["data"]["episodes"]["step"]) <= 200
    assert len(text) < 20e6


def test_the_command_writes_the_page_and_says_what_it_lacks(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    assert view.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"· page {folder / PAGE}" in printed and "the run is not over" in printed
    assert view.main([str(folder), f"output={tmp_path / 'other.html'}"]) == 0
    assert (tmp_path / "other.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one run folder"),
        (["{tmp}/nothing"], "nothing is no run folder"),
        (["{tmp}/run", "{tmp}/run"], "name one run folder"),
        (["{tmp}/run", "outpt=x"], "unknown: outpt"),
        (["{tmp}/run", "wandb=true"], "must be yes or no"),
        (["{tmp}/run", "output={tmp}"], "is a folder"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, said):
    write_run(tmp_path / "run")
    assert view.main([a.format(tmp=tmp_path) for a in arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_page_that_cannot_be_written(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    assert view.main([str(folder), f"output={folder / 'config.yaml' / 'x'}"]) == 1
    assert "could not be written" in capsys.readouterr().err
    (folder / PAGE).mkdir()
    view.write_run_page(folder)  # does not raise
    assert "warning: the page of the run could not be written" in capsys.readouterr().out
    (folder / PAGE).rmdir()
    view.write_run_page(folder)
    assert capsys.readouterr().out == f"· page {folder / PAGE}\n"


def test_a_run_without_wandb_has_no_place_for_an_artifact(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("model:\n  path: x\nwandb:\n  mode: disabled\n")
    assert view.main([str(folder), "wandb=yes"]) == 1
    assert "the run has no wandb run" in capsys.readouterr().err
    (folder / "config.yaml").write_text("fine_tuning: {}\n")
    assert view.main([str(folder), "wandb=yes"]) == 1
    assert "is not that of a training run" in capsys.readouterr().err
