"""A training run: its configuration and rules, the ledger of its groups, its metrics, its checkpoints, its summary."""
