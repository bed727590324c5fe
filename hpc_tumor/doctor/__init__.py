"""Examine whether this machine, this cluster and this GPU are fit to run, here and by a test job on a node.

In: an installation, a profile. Out: findings, each with what to do. Imported by the command.
"""
