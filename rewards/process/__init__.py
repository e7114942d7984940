"""The child's side of a reward: the process that runs it."""
