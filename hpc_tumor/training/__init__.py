"""Train one run: an experiment and a store in, a run directory with checkpoints, metrics and a result out.

    setup (TrainingState) → loop → step          scoring/  checkpoints/  watch/  inspect/  outputs/

One loop for both tasks, alone, under torchrun and under SLURM. Knows no scheduler; imported by the ranks of a job, by
prediction for its networks, and by the debugging mode.
"""
