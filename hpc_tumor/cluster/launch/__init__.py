"""Launch runs: experiments and plans in, jobs in a queue and `job.json` out.

`sbatch` is the one way to sbatch; `snapshot` keeps the code that was submitted; `existing` tells which runs are there.
"""
