"""Describe a cluster: from profile files and the output of SLURM's commands to validated profiles and facts.

Imported by cli/, doctor/ and the rest of cluster/.
"""
