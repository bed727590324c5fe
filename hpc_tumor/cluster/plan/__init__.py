"""Plan a job: GPUs asked for, a profile and what the cluster allows in; nodes, tasks, memory and time out."""
