"""How many positions a denoising step commits."""
