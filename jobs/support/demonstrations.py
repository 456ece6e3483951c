"""`python -m jobs.prepare demonstrations`: conversations of a scripted reader, for fine-tuning."""

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from jobs.support.inputs import check_model, check_samples
from jobs.support.run_folder import base_folder
from pipeline.agents.memory import MemoryAgent
from pipeline.config import config_yaml, load_config
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles, read_samples
from pipeline.errors import BadRow, ConfigError, DataError
from pipeline.files import atomic_output
from pipeline.fine_tuning.scripted_reader import READERS, ScriptedReader
from pipeline.rules import check_data_given, check_rules, generation_rules
from pipeline.sections import DataSection, GenerationConfig, ScoringSection
from pipeline.text import load_tokenizer

QUARANTINE = "quarantine/conversations.jsonl"


@dataclass
class DemonstrationsConfig(GenerationConfig):
    """Conversations of a scripted reader of hidden facts, as fine-tuning reads them.

    `data.path` is samples that `jobs.prepare facts` made. `model.path` and the section `agent` are those of the model
    that will learn: prompts and responses are written in its tokens.
    """

    data: DataSection = field(default_factory=DataSection)
    scorer: ScoringSection = field(default_factory=ScoringSection)
    output: str = MISSING  # folder for conversations.jsonl
    reader: str = "careless"  # careful (no mistakes), or careless (a start for reinforcement learning)
    # share of the conversations with an empty memory and nothing noted that is written: there are many, and easy ones
    idle_share: float = 0.25


def write_demonstrations(arguments: list[str]) -> int:
    """Read all samples and write the conversations; return the exit status. Raises `ConfigError`."""
    dry_run = "--dry-run" in arguments
    config = load_config([a for a in arguments if a != "--dry-run"], DemonstrationsConfig)
    if dry_run:
        print(config_yaml(config))
    check_rules(generation_rules(config))
    if config.reader not in READERS:
        raise ConfigError(f"reader={config.reader!r} must be one of {', '.join(READERS)}")
    check_data_given(config)
    check_samples(config.data.path)
    check_model(config, ["memory"])
    if dry_run:
        return 0
    folder = base_folder(in_job=False) / config.output
    try:
        count = _write(config, folder)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"· {count} conversations of a {config.reader} reader in {folder / 'conversations.jsonl'}")
    return 0


def _write(config: DemonstrationsConfig, folder: Path) -> int:
    """Write conversations.jsonl; return the number of conversations. Bad rows are quarantined in the folder.

    Raises:
        DataError: too many rows are bad.
    """
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    reader = ScriptedReader(MemoryAgent(tokenizer, config.agent), READERS[config.reader])
    quarantine = Quarantine(folder / QUARANTINE, config.data.max_bad_share)
    quarantine.path.unlink(missing_ok=True)
    source, count = SampleFiles.open(config.data.path, row_rules(config)), 0
    with atomic_output(str(folder / "conversations.jsonl")) as partial, partial.open("w", encoding="utf-8") as output:
        for index, problem in read_samples(source, quarantine):
            rng = random.Random(f"{config.run.seed}/{problem.id}")
            try:
                conversations = list(reader.read(problem, rng))
            except BadRow as error:
                quarantine.add(problem.id, str(error), source.row(index)[1])
                continue
            for prompt, response, idle in conversations:
                if not idle or rng.random() < config.idle_share:
                    output.write(json.dumps({"prompt_tokens": prompt, "response_tokens": response}) + "\n")
                    count += 1
        quarantine.finish()
    return count
