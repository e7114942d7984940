"""Task generators of the quickstart, and the scripts that made the assets it starts from."""
