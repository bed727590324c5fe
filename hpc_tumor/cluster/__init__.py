"""Run training on a cluster: cluster profiles, plans, submission, the queue, the logs.

    describe/ → plan/ → launch/ → node/ (on the nodes) → observe/          convert/: a conversion as an array of jobs

`slurm` calls SLURM's commands and `reasons` explains its words. Nothing here loads torch but the ranks themselves.
Imported by the commands and the doctor.
"""
