"""The supervised stage."""
