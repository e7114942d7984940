"""Objectives and KL estimators, one a file."""
