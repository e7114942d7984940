"""Rewards on saved completions."""
