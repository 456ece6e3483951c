"""Weight buckets in shared memory: what is loaded is what was packed, or an error; and nothing of ours stays there."""

import contextlib
import errno
import io
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.weights import bucket_files
from pipeline.weights.bucket_files import BUCKET_FILE, PARTIAL, BucketError, read_bucket_file, remove_orphans, stage
from pipeline.weights.buckets import pack_buckets, unpack_bucket

WEIGHTS = {"a": torch.arange(6.0), "b": torch.full((3, 2), 7.0, dtype=torch.bfloat16)}


@pytest.fixture
def bucket():
    (bucket,) = pack_buckets(WEIGHTS.items(), 2**20)
    return bucket


def test_what_is_staged_is_what_was_packed(bucket, tmp_path):
    staged = stage(bucket, tmp_path)
    (path,) = tmp_path.iterdir()
    assert staged.path == str(path) and path.stat().st_mode & 0o777 == 0o600
    weights = dict(unpack_bucket(staged.entries, read_bucket_file(staged.path, staged.size)))
    staged.release()
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)  # the mapping outlives the name


def test_what_the_loader_writes_stays_out_of_the_file(bucket, tmp_path):
    staged = stage(bucket, tmp_path)
    read_bucket_file(staged.path, staged.size).zero_()
    assert Path(staged.path).read_bytes() == bucket.data.tobytes()


def flipped(data: np.ndarray, at: int) -> np.ndarray:
    data = data.copy()
    data[at] ^= 1
    return data


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda b: replace(b, data=flipped(b.data, 0)),
        lambda b: replace(b, data=flipped(b.data, -1)),
        lambda b: replace(b, data=b.data[:-64]),
        lambda b: replace(b, data=b.data[::-1].copy()),
        lambda b: replace(b, entries=(("b", *b.entries[0][1:]), ("a", *b.entries[1][1:]))),
        lambda b: replace(b, checksum=b.checksum + 1),
    ],
    ids=["a bit", "a bit of the last byte", "short", "order", "names", "checksum"],
)
def test_a_bucket_that_is_not_what_was_packed_is_refused(bucket, tmp_path, corrupt):
    with pytest.raises(BucketError, match="from [ab] to [ab] are not those that the learners packed"):
        stage(corrupt(bucket), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has", [None, 0, 64, 129])
def test_a_file_that_is_missing_short_or_long_is_an_error_and_not_zeros(tmp_path, has):
    path = tmp_path / "bucket"
    if has is not None:
        path.write_bytes(b"\1" * has)
    with pytest.raises(
        BucketError, match="No such file" if has is None else f"has {has} bytes, and its weights have 128"
    ):
        read_bucket_file(str(path), 128)
    assert path.exists() == (has is not None) and (has is None or path.stat().st_size == has)


def test_no_room_in_shared_memory_is_said(bucket, tmp_path, monkeypatch):
    class Full(io.FileIO):
        """Takes the first 100 bytes."""

        def write(self, data):
            if self.tell() >= 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:100])

    usage = type(shutil.disk_usage(tmp_path))(64 * 2**20, 64 * 2**20, 0)
    monkeypatch.setattr(bucket_files.os, "fdopen", lambda handle, mode, **_: Full(handle, mode))
    monkeypatch.setattr(bucket_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BucketError) as error:
        stage(bucket, tmp_path)
    said = str(error.value)
    assert f"{tmp_path} has no room for 128 bytes of new weights: 0 of 67,108,864 bytes are free" in said
    assert "--shm-size" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_users_are_left_alone(bucket, tmp_path, monkeypatch):
    left = tmp_path / f"{BUCKET_FILE}{1:016x}-64"
    left.touch()
    monkeypatch.setattr(bucket_files.os, "getuid", lambda: left.stat().st_uid + 1)
    remove_orphans(tmp_path)
    assert left.exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_file_that_is_taken_for_an_orphan_before_it_is_locked_is_made_again(bucket, tmp_path, monkeypatch, finished):
    flock, calls = bucket_files.fcntl.flock, []
    if finished:
        stage(bucket, tmp_path).file.close()  # as if its owner were killed

    def late(handle, how):
        if not calls:  # another generator starts just between opening and locking
            next(tmp_path.iterdir()).unlink()
        calls.append(how)
        flock(handle, how)

    monkeypatch.setattr(bucket_files.fcntl, "flock", late)
    staged = stage(bucket, tmp_path)
    assert Path(staged.path).read_bytes() == bucket.data.tobytes()
    staged.release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_writer_that_died_left_is_written_anew(bucket, tmp_path):
    staged = stage(bucket, tmp_path)
    staged.release()
    partial = Path(staged.path + PARTIAL)
    partial.write_bytes(b"x" * 500)
    again = stage(bucket, tmp_path)
    assert Path(again.path).read_bytes() == bucket.data.tobytes() and not partial.exists()


def test_all_engines_of_a_node_share_one_copy_which_goes_with_the_last(tmp_path):
    """Eight at once, of as many threads, in three rounds."""
    rng = torch.Generator().manual_seed(0)
    buckets = pack_buckets([(f"t{i}", torch.randn(5000, generator=rng)) for i in range(6)], 20_480)
    most = []

    def engine(number: int) -> None:
        staged = []
        for bucket in buckets:
            staged.append(stage(bucket, tmp_path))
            most.append(sum(path.stat().st_size for path in tmp_path.iterdir() if not path.name.endswith(PARTIAL)))
        everyone.wait()
        for file, bucket in zip(staged, buckets, strict=True):
            assert Path(file.path).read_bytes() == bucket.data.tobytes()
        everyone.wait()
        for file in staged:
            file.release()

    for _ in range(3):
        everyone = threading.Barrier(8, timeout=60)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(engine, range(8)))
        assert list(tmp_path.iterdir()) == []
    assert len(buckets) == 6 and max(most) == sum(bucket.data.size for bucket in buckets)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
@pytest.mark.parametrize("end", ["", PARTIAL])
def test_what_another_user_put_in_its_place_is_refused(bucket, tmp_path, monkeypatch, make, end):
    path = tmp_path / f"{BUCKET_FILE}{bucket.checksum:016x}-{bucket.data.size}{end}"
    make(path)
    if path.is_file() and not path.is_symlink():
        monkeypatch.setattr(bucket_files.os, "getuid", lambda: path.lstat().st_uid + 1)
    with pytest.raises(BucketError, match="is not a file of this user|cannot be used: Too many levels"):
        stage(bucket, tmp_path)


def test_a_node_without_room_is_told_before_the_run(tmp_path, tiny_config, monkeypatch):
    """The embedded model in float32, twice with deltas. Files of ours that are there do not count: they are shared."""
    from actors.generation.generator import check_room_for_weights

    size = sum(t.numel() * 4 for t in load_file(Path(tiny_config.model.path) / "model.safetensors").values())
    config = replace(tiny_config, model=replace(tiny_config.model, dtype="float32"))
    deltas = replace(config, learner=replace(config.learner, weight_deltas=True))
    there = tmp_path / f"{BUCKET_FILE}{1:016x}-100"
    there.write_bytes(bytes(100))
    monkeypatch.setattr(bucket_files, "SHARED_MEMORY", tmp_path)
    for free, given, fits in ((size, config, True), (size - 100, config, True), (size - 101, config, False)):
        usage = shutil._ntuple_diskusage(2 * size, 0, free)
        monkeypatch.setattr(bucket_files.shutil, "disk_usage", lambda folder, usage=usage: usage)
        with contextlib.nullcontext() if fits else pytest.raises(BucketError, match=f"no room for {size:,} bytes"):
            check_room_for_weights(given)
    monkeypatch.setattr(bucket_files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(size, 0, size))
    with pytest.raises(BucketError, match=f"no room for {2 * size:,} bytes.*weight_deltas"):
        check_room_for_weights(deltas)
    check_room_for_weights(replace(deltas, train=replace(deltas.train, weight_transport="mine:TRANSPORT")))
