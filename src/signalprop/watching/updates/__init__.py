"""What the optimizer gets and does: weights, gradients, updates."""
