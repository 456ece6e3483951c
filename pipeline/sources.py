"""Where a run's problems come from: an endless stream, in the order of the data, from the start again after its end."""

from collections.abc import Iterator

from pipeline.config import Config
from pipeline.documents.hotpotqa import hotpotqa_problems
from pipeline.documents.synthetic import synthetic_problem
from pipeline.problems import Problem, Quarantine, read_problem_file


def training_problems(config: Config, quarantine: Quarantine) -> Iterator[Problem]:
    """The problems of `config.data`, for ever.

    Raises:
        FileNotFoundError, DataError: no such file; another format; too many bad rows, or none at all.
    """
    data, seed = config.data, config.run.seed
    if data.source == "synthetic":
        index = 0
        while True:
            yield synthetic_problem(seed, index, data.synthetic_chunks)
            index += 1
    while True:
        if data.source == "hotpotqa":
            yield from hotpotqa_problems(data.path, data.distractors, data.documents, data.task, seed, quarantine)
        else:
            yield from read_problem_file(data.path, quarantine)
