"""Convert a dataset by an array of jobs."""
