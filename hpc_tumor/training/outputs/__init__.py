"""Record what a run leaves: metrics, results, pictures, TensorBoard."""
