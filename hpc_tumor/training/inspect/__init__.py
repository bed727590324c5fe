"""Inspect training: debugging, overfitting one batch, traces, and the sources of values that are not finite.

Imported by cli/ and the loop of training/.
"""
