"""Held-out prompts and likelihoods."""
