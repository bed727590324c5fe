"""Write and read checkpoints and weights: files with checksums, written by a background thread."""
