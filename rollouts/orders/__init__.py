"""Which positions a denoising step commits: an order a file, found by its name."""
