"""The cluster files of configs/clusters: what they start is checked by schemas, bash, Ray's command line and the
configuration; and the commands of docs/cluster.md."""

import json
import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from pipeline.config import CONFIGS, load_config
from pipeline.data.recipes import RECIPES
from pipeline.evaluation.config import EvaluationConfig, check_evaluation
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.run.rules import check_config

CLUSTERS = CONFIGS / "clusters"
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"

# The keys that kuberay.yaml uses. It and the RayCluster made of it were validated once against KubeRay's CRDs (version
# v1, commit feeaf72), which are too large to be copied here.
POD = {"affinity", "nodeSelector", "tolerations", "containers", "volumes"}
CONTAINER = {"name", "image", "workingDir", "resources", "volumeMounts"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "authOptions", "headGroupSpec", "workerGroupSpecs"}
JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"}

# The keys that skypilot.yaml uses, as SkyPilot's schemas have them (sky/utils/schemas.py, commit 00052df).
TEXT, NUMBER, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
AUTOSTOP = {"idle_minutes": {"type": "integer", "minimum": 0}, "down": YES}
RESOURCES = {
    "infra": {"type": "string", "pattern": "^(aws|gcp)/[^/]+$"},
    "accelerators": TEXT,
    "image_id": TEXT,
    "disk_size": NUMBER,
    "use_spot": YES,
    "autostop": {"type": "object", "additionalProperties": False, "properties": AUTOSTOP},
}
TASK = {
    "name": TEXT,
    "num_nodes": NUMBER,
    "workdir": TEXT,
    "setup": TEXT,
    "run": TEXT,
    "resources": {"type": "object", "additionalProperties": False, "properties": RESOURCES},
    "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    "secrets": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
}


def run_of(command: str) -> TrainingConfig:
    """The configuration of a command that begins with `python -m jobs.train`."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "jobs.train"]
    config = load_training_config(words[3:])
    check_config(config)
    return config


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


def test_kubernetes_keys_are_those_of_the_job_and_of_the_cluster_made_of_it():
    job = yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert job["kind"] == "RayJob" and job["spec"].keys() <= JOB and cluster.keys() <= CLUSTER
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        spec = group["template"]["spec"]
        assert group.keys() <= GROUP and spec.keys() <= POD
        assert all(container.keys() <= CONTAINER for container in spec["containers"])
    # The command on the page, without yq.
    assert """yq 'explode(.) | .kind = "RayCluster" | .spec = .spec.rayClusterSpec' """ in PAGE.read_text()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cloud_passes_rays_schema_and_has_the_nodes_that_its_comment_names(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (CLUSTERS / f"{cloud}.yaml").read_text()
    cluster = prepare_config(yaml.safe_load(text))
    validate_config(cluster)
    asked = re.findall(r"resources\.(\w+)=1", text)
    named = " ".join(re.findall(r"\w+\.resources\S+=1", text))
    run = run_of(f"python -m jobs.train preset=memagent_7b data.path=x {named}")
    types = cluster["available_node_types"]
    actors = {"on_demand": run.learner.ranks, "spot": run.generator.count}
    assert sorted(asked) == sorted(actors) == sorted(run.learner.resources.keys() | run.generator.resources.keys())
    for kind, number in actors.items():
        (offer,) = [name for name, node in types.items() if kind in node["resources"]]
        assert types[offer]["resources"][kind] * types[offer]["min_workers"] == number
    assert cluster["max_workers"] == sum(node["min_workers"] for node in types.values())
    for start in ("head", "worker"):
        stop, command = cluster[f"{start}_start_ray_commands"]
        assert stop == "palimpsest/.venv/bin/ray stop"
        # A job's `python` is found by PATH.
        started = "ulimit -n 65536; PATH=$HOME/palimpsest/.venv/bin:$PATH RAY_AUTH_MODE=token ray start --"
        assert command.startswith(started)
        for shell in (*cluster[f"{start}_setup_commands"], command):
            subprocess.run(["bash", "-n", "-c", filled(shell)], check=True)
    # Ray's default installs what starts the other nodes, but not in .venv.
    assert cluster["head_setup_commands"][-1].startswith("palimpsest/.venv/bin/python -m pip install ")


def test_only_generators_are_on_spot_nodes():
    aws, gcp = (yaml.safe_load((CLUSTERS / f"{cloud}.yaml").read_text()) for cloud in ("aws", "gcp"))
    for cluster, is_spot in (
        (aws, lambda node: node.get("InstanceMarketOptions") == {"MarketType": "spot"}),
        (gcp, lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT"),
    ):
        types = cluster["available_node_types"]
        assert [name for name, node in types.items() if is_spot(node["node_config"])] == ["generators"]
    same = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "file_mounts", "auth")
    assert all(aws[key] == gcp[key] for key in same)


def filled(command: str) -> str:
    """A command without the placeholders, which bash would take for redirections."""
    return re.sub(r"<[a-z ]+>", "x", command)


def stand_ins(folder: Path, **bodies: str) -> dict[str, str]:
    """Make commands of shell in a folder; return an environment in which they are found."""
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def test_skypilot_starts_one_ray_on_all_nodes_and_the_job_on_the_first(tmp_path):
    task = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    schema = {"type": "object", "additionalProperties": False, "required": list(TASK), "properties": TASK}
    jsonschema.validate(task, schema)
    assert task["envs"] == {"RAY_AUTH_MODE": "token"} and task["secrets"] == {"RAY_AUTH_TOKEN": None}
    subprocess.run(["bash", "-n", "-c", filled(task["setup"])], check=True)
    command = re.search(r"python -m jobs\.train (?:.*\\\n)*.*", task["run"])[0].replace("\\\n", " ")
    run = run_of(command)
    gpus = int(task["resources"]["accelerators"].partition(":")[2])
    assert task["num_nodes"] * gpus >= run.generator.count + run.learner.ranks and run.resume == "auto"
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}

    note = 'echo "${0##*/} $@" >> "$HOME/calls"'

    def calls(rank: int, running: bool) -> list[str]:
        bodies = {"pgrep": f"{note}; exit {int(not running)}", "ray": note, "python": f"{note}; echo at $RAY_ADDRESS"}
        environment = stand_ins(tmp_path, **bodies) | nodes | {"SKYPILOT_NODE_RANK": str(rank)}
        script = ["bash", "-c", task["run"]]
        ended = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        assert rank or ended.stdout == "at 10.0.0.1:6379\n"
        said = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return said

    asked, waited = "pgrep -f -- --gcs-address=10.0.0.1:6379", "ray status --address=10.0.0.1:6379"
    port = "--dashboard-agent-listen-port=52366"
    trained = " ".join(shlex.split(command))
    assert calls(0, running=False) == [asked, f"ray start --head --port=6379 {port}", trained]
    assert calls(0, running=True) == [asked, trained]
    assert calls(1, running=False) == [waited, asked, f"ray start --address=10.0.0.1:6379 {port}"]
    assert calls(1, running=True) == [waited, asked]


def commands_of_page() -> list[str]:
    """The commands of the section that leads from nothing to a run."""
    section = PAGE.read_text().partition("\n## From nothing to a 7B run\n")[2].partition("\n## ")[0]
    lines = "\n".join(re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [line for line in lines.splitlines() if line and not line.startswith("#")]


def simple_commands(line: str) -> list[list[str]]:
    """The words of each simple command of a line of shell, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>&|")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == ">":
            next(lexer)
        elif word in ("&&", "(", ")"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def parsed(words: list[str]) -> dict:
    """The options and arguments of a command of `ray`, which it parses and does not run."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    return command.make_context(name, words).params


def test_ten_commands_lead_to_a_run():
    commands = commands_of_page()
    assert 8 <= len(commands) <= 10
    calls = [parsed(words[1:]) for command in commands for words in simple_commands(command) if words[:1] == ["ray"]]
    for call in calls:
        file = call.get("cluster_config_file")
        assert file is None or (CONFIGS.parent / file).is_file()
    assert f'"ray[default]=={version("ray")}"' in commands[1]
    made, trained = set(), None
    for words in (list(call["entrypoint"]) for call in calls if "entrypoint" in call):
        job, arguments = words[2], words[3:]
        assert words[:2] == ["python", "-m"]
        if job == "jobs.prepare":
            settings = load_config(arguments[1:], RECIPES[arguments[0]])
            assert settings.faults() == []
            assert all(path in " ".join(commands) for path in settings.inputs())
            made.add(settings.output)
        elif job == "jobs.train":
            trained = run_of(shlex.join(words))
            assert trained.data.path in made
            assert trained.generator.resources and trained.learner.resources
        else:
            assert job == "jobs.evaluate"
            config = load_config(arguments, EvaluationConfig)
            check_evaluation(config)
            assert config.data.path in made and trained is not None
            last = f"{trained.run.folder}/{trained.run.name}/checkpoints/{trained.train.steps}/hf"
            assert config.model.path == last and config.run.folder == trained.run.folder
            assert f"--local-dir {trained.model.path}" in " ".join(commands)
    assert len(made) == 2


def test_the_dashboard_has_a_query_in_each_panel_and_asks_the_chosen_prometheus_about_the_chosen_runs():
    board = json.loads((CLUSTERS / "grafana.json").read_text())
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource" and variables["DS_PROMETHEUS"]["query"] == "prometheus"
    assert variables["run"]["query"] == "label_values(ray_palimpsest_step, run)"
    panels, source = board["panels"], {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) > 10
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in [variables["run"], *panels]:
        assert panel["datasource"] == source
    for panel in panels:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all(re.search(r'ray_palimpsest_.*run=~"\$run"', target["expr"]) for target in panel["targets"])


def test_slurm_starts_ray_on_all_nodes_and_the_job_on_the_first(tmp_path):
    """With stand-ins for Slurm's commands. The environment has no token yet, and then one."""
    found = stand_ins(
        tmp_path,
        hostname="echo '10.0.0.7 192.168.0.7 '",
        srun='printf "%s\\n" "$RAY_AUTH_MODE" "$@"',
        ray='cd; mkdir -p .ray; echo "$@" >> calls; umask >> calls; touch .ray/auth_token',
    )
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    environment = found | {
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
