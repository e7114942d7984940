"""How many positions a denoising step commits: a schedule a file, found by its name."""
