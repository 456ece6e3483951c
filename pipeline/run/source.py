"""The source of a training run's problems."""

from pipeline.data.documents.synthetic import SyntheticRecipe
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.run.config import TrainingConfig

SYNTHETIC_PROBLEMS = 1 << 20  # in one pass


def training_source(config: TrainingConfig) -> SampleFiles | SyntheticRecipe:
    """Open the data that `config.data` names.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file has another format or no rows.
    """
    if config.data.source == "synthetic":
        return SyntheticRecipe(config.run.seed, config.data.synthetic_chunks, SYNTHETIC_PROBLEMS)
    return SampleFiles.open(config.data.path, row_rules(config))
