"""Make samples: `python -m jobs.prepare <kind> key=value … [--dry-run]`.

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster). Without RAY_ADDRESS it joins your
cluster on this machine, or starts Ray.
`--dry-run` starts nothing: it prints the resolved settings and reports what is wrong.
`output` must be a folder that all nodes share, or an object store. The same command resumes a stopped job. The kinds
`filter` and `demonstrations` write to a local folder, and `demonstrations` starts over.
docs/data.md describes the kinds. `python -m jobs.prepare <kind> --help` lists the keys of one.
"""

import functools
import inspect
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from jobs.support.demonstrations import DemonstrationsConfig, write_demonstrations
from jobs.support.driver import asks_for_help, show_help, start_ray, stop_ray, then_stop_ray
from jobs.support.filter import FilterConfig, filter_samples
from jobs.support.run_folder import base_folder
from pipeline.config import config_yaml, load_config
from pipeline.data.preparation import QUARANTINE, Prepared, prepare_samples
from pipeline.data.recipes import RECIPES, Settings
from pipeline.errors import ConfigError, DataError
from pipeline.files import exists


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    kind, *settings = arguments or [""]
    if asks_for_help(arguments):
        if kind in KINDS:
            return show_help(f"python -m jobs.prepare {kind} key=value …\n\n{_description(kind)}", schema_of(kind))
        kinds = [f"  {name:<{max(map(len, KINDS)) + 2}}{_description(name).splitlines()[0]}" for name in KINDS]
        print((__doc__ or "").strip(), "", "Kinds:", *kinds, sep="\n")
        return 0
    if kind not in KINDS:
        print(f"usage: python -m jobs.prepare <kind> key=value …\nkinds: {', '.join(KINDS)}", file=sys.stderr)
        return 2
    try:
        return KINDS[kind](settings)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_samples(kind: str, arguments: list[str]) -> int:
    """Make the samples of a recipe; return the exit status. Raises `ConfigError` if the settings are wrong."""
    dry_run = "--dry-run" in arguments
    settings = load_config([a for a in arguments if a != "--dry-run"], RECIPES[kind])
    if dry_run:
        print(config_yaml(settings))
    check_settings(settings)
    if dry_run:
        return 0
    in_job = start_ray()
    import ray

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        folder = output_folder(settings, in_job)
        workers = settings.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        prepared = prepare_samples(kind, settings, folder, workers, functools.partial(print, flush=True))
    except KeyboardInterrupt:
        print("· interrupted; the same command resumes and keeps the finished files", flush=True)
        return 130
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except ray.exceptions.RayError:
        traceback.print_exc()
        return 1
    finally:
        stop_ray()
    print(report(prepared, folder), flush=True)
    return 0


# The function that makes each kind of samples: it takes the remaining arguments and returns the exit status.
KINDS: dict[str, Callable[[list[str]], int]] = {
    **{kind: functools.partial(make_samples, kind) for kind in RECIPES},
    "demonstrations": write_demonstrations,
    "filter": filter_samples,
}


def schema_of(kind: str) -> type:
    """The dataclass of a kind's keys. Its docstring describes the kind."""
    return RECIPES.get(kind) or {"demonstrations": DemonstrationsConfig, "filter": FilterConfig}[kind]


def _description(kind: str) -> str:
    return inspect.getdoc(schema_of(kind)) or ""


def check_settings(settings: Settings) -> None:
    """Check that the settings are valid and the inputs exist.

    Raises:
        ConfigError: they are not; the message has one line for each fault.
    """
    found = settings.faults()
    for path in settings.inputs():
        try:
            if not exists(path):
                found.append(f"{path}: no such file" + ("" if "://" in path else f" (from {Path.cwd()})"))
        except DataError as error:
            found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))


def output_folder(settings: Settings, in_job: bool) -> str:
    """The folder or URI that receives the samples."""
    return settings.output if "://" in settings.output else str(base_folder(in_job) / settings.output)


def report(prepared: Prepared, folder: str) -> str:
    tokens = f", at most {prepared.most_tokens:,} tokens of documents" if prepared.most_tokens else ""
    aside = f" (see {folder}/{QUARANTINE})" if prepared.quarantined else ""
    return (
        f"· {prepared.samples} samples, files: {prepared.files}{tokens}; {prepared.quarantined} quarantined{aside}\n"
        f"· completed; samples in {folder}"
    )


def _interrupt(signum, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(then_stop_ray(main, sys.argv[1:]))
