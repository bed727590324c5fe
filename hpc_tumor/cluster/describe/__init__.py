"""Describe a cluster: SLURM's answers and profile files in, validated profiles out."""
