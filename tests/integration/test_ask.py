"""`python -m jobs.ask` with the embedded model and a real engine: Ctrl-C, resuming, the same question again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.data.documents.synthetic import synthetic_problem

ROOT = Path(__file__).parents[2]
SECTIONS = 800  # of 18 tokens: seconds of reading, so that Ctrl-C comes before the end


def start(question: str, document: Path, cache: Path) -> subprocess.Popen:
    """Ask in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.ask", "preset=ask_tiny", question, str(document), "--json", "ask.temperature=0"],
        **{"cwd": ROOT, "env": os.environ | {"XDG_CACHE_HOME": str(cache)}, "start_new_session": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )


def end(process: subprocess.Popen) -> tuple[dict, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out), err


def test_a_reading_is_ended_by_ctrl_c_resumed_and_then_answered_at_once(tmp_path):
    problem = synthetic_problem(5, 1, SECTIONS)
    document = tmp_path / "facts.txt"
    document.write_text(problem.document.replace(" . ", " .\n"))
    reading = start(problem.question, document, tmp_path)
    begun = ""
    while not begun.startswith("section 5 of about "):
        begun = reading.stderr.readline()
        assert begun, "the job ended before the fifth section"
    os.killpg(reading.pid, signal.SIGINT)  # as from a terminal: the engine's process would get it too
    early, err = end(reading)
    assert "answering from the present memory" in err
    assert 5 <= early["sections"] < SECTIONS and not early["is_whole"] and early["text"].startswith("\\boxed{")

    whole, err = end(start(problem.question, document, tmp_path))
    assert whole["is_whole"] and whole["sections"] == SECTIONS
    assert whole["kept_conversations"] >= early["sections"] <= err.count("kept from an earlier reading")
    assert whole["model"].endswith("configs/models/tiny") and whole["response_tokens"] > SECTIONS

    again, err = end(start(problem.question, document, tmp_path))
    assert again == whole and "answered before" in err and "starting vLLM" not in err
