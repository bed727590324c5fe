"""Observe runs. In: run directories, squeue, sacct. Out: states, logs, causes, efficiency, advice, leftover files."""
