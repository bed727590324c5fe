"""Run training on a cluster: profiles, plans, submission, the queue and the logs.

    describe/ → plan/ → launch/ → node/ (on the nodes) → observe/          convert/: data conversion as a job array

`slurm` calls SLURM's commands and explains pending reasons. Only the ranks import torch. Imported by cli/ and doctor/.
"""
