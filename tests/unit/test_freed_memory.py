"""A learner's process returns freed memory to the system."""

import os
import platform
import subprocess
import sys

import pytest

# Frees forty blocks of 4 MiB that lie between ones of 256 KiB, and prints how many MiB the process still holds of them.
FREES = """
import ctypes, sys
from actors.learning.rank import return_freed_memory

if sys.argv[1] == "returned":
    return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024


def block(size):
    place = libc.malloc(size)
    libc.memset(place, 1, size)
    return place


libc.free(block(16 << 20))  # glibc now takes such blocks from its heap
before, blocks = held(), []
for _ in range(40):
    blocks.append(block(4 << 20))
    block(256 << 10)
for place in blocks:
    libc.free(place)
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("returned", 0, 40), ("kept", 120, 200)])
def test_freed_blocks_between_others_are_returned(how, least, most):
    others = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES")  # settings of the user's
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    command = [sys.executable, "-c", FREES, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert least < float(done.stdout) < most
