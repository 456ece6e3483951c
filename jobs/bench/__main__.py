"""Measure the performance claims: `python -m jobs.bench <claim> key=value …`.

`all` measures every claim with its defaults and writes docs/performance.md; `write` writes it from the results so far.
A claim prints its tables in Markdown and keeps them in runs/bench/. `<claim> --help` lists its keys.
"""

import json
import shlex
import subprocess
import sys

from jobs.bench.claims import CLAIMS, Result, keep, load, summary_of, text_of
from jobs.bench.measuring import machine
from jobs.bench.page import PAGE, write_page
from jobs.support.driver import asks_for_help, show_help
from pipeline.config import load_config
from pipeline.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Run a command; return the exit status: 0 completed, 1 a claim could not be measured, 2 wrong arguments."""
    command, *settings = arguments or [""]
    if asks_for_help(arguments):
        return show_claim(command) if command in CLAIMS else show_claims()
    if command in ("all", "write"):
        if settings:
            print(f"configuration error:\n{command} takes no arguments, not {' '.join(settings)}", file=sys.stderr)
            return 2
        return measure_all() if command == "all" else write()
    if command not in CLAIMS:
        print(
            f"usage: python -m jobs.bench <claim> key=value …\nclaims: {', '.join(CLAIMS)}; or all, or write",
            file=sys.stderr,
        )
        return 2
    if settings[:1] == ["--measure"]:  # a turn in a process of its own (`in_own_process`)
        print(json.dumps(load(command).measure(*json.loads(settings[1]))))
        return 0
    return measure(command, settings)


def show_claims() -> int:
    width = max(map(len, CLAIMS)) + 2
    print((__doc__ or "").strip(), "", "Claims:", *(f"  {c:<{width}}{summary_of(c)}" for c in CLAIMS), sep="\n")
    return 0


def show_claim(claim: str) -> int:
    return show_help(f"python -m jobs.bench {claim} key=value …\n\n{text_of(claim)}", load(claim).Settings)


def measure(claim: str, arguments: list[str]) -> int:
    """Measure a claim, print its tables and keep them; return the exit status."""
    module = load(claim)
    try:
        tables = module.run(load_config(arguments, module.Settings))
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    there = "" if getattr(module, "SIMULATED", False) else machine()
    result = Result(shlex.join(["python", "-m", "jobs.bench", claim, *arguments]), there, tables)
    print(tables, flush=True)
    print(f"· kept in {keep(claim, result)}; `python -m jobs.bench write` puts it on {PAGE.name}", file=sys.stderr)
    return 0


def measure_all() -> int:
    """Measure every claim in a process of its own, and write the page after each; return the exit status."""
    failed = []
    for claim in CLAIMS:
        print(f"· {claim}: {summary_of(claim)}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", "jobs.bench", claim]).returncode:
            failed.append(claim)
        write()
    if failed:
        print(f"not measured: {', '.join(failed)}; their sections are as before", file=sys.stderr)
    return 1 if failed else 0


def write() -> int:
    write_page()
    print(f"· wrote {PAGE}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
