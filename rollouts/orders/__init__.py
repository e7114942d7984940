"""Which positions a denoising step commits."""
