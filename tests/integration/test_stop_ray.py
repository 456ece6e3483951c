"""Leaving a Ray that does not answer. It has a Ray of its own, which must be started by a process of its own."""

import subprocess
import sys

SCRIPT = """
import psutil, ray
from jobs.support.driver import stop_ray

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
of = {process.name(): process for process in psutil.Process().children(recursive=True)}
of["gcs_server"].suspend()
stop_ray(limit_s=1)
_, alive = psutil.wait_procs([of["gcs_server"], of["raylet"]], timeout=120)
print(alive, ray.is_initialized())
"""


def test_a_control_store_that_does_not_answer_is_killed():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[] False"
