"""Train a memory agent: `python -m jobs.train preset=<name> key=value … [--dry-run]`.

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster), else on a Ray of its own.
Prints one line a step; leaves a run folder (README.md, "What a run leaves").
"""

import signal
import sys
import traceback
from pathlib import Path

from pipeline.config import CONFIGS, Config, ConfigError, config_yaml, load_config, save_config
from pipeline.config_rules import check_config, check_data_given, check_window
from pipeline.metrics import RunTotals
from pipeline.plan import Architecture, architecture_of, plan_text
from pipeline.report import run_summary, write_summary

LINE_WAIT_S = 2.0


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"])
        check_config(config)
        if dry_run:
            print(config_yaml(config), plan_text(config, architecture(config)), sep="\n")
        check_files(config)
        check_model(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    return 0 if dry_run else train(config)


def check_files(config: Config) -> None:
    """The input files are there.

    Raises:
        ConfigError: a path is not given or does not exist.
    """
    check_data_given(config)
    for name in ("path", "distractors"):
        path = getattr(config.data, name)
        if path and not Path(path).is_file():
            raise ConfigError(f"data.{name}={path}: no such file (from {Path.cwd()})")


def architecture(config: Config) -> Architecture | None:
    """The sizes of the model, for the plan; without a network, those of the presets' models are known here too."""
    from transformers import AutoConfig

    known = CONFIGS / "models" / Path(config.model.path).name
    for source in (config.model.path, known):
        try:
            return architecture_of(AutoConfig.from_pretrained(source, trust_remote_code=config.model.trust_remote_code))
        except (OSError, ValueError, AttributeError):
            continue
    return None


def check_model(config: Config) -> None:
    """The longest conversation fits the window, counted with the model's own tokenizer and prompt template.

    Raises:
        ConfigError: it does not, or there is no such model, template or agent.
    """
    from transformers import AutoConfig, AutoTokenizer

    from pipeline.agents import load_agent
    from pipeline.prompts import PROMPT_TEMPLATES, Prompts

    a, trust = config.agent, config.model.trust_remote_code
    load_agent(a.entrypoint)
    if a.prompt_template not in PROMPT_TEMPLATES:
        raise ConfigError(f"agent.prompt_template={a.prompt_template!r}; there are: {', '.join(PROMPT_TEMPLATES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=trust)
        model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={config.model.path}: {str(error).splitlines()[0]}") from None
    if PROMPT_TEMPLATES[a.prompt_template].chat and not tokenizer.chat_template:
        raise ConfigError(
            f"agent.prompt_template={a.prompt_template} needs a chat template, which {config.model.path} lacks"
        )
    longest = Prompts(tokenizer, PROMPT_TEMPLATES[a.prompt_template]).longest(
        a.problem_tokens, a.memory_tokens, a.chunk_tokens
    )
    check_window(config, *longest, getattr(model, "max_position_embeddings", None))


def train(config: Config) -> int:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.coordinator import Coordinator

    ray.init(log_to_driver=True, logging_level="WARNING")
    folder = run_folder(config, in_job=bool(ray.get_runtime_context().runtime_env.get("working_dir")))
    if folder.exists() and any(folder.iterdir()):
        print(f"configuration error:\nthe run folder {folder} is not empty; choose another run.name", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    print(f"· run folder {folder}", flush=True)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    coordinator = Coordinator.options(scheduling_strategy=here).remote(config, str(folder))
    running = coordinator.run.remote()

    def stop(signum, frame):
        coordinator.stop.remote()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        shown = 0
        while not ray.wait([running], timeout=0)[0]:
            shown = _print_lines(ray, coordinator, shown)
        _print_lines(ray, coordinator, shown, wait_s=0)
        summary = ray.get(running)
    except ray.exceptions.RayError:
        summary = run_summary(config, "failed", RunTotals(), error=traceback.format_exc())
        write_summary(folder, summary)
    if summary["error"]:
        print(summary["error"], file=sys.stderr)
    print(f"· {summary['status']}; summary in {folder / 'summary.json'}", flush=True)
    ray.shutdown()
    return {"completed": 0, "interrupted": 130}.get(summary["status"], 1)


def run_folder(config: Config, in_job: bool) -> Path:
    """Where the run leaves its files. A job works in a copy of the source that Ray deletes, so there a relative
    `run.folder` is taken from the home directory."""
    base = Path.home() / "palimpsest" if in_job else Path.cwd()
    return base / config.run.folder / config.run.name


def _print_lines(ray, coordinator, shown: int, wait_s: float = LINE_WAIT_S) -> int:
    lines = ray.get(coordinator.lines.remote(shown, wait_s))
    for line in lines:
        print(line, flush=True)
    return shown + len(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
