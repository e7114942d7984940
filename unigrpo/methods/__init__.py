"""What a paper changes: estimators, objectives, KL, advantages; one choice a file."""
