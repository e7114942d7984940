"""Advantages, one a file."""
