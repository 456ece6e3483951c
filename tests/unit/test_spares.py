"""Spares: files of buckets that are no longer needed, which new buckets overwrite."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.weights.bucket_files import (
    PARTIAL,
    BucketError,
    BucketFile,
    Spares,
    remove_orphans,
    stage,
)
from pipeline.weights.buckets import WeightBucket, pack_buckets


def bucket_of(value: float, numbers: int = 1000) -> WeightBucket:
    (bucket,) = pack_buckets([("w", torch.full((numbers,), value))], 2**20)
    return bucket


def inode(file: BucketFile) -> int:
    return os.fstat(file.file.fileno()).st_ino


def content(file: BucketFile) -> bytes:
    return Path(file.path).read_bytes()


def names(folder: Path) -> set[str]:
    return {str(path) for path in folder.iterdir()}


def test_a_spare_is_overwritten_by_a_bucket_of_its_size_only(tmp_path):
    spares = Spares()
    old = stage(bucket_of(1.0), tmp_path, spares)
    before = inode(old)
    spares.add(old)
    other = stage(bucket_of(2.0, 500), tmp_path, spares)
    new = stage(bucket_of(2.0), tmp_path, spares)
    assert inode(new) == before != inode(other)
    assert content(new) == bucket_of(2.0).data.tobytes() and content(other) == bucket_of(2.0, 500).data.tobytes()
    assert names(tmp_path) == {new.path, other.path}


def test_a_bucket_whose_file_is_still_there_is_not_written_again(tmp_path):
    spares = Spares()
    old = stage(bucket_of(1.0), tmp_path, spares)
    written, before = os.fstat(old.file.fileno()).st_mtime_ns, inode(old)
    spares.add(old)
    again = stage(bucket_of(1.0), tmp_path, spares)
    assert (inode(again), os.fstat(again.file.fileno()).st_mtime_ns) == (before, written)
    other = stage(bucket_of(2.0), tmp_path, spares)  # the spare is one no longer
    assert inode(other) != before and content(again) == bucket_of(1.0).data.tobytes()


def test_what_another_engine_reads_is_not_overwritten(tmp_path):
    mine, others = Spares(), Spares()
    here, there = (stage(bucket_of(1.0), tmp_path, spares) for spares in (mine, others))
    before = inode(here)
    mine.add(here)
    new = stage(bucket_of(2.0), tmp_path, mine)
    assert inode(new) != before and content(there) == bucket_of(1.0).data.tobytes()
    others.add(there)
    assert inode(stage(bucket_of(3.0), tmp_path, mine)) == before


def test_a_spare_of_several_engines_is_overwritten_once(tmp_path):
    engines = [Spares() for _ in range(3)]
    staged = [stage(bucket_of(1.0), tmp_path, spares) for spares in engines]
    before = inode(staged[0])
    for spares, file in zip(engines, staged, strict=True):
        spares.add(file)
    first = stage(bucket_of(2.0), tmp_path, engines[0])
    second = stage(bucket_of(3.0), tmp_path, engines[1])
    assert inode(first) == before != inode(second)
    shared = stage(bucket_of(2.0), tmp_path, engines[2])
    assert inode(shared) == before
    assert content(shared) == bucket_of(2.0).data.tobytes()
    assert content(second) == bucket_of(3.0).data.tobytes()


def test_an_engine_that_joins_overwrites_what_others_keep(tmp_path):
    """Otherwise the node would have a version more for each engine that joins."""
    spares = Spares()
    old = stage(bucket_of(1.0), tmp_path, spares)
    before = inode(old)
    spares.add(old)
    assert inode(stage(bucket_of(2.0), tmp_path, Spares())) == before
    assert len(names(tmp_path)) == 1


def test_files_of_other_users_are_no_spares(tmp_path, monkeypatch):
    stage(bucket_of(1.0), tmp_path).file.close()
    theirs = next(tmp_path.iterdir())
    getuid, uid = os.getuid, theirs.stat().st_ino
    fstat = os.fstat
    monkeypatch.setattr(
        os, "fstat", lambda handle: _owned(fstat(handle), uid if fstat(handle).st_ino == uid else getuid())
    )
    new = stage(bucket_of(2.0), tmp_path, Spares())
    monkeypatch.undo()
    assert inode(new) != theirs.stat().st_ino and theirs.read_bytes() == bucket_of(1.0).data.tobytes()


def _owned(about: os.stat_result, uid: int) -> os.stat_result:
    fields = list(about)
    fields[4] = uid
    return os.stat_result(fields)


def test_a_damaged_bucket_takes_its_spare_with_it(tmp_path):
    """Half of its bytes may be the new ones."""
    spares = Spares()
    spares.add(stage(bucket_of(1.0), tmp_path, spares))
    with pytest.raises(BucketError, match="wrong checksum"):
        stage(replace(bucket_of(2.0), checksum=3), tmp_path, spares)
    assert names(tmp_path) == set()


def test_no_more_spares_are_kept_than_needed_and_the_newest(tmp_path):
    spares = Spares()
    staged = [stage(bucket_of(float(value)), tmp_path, spares) for value in range(4)]
    small = stage(bucket_of(1.0, 500), tmp_path, spares)
    for file in [*staged, small]:
        spares.add(file)
    spares.trim([small.size, staged[0].size, staged[0].size])
    assert names(tmp_path) == {small.path, staged[2].path, staged[3].path}
    spares.trim([])
    assert names(tmp_path) == set()


def test_memory_that_is_not_needed_is_free_at_once_whoever_keeps_it(tmp_path):
    """An engine that loads new weights late still has the old spares."""
    mine, late = Spares(), Spares()
    here, there = (stage(bucket_of(1.0), tmp_path, spares) for spares in (mine, late))
    handle = os.dup(there.file.fileno())
    mine.add(here)
    mine.trim([])
    assert content(there) == bucket_of(1.0).data.tobytes()  # it reads it
    again = stage(bucket_of(1.0), tmp_path, mine)
    mine.add(again)
    late.add(there)
    mine.trim([])
    assert os.fstat(handle).st_blocks == 0 and names(tmp_path) == set()
    os.close(handle)
    assert stage(bucket_of(2.0), tmp_path, late)
    late.trim([])


def test_spares_end_with_the_last_who_keeps_them(tmp_path):
    mine, others = Spares(), Spares()
    for spares in (mine, others):
        spares.add(stage(bucket_of(1.0), tmp_path, spares))
    remove_orphans(tmp_path)
    mine.close()
    assert len(names(tmp_path)) == 1
    others.close()
    assert names(tmp_path) == set()


def test_a_spare_that_a_killed_process_was_overwriting_is_still_one(tmp_path):
    """It has the name of an unfinished file then."""
    mine = Spares()
    old = stage(bucket_of(1.0), tmp_path, mine)
    before, unfinished = inode(old), Path(old.path + PARTIAL)
    mine.add(old)
    os.rename(old.path, unfinished)
    unfinished.write_bytes(b"x" * old.size)
    remove_orphans(tmp_path)
    new = stage(bucket_of(2.0), tmp_path, mine)
    assert inode(new) == before and names(tmp_path) == {new.path}
    assert content(new) == bucket_of(2.0).data.tobytes()


def test_an_unfinished_file_that_is_a_spare_is_finished(tmp_path):
    mine = Spares()
    old = stage(bucket_of(1.0), tmp_path, mine)
    before = inode(old)
    mine.add(old)
    wanted = tmp_path / Path(old.path).name.replace(
        f"{bucket_of(1.0).checksum:016x}", f"{bucket_of(2.0).checksum:016x}"
    )
    os.rename(old.path, f"{wanted}{PARTIAL}")
    new = stage(bucket_of(2.0), tmp_path, mine)
    assert inode(new) == before and names(tmp_path) == {str(wanted)}
    other = stage(bucket_of(3.0), tmp_path, mine)  # it is in use now, and no spare
    assert inode(other) != before and content(new) == bucket_of(2.0).data.tobytes()
