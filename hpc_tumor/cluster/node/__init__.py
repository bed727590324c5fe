"""Run on a node: the batch script's decisions around the ranks, one rank, and runs without a SLURM."""
