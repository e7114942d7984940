"""Policies in the released checkpoints layouts."""
