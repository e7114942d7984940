"""Checks that users run on their own rewards, policies, samplers and estimators."""
