"""Train one run: an experiment and a store in, a run directory with checkpoints, metrics and a result out.

    setup (TrainingState) → loop → step          scoring/  checkpoints/  watch/  inspect/  outputs/

The same loop serves both tasks, in one process, under torchrun and under SLURM. Imported by cli/ (debugging),
cluster/node (ranks), doctor/, experiments/ and prediction/.
"""
