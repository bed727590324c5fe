"""Run on a node: the batch script's decisions, the ranks of a job, the queue of a machine without SLURM."""
