"""Describe a cluster: profile files and SLURM's own answers in, validated profiles and facts out."""
