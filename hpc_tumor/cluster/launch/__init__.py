"""Launch runs: an experiment and a plan in, submitted jobs and their records out."""
