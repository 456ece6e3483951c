"""Shared by the unit tests, none of which may start Ray."""

import time

import pytest

LIMIT_S = 5.0  # of a test that asks for `soon`
NO_RAY = "a test in tests/unit has started Ray; it belongs in tests/integration"


@pytest.fixture(scope="session")
def ray_session():
    """Stands before the one of tests/conftest.py."""
    pytest.fail(NO_RAY)


@pytest.fixture(scope="module", autouse=True)
def no_ray():
    """Refuses `ray.init`, which a first `ray.put` or `.remote()` calls too.

    It ends with each module: the tests that follow in tests/integration start Ray.
    """
    import ray

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail(NO_RAY)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray, "init", refuse)
        yield


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
