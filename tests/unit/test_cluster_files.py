"""The cluster files of configs/clusters: what they start is checked by Ray's own schema, bash and the configuration."""

import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import yaml

from pipeline.config import CONFIGS
from pipeline.run.config import TrainingConfig, load_training_config

CLUSTERS = CONFIGS / "clusters"


def run_of(command: str) -> TrainingConfig:
    """The configuration of a command that begins with `python -m jobs.train`."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "jobs.train"]
    return load_training_config(words[3:])


def test_kubernetes_runs_a_command_whose_actors_find_their_nodes():
    job = yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text())["spec"]
    cluster, run = job["rayClusterSpec"], run_of(job["entrypoint"])
    assert cluster["rayVersion"] == version("ray") and cluster["authOptions"] == {"mode": "token"}
    pools = {"learners": (run.learner, run.learner.ranks), "generators": (run.generator, run.generator.count)}
    for group in cluster["workerGroupSpecs"]:
        section, actors = pools.pop(group["groupName"])
        parameters, spec = group["rayStartParams"], group["template"]["spec"]
        resources = yaml.safe_load(yaml.safe_load(parameters["resources"]))
        assert group["replicas"] * int(parameters["num-gpus"]) >= actors * section.num_gpus
        for kind, amount in section.resources.items():
            assert group["replicas"] * resources[kind] >= actors * amount
        (container,) = spec["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == parameters["num-gpus"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        terms = spec.get("affinity", {}).get("nodeAffinity") or spec["nodeSelector"]
        assert ("NotIn" in str(terms)) == (group["groupName"] == "learners") and "<spot label>" in str(terms)
    assert not pools


def test_aws_passes_rays_schema_and_has_the_nodes_that_its_comment_names():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (CLUSTERS / "aws.yaml").read_text()
    cluster = prepare_config(yaml.safe_load(text))
    validate_config(cluster)
    asked = re.findall(r"resources\.(\w+)=1", text)
    types = cluster["available_node_types"]
    assert len(asked) == 2
    for kind in asked:
        (offer,) = [name for name, node in types.items() if kind in node["resources"]]
        assert types[offer]["resources"][kind] == 8 and types[offer]["min_workers"] >= 1
    assert types["generators"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for command in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        path = "PATH=$HOME/palimpsest/.venv/bin:$PATH "  # a job's `python` is found there
        assert command.endswith("ray stop") or command.startswith(f"{path}RAY_AUTH_MODE=token ")
    assert all("ImageId" in node["node_config"] for node in types.values())


def test_slurm_starts_ray_on_all_nodes_and_the_job_on_the_first(tmp_path):
    """With stand-ins for Slurm's commands. The environment has no token yet, and then one."""
    for name, body in {
        "hostname": "echo '10.0.0.7 192.168.0.7 '",
        "srun": 'printf "%s\\n" "$RAY_AUTH_MODE" "$@"',
        "ray": 'cd; mkdir -p .ray; echo "$@" >> calls; umask >> calls; touch .ray/auth_token',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_GPUS_ON_NODE": "8",
    }
    command = ["bash", str(CLUSTERS / "slurm.sh"), "jobs.train", "preset=tiny", "run.name=a run"]
    for _ in range(2):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        mode, kill, *words = ended.stdout.splitlines()
        assert mode == "token" and kill == "--kill-on-bad-exit=1"
        assert words[:6] == ["ray", "symmetric-run", "--address", "10.0.0.7:6379", "--min-nodes", "3"]
        assert words[6:] == ["--num-gpus", "8", "--", "python", "-m", "jobs.train", "preset=tiny", "run.name=a run"]
    assert Path(tmp_path / "calls").read_text() == "get-auth-token --generate\n0077\n"
    del environment["SLURM_SUBMIT_DIR"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and "submit this file with sbatch" in ended.stderr
