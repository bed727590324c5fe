"""Look into a network that trains: debugging, one batch learned by heart, traces, anomalies."""
