"""The guard of tests/unit/conftest.py: no unit test starts Ray, on purpose or by a first call."""

import pytest
import ray


def work() -> None: ...


@pytest.mark.parametrize("start", [lambda: ray.init("local"), lambda: ray.put(1), lambda: ray.remote(work).remote()])
def test_ray_cannot_be_started(start):
    with pytest.raises(pytest.fail.Exception, match="belongs in tests/integration"):
        start()
    assert not ray.is_initialized()
