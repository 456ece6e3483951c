"""A run's metrics are among those that Ray offers to Prometheus."""

import urllib.request

from pipeline.run.config import load_training_config
from tests.support.faults import until


def test_a_step_and_its_run_are_at_rays_metrics_port(ray_session, random_model, tmp_path):
    from actors.tracker import Tracker

    config = load_training_config(
        ["preset=tiny", f"model.path={random_model}", "wandb.mode=disabled", "run.name=scraped"]
    )
    tracker = Tracker.remote(config, str(tmp_path))
    ray_session.get(tracker.log.remote({"step": 1, "reward": 0.75, "positions": [1]}))
    (node,) = ray_session.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"

    def offered() -> list[str]:
        with urllib.request.urlopen(address, timeout=10) as page:
            return [line for line in page.read().decode().splitlines() if line.startswith("ray_palimpsest_reward{")]

    until(offered, 60)
    (line,) = offered()
    assert 'run="scraped"' in line and line.endswith(" 0.75")
    ray_session.kill(tracker)
