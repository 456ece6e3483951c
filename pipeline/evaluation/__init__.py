"""Evaluation: from answers to scores, intervals, tables and figures. Pure functions over the rows of results.jsonl."""
