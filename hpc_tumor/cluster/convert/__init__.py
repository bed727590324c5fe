"""Convert a dataset with a job array: `command` waits and commits, `task` converts, `work_queue` connects them.

Imported by cli/.
"""
