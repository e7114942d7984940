"""What a paper changes: estimators, ratios, objectives, KL, advantages; one choice a file."""
