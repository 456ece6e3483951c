"""RULER (arXiv 2404.06654): thirteen tasks over documents of any length, generated for the tokenizer in use.

The definitions and parameters are the benchmark's; the code is our own. A problem is a pure function of its RULER
task, seed, index and length, so any worker makes the same one. Its document holds only haystack and needles; the
question is separate.
"""

from pipeline.data.documents.ruler.essay import load_essay
from pipeline.data.documents.ruler.questions import load_questions
from pipeline.data.documents.ruler.tasks import RULER_TASKS, RulerSources, ruler_problem

__all__ = ["RULER_TASKS", "RulerSources", "load_essay", "load_questions", "ruler_problem"]
