"""The pieces that bodies are made of."""
