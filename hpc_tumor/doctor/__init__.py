"""Check that this installation, its GPUs and a cluster are ready for runs, here and with a test job on a node.

In: an installation, a profile. Out: findings with remedies. Imported by cli/.
"""
