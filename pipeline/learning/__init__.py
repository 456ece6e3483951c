"""From advantages to gradients: micro-batches, the policy and its log-probs, the objective, the learning rate."""
