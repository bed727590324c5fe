"""Record what a run leaves: metrics, pictures, TensorBoard."""
