"""Write the page of a run: `python -m jobs.view runs/<name> [output=<file>] [wandb=yes]`.

The page is one HTML file that needs no network: curves, sampled episodes, answers before and after. It shows the run
folder as it is now, also of a run that is not over. Exit status: 0 written, 1 not written, 2 wrong arguments.

output=<file>  the page; default: view.html in the run folder
wandb=yes      also log it as an artifact of the run's wandb run, with the run's own section wandb
"""

import sys
import time
from pathlib import Path

from jobs.support.driver import asks_for_help
from pipeline.errors import ConfigError, reason_of
from pipeline.storage import Storage
from pipeline.view.page import PAGE, write_page

WAIT_S = 60.0  # limit for the page of a run that ends, and for wandb to start and to end


def main(arguments: list[str]) -> int:
    """Write the page; return the exit status."""
    if asks_for_help(arguments):
        print(__doc__.strip())
        return 0
    try:
        folder, output, to_wandb = parsed(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    begin = time.monotonic()
    try:
        missing = write_page(folder, output)
    except OSError as error:
        print(f"the page could not be written: {reason_of(error)}", file=sys.stderr)
        return 1
    for line in missing:
        print(f"· {line}")
    print(f"· page {output} ({output.stat().st_size / 1e6:.1f} MB, {time.monotonic() - begin:.1f} s)")
    return 0 if not to_wandb or log_to_wandb(folder, output) else 1


def parsed(arguments: list[str]) -> tuple[Path, Path, bool]:
    """The run folder, the page, and whether it is logged to wandb. Raises `ConfigError`."""
    folders = [a for a in arguments if "=" not in a or Path(a).is_dir()]
    given = dict(a.split("=", 1) for a in arguments if a not in folders)
    if len(folders) != 1:
        raise ConfigError("name one run folder: python -m jobs.view runs/<name>")
    if unknown := given.keys() - {"output", "wandb"}:
        raise ConfigError(f"unknown: {', '.join(sorted(unknown))}; the arguments are output=<file> and wandb=yes")
    if given.get("wandb", "no") not in ("yes", "no"):
        raise ConfigError(f"wandb={given['wandb']} must be yes or no")
    folder = Path(folders[0])
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.yaml")
    output = Path(given.get("output") or folder / PAGE)
    if output.is_dir():
        raise ConfigError(f"output={output} is a folder; name a file")
    return folder, output, given.get("wandb") == "yes"


def write_run_page(folder: Path) -> None:
    """Write a run's page at its end and say where it is. A failure is a warning: the run is over and has its files."""
    try:
        Storage(folder).call(write_page, folder, folder / PAGE, limit_s=WAIT_S)
    except Exception as error:  # whatever the files hold
        print(f"· warning: the page of the run could not be written: {reason_of(error)}", flush=True)
    else:
        print(f"· page {folder / PAGE}", flush=True)


def log_to_wandb(folder: Path, page: Path) -> bool:
    """Add a page to the wandb run of a run folder, and say how it went; return whether it was added."""
    from actors.wandb_run import WandbRun
    from pipeline.run.config import load_training_config
    from pipeline.view.lines import Notes, json_object, text

    summary = json_object(folder / "summary.json", "summary.json", Notes())
    try:
        config = load_training_config([f"preset={folder / 'config.yaml'}"])
    except ConfigError as error:
        print(f"config.yaml is not that of a training run: {error}", file=sys.stderr)
        return False
    # The run's URL or the folder of an offline run: both end with the id.
    run_id = text(summary.get("wandb_run")).rstrip("/").rpartition("/")[2].rpartition("-")[2]
    if not run_id:
        print("the run has no wandb run: its summary.json names none", file=sys.stderr)
        return False
    run = WandbRun(config, folder, run_id)
    place, _ = run.started(WAIT_S)
    run.log_file(PAGE, page.read_bytes)
    run.finish(summary, WAIT_S)
    if news := run.news():
        print(*news, sep="\n", file=sys.stderr)
        return False
    print(f"· wandb {place}")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
