"""Small checkpoints that ship with the package, in the released layouts."""
