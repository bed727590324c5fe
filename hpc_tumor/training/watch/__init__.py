"""Watch the ranks: progress, hangs, steps that are not finite, memory, and the resources that a start used.

Imported by cluster/node, prediction/ and the rest of training/.
"""
