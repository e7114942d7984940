"""Where programs of the policy run, and how their verdicts come out."""
