"""Checkpoints need a folder that the nodes of all ranks share: others are refused before training, in words."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.learning.gang import LearnerGang
from actors.learning.rank import LearnerRank
from pipeline.errors import RunFailed
from pipeline.lease import RUN_ID


@pytest.fixture(autouse=True)
def nodes(monkeypatch):
    """Every question is asked on another node."""
    addresses = (f"10.0.0.{number}" for number in range(100))
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: next(addresses))
    monkeypatch.setattr("actors.learning.rank.PROBES_S", (0.01,))


def gang(*folders) -> LearnerGang:
    """Ranks that have these folders in the place of the one they are asked for."""

    def rank(folder):
        async def answer(_, run_id: str) -> str:
            return LearnerRank.folder_trouble(None, str(folder), run_id)

        return SimpleNamespace(folder_trouble=SimpleNamespace(remote=answer), progress=None)

    made = object.__new__(LearnerGang)
    made.config = SimpleNamespace(learner=SimpleNamespace(stall_s=60.0))
    made.ranks, made.size = [rank(folder) for folder in folders], len(folders)
    return made


def claimed(folder, run_id: str):
    folder.mkdir()
    (folder / RUN_ID).write_text(f"{run_id}\n")
    return folder


def test_a_folder_that_all_share_is_left_as_it_was(tmp_path):
    mine = claimed(tmp_path / "mine", "run 1")
    asyncio.run(gang(mine, f"file://{mine}").check_folder(mine, "run 1", "Share."))
    assert [path.name for path in mine.iterdir()] == [RUN_ID]


def test_a_node_that_lacks_it_or_has_another_is_named(tmp_path, monkeypatch):
    mine, other = claimed(tmp_path / "mine", "run 1"), claimed(tmp_path / "other", "run 2")
    with pytest.raises(RunFailed) as error:
        asyncio.run(gang(mine, tmp_path / "missing", other).check_folder(mine, "run 1", "Choose another."))
    said = str(error.value)
    assert f"{mine} is not shared by the nodes of the learner ranks" in said and said.endswith("Choose another.")
    assert "node 10.0.0.1: " in said and "No such file" in said
    assert "node 10.0.0.2 has another folder there" in said and "10.0.0.0" not in said


def test_a_node_that_cannot_write_there_is_named(tmp_path, monkeypatch):
    def fail(**options):
        raise OSError(30, "Read-only file system")

    mine = claimed(tmp_path / "mine", "run 1")
    monkeypatch.setattr("actors.learning.rank.tempfile.NamedTemporaryFile", fail)
    with pytest.raises(RunFailed, match="Read-only file system"):
        asyncio.run(gang(mine).check_folder(mine, "run 1", ""))


def test_an_object_store_is_shared_anyway(tmp_path):
    asyncio.run(gang(tmp_path / "missing").check_folder("s3://bucket/checkpoints", "run 1", ""))
