"""Trackers: what hears of a run, one a file."""
