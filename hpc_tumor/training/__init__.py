"""Training: one loop for both tasks, alone, under torchrun and under SLURM."""
