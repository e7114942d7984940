"""Ratios of the policy to the one that generated, one a file."""
