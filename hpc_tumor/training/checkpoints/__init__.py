"""Write and read checkpoints: a training state in, files with checksums out, written by a background thread.

Imported by prediction/ and the rest of training/.
"""
