"""A run's metrics are among those that Ray offers to Prometheus."""

import re
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
    nodes = [node for node in ray_session.nodes() if node["Alive"]]

    def offered() -> list[str]:
        places = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
        pages = [urllib.request.urlopen(place, timeout=60).read().decode() for place in places]
        return re.findall(r'^ray_palimpsest_reward\{.*run="scraped".*\} (.+)$', "\n".join(pages), re.MULTILINE)

    until(offered)
    assert offered() == ["0.75"]
    ray_session.kill(tracker)
