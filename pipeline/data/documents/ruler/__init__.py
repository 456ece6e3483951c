"""RULER (arXiv 2404.06654): thirteen tasks over documents of any length, made anew for each tokenizer.

The definitions and the parameters are the benchmark's, the code is our own. A problem is a pure function of the task,
a seed, an index and a length, so that any worker makes the same one. Its document holds haystack and needles alone;
the question stands apart from it.
"""

from pipeline.data.documents.ruler.essay import load_essay
from pipeline.data.documents.ruler.questions import load_questions
from pipeline.data.documents.ruler.tasks import RULER_TASKS, RulerSources, ruler_problem

__all__ = ["RULER_TASKS", "RulerSources", "load_essay", "load_questions", "ruler_problem"]
