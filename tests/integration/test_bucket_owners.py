"""Files of weight buckets whose owner died."""

import multiprocessing
import os
from pathlib import Path

import torch

from pipeline.weights.bucket_files import BUCKET_FILE, PARTIAL, remove_orphans, stage
from pipeline.weights.buckets import pack_buckets


def hold(buckets, folder, connection) -> None:
    """Stage buckets and keep them."""
    staged = [stage(bucket, folder) for bucket in buckets]
    connection.send([file.path for file in staged])
    connection.recv()


def test_only_what_a_dead_owner_left_is_removed(tmp_path):
    (theirs_alone,) = pack_buckets([("a", torch.arange(6.0))], 2**20)
    (mine,) = pack_buckets([("b", torch.full((3, 2), 7.0, dtype=torch.bfloat16))], 2**20)
    here, there = multiprocessing.Pipe()
    owner = multiprocessing.get_context("fork").Process(target=hold, args=([theirs_alone, mine], tmp_path, there))
    owner.start()
    try:
        theirs, shared = map(Path, here.recv())
        kept = stage(mine, tmp_path)
        assert kept.path == str(shared)
        (tmp_path / "outside").write_text("not a bucket")
        others = {
            tmp_path / f"{BUCKET_FILE}": "file",  # names that are none of a bucket file
            tmp_path / f"{BUCKET_FILE}x-y": "file",
            tmp_path / f"{BUCKET_FILE}{1:015x}-1": "file",
            tmp_path / f"{BUCKET_FILE}{1:016x}-1.part": "file",
            tmp_path / f"{BUCKET_FILE}{1:016x}-7": "folder",
            tmp_path / f"{BUCKET_FILE}{2:016x}-7": "link",
            tmp_path / f"{BUCKET_FILE}{3:016x}-7": "pipe",
        }
        make = {
            "file": Path.touch,
            "folder": Path.mkdir,
            "link": lambda path: path.symlink_to(tmp_path / "outside"),
            "pipe": os.mkfifo,
        }
        for path, kind in others.items():
            make[kind](path)
        unfinished = tmp_path / f"{BUCKET_FILE}{4:016x}-7{PARTIAL}"
        unfinished.touch()
        remove_orphans(tmp_path)
        assert theirs.exists() and shared.exists() and not unfinished.exists()
        owner.kill()
        owner.join()
        remove_orphans(tmp_path)
        assert not theirs.exists() and shared.exists()
        assert all(os.path.lexists(path) for path in others) and (tmp_path / "outside").exists()
        kept.release()
        assert not shared.exists()
    finally:
        owner.kill()
        owner.join()
