"""From answers to advantages: scorers, over-long shaping, and advantage estimators."""
