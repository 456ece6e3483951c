"""Scorers: rewards and advantages of groups, and scores of single answers."""
