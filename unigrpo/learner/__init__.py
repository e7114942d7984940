"""What executes a method: batches, log-probs, updates."""
