"""Learners: gangs of ZeRO-3 ranks, their steps and checkpoints, and the supervisor that restarts them."""
