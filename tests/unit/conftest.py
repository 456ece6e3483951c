"""Shared by the unit tests."""

import time

import pytest

LIMIT_S = 5.0  # of a test that asks for `soon`


@pytest.fixture(scope="session")
def imported():
    """What takes seconds once."""
    import ray.job_submission  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401


@pytest.fixture
def soon(imported):
    """The test takes a few seconds at most (of this process: the machine may be busy)."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < LIMIT_S
