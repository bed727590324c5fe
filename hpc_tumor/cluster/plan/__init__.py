"""Plan jobs: from requested GPUs, a profile and the cluster's limits to nodes, tasks, memory and walltime.

Imported by cli/, doctor/ and the rest of cluster/.
"""
