"""Supervised fine-tuning: conversations and demonstrations, and the micro-batches made of them."""
