"""Look inside a run: debugging mode, traces, anomalies, overfitting on one batch."""
