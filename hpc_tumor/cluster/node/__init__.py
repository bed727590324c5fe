"""Code that runs on a node: the batch script's steps around the ranks, one rank, and runs without SLURM.

Imported by cli/, doctor/, and launch/ and observe/ of cluster/.
"""
