"""What rewards read in a completion's text."""
