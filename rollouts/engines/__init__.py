"""Engines: what goes through the model at a denoising step."""
