"""Estimators of a KL divergence from the log-probs of taken tokens, one a file."""
