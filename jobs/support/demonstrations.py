"""`python -m jobs.prepare demonstrations`: conversations of a scripted reader, for fine-tuning.

Unlike the other kinds it reads and writes in one process, for seconds per thousand samples, and starts over if stopped.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from jobs.support.driver import start_ray, stop_ray
from jobs.support.inputs import check_model, check_samples
from jobs.support.run_folder import RunFolder, base_folder
from pipeline.agents.memory import MemoryAgent
from pipeline.config import config_yaml, load_config
from pipeline.data.preparation import RECORD
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import RowRules
from pipeline.data.sample_files import SampleFiles, read_samples
from pipeline.errors import BadRow, DataError
from pipeline.files import atomic_output, is_local, local_path, write_text
from pipeline.fine_tuning.scripted_reader import Habits, ScriptedReader
from pipeline.rewards.scoring import SCORERS
from pipeline.rules import check_rules, positive
from pipeline.sections import AgentSection, GenerationConfig, ModelSection, RowLimits, from_repository
from pipeline.text import load_tokenizer

CONVERSATIONS, QUARANTINE = "conversations.jsonl", "quarantine/conversations.jsonl"


@dataclass
class DemonstrationsConfig:
    """Conversations of a scripted reader of hidden facts, as fine-tuning reads them.

    The sections `model` and `agent` are those of the run that will learn: prompts and responses are written in the
    model's tokens.
    """

    path: str = MISSING  # samples that `jobs.prepare facts` made: a file, or a folder
    output: str = MISSING  # local folder for conversations.jsonl and prepare.json, which says how they were made
    keep_share: float = 0.75  # probability with which the reader keeps a needed fact of its memory, per section
    slip_share: float = 0.2  # probability with which it notes a useless fact of a section; only the dropping is written
    tempted_share: float = 0.5  # share of the sections with a useless fact to write, where the memory stays empty
    idle_share: float = 0.15  # share of the other sections to write, where the memory stays empty: there are many
    seed: int = 0  # of all random choices
    max_bad_share: float = 0.05  # the job stops if more than this share of the rows is quarantined
    limits: RowLimits = field(default_factory=RowLimits)
    model: ModelSection = field(default_factory=ModelSection)
    agent: AgentSection = field(default_factory=AgentSection)

    def complete(self) -> None:
        self.model.path = from_repository(self.model.path)


def write_demonstrations(arguments: list[str]) -> int:
    """Read all samples and write the conversations; return the exit status. Raises `ConfigError`."""
    dry_run = "--dry-run" in arguments
    config = load_config([a for a in arguments if a != "--dry-run"], DemonstrationsConfig)
    if dry_run:
        print(config_yaml(config))
    check_rules(
        positive(config, "agent", "window", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens"),
        [
            (is_local(config.output), f"output={config.output}: demonstrations are written to a local folder"),
        ],
    )
    check_samples(config.path, "path")
    check_model(GenerationConfig(model=config.model, agent=config.agent), ["memory"])
    if dry_run:
        return 0
    folder = base_folder(in_job=start_ray()) / local_path(config.output)
    try:
        with RunFolder(folder) as place:
            count, bad = _write(config, folder, lambda line: print(line, flush=True))
            record = {"kind": "demonstrations", "settings": asdict(config), "conversations": count, "quarantined": bad}
            place.call(write_text, folder / RECORD, json.dumps(record, indent=1))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        stop_ray()
    print(f"· {count} conversations in {folder / CONVERSATIONS}")
    return 0


def _write(config: DemonstrationsConfig, folder: Path, say: Callable[[str], None]) -> tuple[int, int]:
    """Write conversations.jsonl; return the number of conversations, and of bad rows, quarantined in the folder.

    Raises:
        DataError: too many rows are bad.
    """
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    reader = ScriptedReader(MemoryAgent(tokenizer, config.agent), Habits(config.keep_share, config.slip_share))
    shares = {"idle": config.idle_share, "tempted": config.tempted_share}
    quarantine = Quarantine(folder / QUARANTINE, config.max_bad_share)
    quarantine.path.unlink(missing_ok=True)
    rules = RowRules(tuple(SCORERS), config.limits, config.agent.document_characters)
    source, count = SampleFiles.open(config.path, rules), 0
    say(f"· reading {len(source)} samples")
    with atomic_output(str(folder / CONVERSATIONS)) as partial, partial.open("w", encoding="utf-8") as output:
        for index, problem in read_samples(source, quarantine):
            rng = random.Random(f"{config.seed}/{problem.id}")
            try:
                conversations = list(reader.read(problem, rng))
            except BadRow as error:
                quarantine.add(problem.id, str(error), source.row(index)[1])
                continue
            for shown in conversations:
                if shown.kind != "slip" and (shown.kind not in shares or rng.random() < shares[shown.kind]):
                    line = {"prompt_tokens": shown.prompt, "response_tokens": shown.response}
                    output.write(json.dumps(line) + "\n")
                    count += 1
        quarantine.finish()
    return count, quarantine.bad
