"""Where the problems of a training run come from."""

from pipeline.data.documents.synthetic import SyntheticRecipe
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.run.config import TrainingConfig

SYNTHETIC_PROBLEMS = 1 << 20  # of one pass


def training_source(config: TrainingConfig) -> SampleFiles | SyntheticRecipe:
    """The data of `config.data`.

    Raises:
        FileNotFoundError, DataError: no such file, another format, or no row at all.
    """
    if config.data.source == "synthetic":
        return SyntheticRecipe(config.run.seed, config.data.synthetic_chunks, SYNTHETIC_PROBLEMS)
    return SampleFiles.open(config.data.path, row_rules(config))
