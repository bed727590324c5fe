"""Write, verify and load checkpoints and weights."""
