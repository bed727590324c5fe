"""Observe runs: run directories, squeue and sacct in, states, logs, causes and efficiency out."""
