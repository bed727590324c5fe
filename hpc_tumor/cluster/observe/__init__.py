"""Observe runs. In: run directories, squeue, sacct. Out: states, logs, causes, efficiency, advice, leftover files.

Imported by cli/, doctor/, and launch/ and node/ of cluster/.
"""
