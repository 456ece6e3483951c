"""What reads a file that may be malformed, by its kind: each raises an error or prints what is wrong."""

import sys
from pathlib import Path

import pytest

from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import Prompts, load_template
from pipeline.config import load_config
from pipeline.data.documents.passages import PassageFile, read_passages
from pipeline.data.sample_files import SampleFiles
from pipeline.end_tokens import named_end_tokens
from pipeline.errors import DataError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import read_results
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.lease import take_lease
from pipeline.run.config import load_training_config
from pipeline.weights.bucket_files import BucketError, read_bucket_file
from tests.support.byte_tokenizer import byte_tokenizer


def passages(path: Path) -> None:
    PassageFile(path)


def distractors(path: Path) -> None:
    for _ in read_passages(path):
        pass


def samples(path: Path) -> None:
    source = SampleFiles.open(str(path))
    for index in range(len(source)):
        source.sample(index)


def model(path: Path) -> None:
    """The file is one of a model's."""
    folder = path.parent / "model"
    folder.mkdir()
    for file in (Path(__file__).parents[2] / "configs/models/tiny").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / path.name).unlink()
    (folder / path.name).write_bytes(path.read_bytes())
    from jobs.train import main

    assert main(["preset=tiny", f"model.path={folder}", "--dry-run"]) == 2


def preset(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.config.CONFIGS", path.parent)
        load_training_config([f"preset={path.stem}", "model.path=m"])


def preset_on_it(path: Path) -> None:
    """Another preset builds on the file."""
    (path.parent / "on_it.yaml").write_text(f"preset: {path.stem}\n")
    preset(path.parent / "on_it.yaml")


def gguf(path: Path) -> None:
    from jobs.support.import_gguf import CannotImport, import_gguf

    pytest.importorskip("gguf")
    with pytest.raises(CannotImport) as error:
        import_gguf(path, path.parent / "out")
    raise DataError(str(error.value))


def evaluation(path: Path) -> None:
    """The file is the config.yaml of an evaluation that is to go on."""
    from jobs.support.evaluation import check_folder

    folder = path.parent / "run"
    folder.mkdir()
    (folder / "config.yaml").write_bytes(path.read_bytes())
    (folder / "results.jsonl").write_text("{}\n")
    check_folder(load_config(["preset=eval_tiny"], EvaluationConfig), folder)


def training(path: Path) -> None:
    """The file is the config.yaml of a training run that is to go on."""
    from jobs.support.run_folder import check_earlier

    check_earlier(load_training_config(["preset=tiny", "resume=auto"]), path.parent)


def fine_tuning(path: Path) -> None:
    """The file is the config.yaml of a fine-tuning run that is to go on."""
    from jobs.support.run_folder import check_earlier

    check_earlier(load_config(["preset=fine_tune_tiny", "resume=auto"], FineTuningConfig), path.parent)


def prompts(path: Path) -> None:
    Prompts(byte_tokenizer(), load_template(str(path)), MemoryAgent.slots)


def results(path: Path) -> None:
    """What an evaluation wrote."""
    try:
        read_results(path)
    except ValueError as error:
        raise DataError(str(error)) from None


def comparison(path: Path) -> None:
    """The file is that of two evaluations."""
    from jobs.evaluate import main

    assert main(["--compare", str(path.parent), str(path.parent)]) == 2


def end(path: Path) -> None:
    """The file is the generation_config.json of a model."""
    try:
        named_end_tokens(str(path.parent))
    except ValueError as error:
        raise DataError(str(error)) from None


def bucket(path: Path) -> None:
    """The file holds 128 bytes of weights."""
    try:
        read_bucket_file(str(path), 128)
    except BucketError as error:
        raise DataError(str(error)) from None


def lease(path: Path) -> None:
    """The file is the lease of a run folder. It is taken over, which is said."""
    take_lease(path.parent, print, stale_s=0.2)
    print("taken over", file=sys.stderr)
