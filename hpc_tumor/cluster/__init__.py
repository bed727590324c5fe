"""Where training happens: cluster profiles, plans, submission, the queue, the logs. Nothing here loads torch early."""
