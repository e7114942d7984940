"""What the judge is made of: the client, the fenced question, the verdict and the server that it can start."""
