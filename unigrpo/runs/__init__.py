"""A run: its directory, checkpoints, metrics and samples."""
