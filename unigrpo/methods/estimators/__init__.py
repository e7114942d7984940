"""Mask estimators, one a file."""
