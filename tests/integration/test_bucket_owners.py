"""Files of weight buckets whose owner died."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from pipeline.weights.bucket_files import BUCKET_FILE, remove_orphans, stage
from pipeline.weights.buckets import pack_buckets

WEIGHTS = {"a": torch.arange(6.0), "b": torch.full((3, 2), 7.0, dtype=torch.bfloat16)}


@pytest.fixture
def bucket():
    (bucket,) = pack_buckets(WEIGHTS.items(), 2**20)
    return bucket


def hold(bucket, folder, connection) -> None:
    """Stage a bucket and keep it."""
    staged = stage(bucket, folder)
    connection.send(staged.path)
    connection.recv()


def test_only_what_a_dead_owner_left_is_removed(bucket, tmp_path):
    here, there = multiprocessing.Pipe()
    owner = multiprocessing.get_context("fork").Process(target=hold, args=(bucket, tmp_path, there))
    owner.start()
    try:
        theirs, kept = Path(here.recv()), stage(bucket, tmp_path)
        (tmp_path / "outside").write_text("not a bucket")
        others = {
            tmp_path / f"{BUCKET_FILE}": "file",  # names that are none of a bucket file
            tmp_path / f"{BUCKET_FILE}x-y": "file",
            tmp_path / f"{BUCKET_FILE}-1": "file",
            tmp_path / f"{BUCKET_FILE}12345678901234567890123": "file",
            tmp_path / f"{BUCKET_FILE}7-folder": "folder",
            tmp_path / f"{BUCKET_FILE}7-link": "link",
            tmp_path / f"{BUCKET_FILE}7-pipe": "pipe",
        }
        make = {
            "file": Path.touch,
            "folder": Path.mkdir,
            "link": lambda path: path.symlink_to(tmp_path / "outside"),
            "pipe": os.mkfifo,
        }
        for path, kind in others.items():
            make[kind](path)
        remove_orphans(tmp_path)
        assert theirs.exists() and Path(kept.path).exists()
        owner.kill()
        owner.join()
        # Its process id may be another process's by now: one of a living process does not save it.
        reused = theirs.with_name(f"{BUCKET_FILE}{os.getpid()}-left")
        theirs.rename(reused)
        remove_orphans(tmp_path)
        assert not reused.exists() and Path(kept.path).exists()
        assert all(os.path.lexists(path) for path in others) and (tmp_path / "outside").exists()
        kept.remove()
    finally:
        owner.kill()
        owner.join()
