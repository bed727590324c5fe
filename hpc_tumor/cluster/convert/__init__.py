"""Convert a dataset by an array of jobs: `command` waits and commits, `task` converts, `work_queue` lies between."""
