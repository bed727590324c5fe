"""Plan a job: what is asked and what the cluster allows in, nodes, tasks, memory and time out."""
