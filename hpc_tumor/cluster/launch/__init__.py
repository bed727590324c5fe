"""Launch runs: from experiments and plans to jobs in a queue and `job.json`.

`sbatch` is the only module that submits to SLURM; `snapshot` saves the submitted code; `existing` finds earlier runs.
Imported by cli/, doctor/ and the rest of cluster/.
"""
