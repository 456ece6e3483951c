"""Check a machine with GPUs before a run: `python -m jobs.gpu_check` (`make gpu-check`).

A part is a module of this package that `PARTS` (jobs/gpu_check/settings.py) names. It has `run(settings, folder,
report)`. The parts machine, learner and attention need neither Ray nor vLLM, and import neither.
"""
