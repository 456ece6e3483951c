"""Parts of an evaluation without an engine: its questions, its rows, and the configuration that it goes on with."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.data.documents.synthetic import SyntheticRecipe


def test_a_key_that_is_new_since_the_evaluation_began_had_its_default():
    from pipeline.errors import ConfigError
    from pipeline.evaluation.config import EvaluationConfig, check_same

    before, now = asdict(EvaluationConfig()), asdict(EvaluationConfig())
    del before["evaluate"]["successes"]
    check_same(before, now)
    now["evaluate"]["successes"] = True
    with pytest.raises(ConfigError, match="evaluate.successes: False then, True now"):
        check_same(before, now)


SYNTHETIC = ["preset=eval_tiny", "data.synthetic_tasks=[chains,values]", "data.synthetic_chunks=[3,8]"]


def test_synthetic_questions_need_no_file():
    """Those of every task and length; sets, lengths and limit choose among them as among the samples of files."""
    from pipeline.config import load_config
    from pipeline.data.quarantine import Quarantine
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import input_states, open_source, read_questions

    def asked(*arguments):
        config = load_config([*SYNTHETIC, "data.synthetic_count=5", *arguments], EvaluationConfig)
        source = open_source(config)
        questions = read_questions(source, config, Quarantine(Path("none")))
        return source, config, questions

    source, config, questions = asked()
    assert [(q.set, q.length, q.id) for q in questions] == [
        (name, 18 * chunks, f"{name}-1000000-{i}")
        for name in ("synthetic", "values")
        for chunks in (3, 8)
        for i in range(5)
    ]
    last = source.sample(questions[-1].index)
    assert (last.id, last.task) == ("values-1000000-4", "values") and len(last.document.split()) == 18 * 8
    assert last == SyntheticRecipe(1_000_000, 8, 5, "values").sample(4)
    assert set(input_states(config.data, questions, "no folder", "tiny")) == set()
    *_, some = asked("data.sets=[values]", "data.lengths=[144]", "data.limit=2", "data.synthetic_seed=7")
    assert [(q.set, q.length, q.id) for q in some] == [("values", 144, "values-7-0"), ("values", 144, "values-7-1")]


def test_a_right_answer_that_was_cut_is_wrong(tmp_path):
    from actors.trials import answer_row
    from pipeline.config import load_config
    from pipeline.evaluation.answers import AnswerRecord
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import Question, Trial
    from pipeline.problems import Problem

    config = load_config(["preset=eval_tiny"], EvaluationConfig)
    task, problem = Trial(Question(0, "s", 1, "q", 1), "direct", 0), Problem("q", "city Rex", ("Paris",), "Rex Paris .")

    def scores(cut: bool) -> list:
        answer = AnswerRecord("\\boxed{ Paris }", (), 3, 1, 10, 5, cut, 0, None, ())
        row = asyncio.run(answer_row(config, task, problem, answer, None, 1.0))
        metrics = ("score", "exact_match", "containment", "f1", "recall", "sub_em")
        return [row["cut"], row.get("score_if_not_cut"), *(row[name] for name in metrics)]

    assert scores(cut=False) == [False, None, 1, 1, 1, 1, 1, 1]
    assert scores(cut=True) == [True, 1, 0, 0, 0, 0, 0, 0]  # the filter takes the first number


def test_documents_under_way_are_bounded():

    from actors.trials import Room

    async def scenario():
        room, inside, most = Room(10), 0, 0

        async def work(size):
            nonlocal inside, most
            async with room.of(size):
                inside += size
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= size

        sizes = [4, 5, 6, 1, 25, 3, 10, 2] * 5
        await asyncio.wait_for(asyncio.gather(*map(work, sizes)), 10)
        return most, room.inside

    assert asyncio.run(scenario()) == (25, 0)  # what is larger goes in alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("chunks=[1,8]", "data.synthetic_chunks=1 must be at least 3"),
        ("chunks=[8,8]", "data.synthetic_chunks: 8 comes twice"),
        ("chunks=[]", "data.synthetic_chunks is empty"),
        ("count=0", "data.synthetic_count must be at least 1"),
        ("tasks=[needle]", "data.synthetic_tasks: there is no 'needle'; there are: chains, needles, values"),
        ("tasks=[]", "data.synthetic_tasks is empty"),
    ],
)
def test_wrong_synthetic_settings_say_so(wrong, message, capsys):
    from jobs.evaluate import main

    assert main([*SYNTHETIC, f"data.synthetic_{wrong}"]) == 2
    assert message in capsys.readouterr().err


def test_passage_files_of_filtered_samples_are_beside_them(tmp_path, monkeypatch):
    from pipeline.evaluation.filtering import PassageLinks

    def names_in(folder: Path, paths: list[Path]) -> list[str]:
        links = PassageLinks(folder)
        return [links.name(str(path)) for path in paths]

    files = [tmp_path / name / "passages.arrow" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    output = tmp_path / "out"
    output.mkdir()
    names = ["passages.arrow", "2-passages.arrow"]
    for _ in range(2):  # resumed, it finds its links
        assert names_in(output, [*files, *files]) == 2 * names
    assert [(output / name).read_text() for name in names] == ["a", "b"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    # In the very folder of the samples, and where the file system allows no links.
    assert names_in(files[0].parent, files[:1]) == ["passages.arrow"]
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError))
    other = tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        assert names_in(other, files) == names
    assert not (other / names[0]).samefile(files[0]) and (other / names[0]).read_text() == "a"
