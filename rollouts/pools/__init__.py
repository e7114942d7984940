"""Where completions are generated."""
