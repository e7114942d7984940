"""Random checkpoints in released layouts."""
