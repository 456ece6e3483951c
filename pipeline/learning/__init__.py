"""From advantages to gradients: micro-batches, the policy's log-probs, the objective, the learning rate."""
