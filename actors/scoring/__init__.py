"""Scorers: rewards and advantages of whole groups, and the scores of single answers."""
