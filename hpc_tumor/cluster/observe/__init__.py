"""Observe runs: run directories, squeue and sacct in; states, logs, causes, efficiency and advice out."""
