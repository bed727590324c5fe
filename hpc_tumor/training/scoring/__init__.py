"""Score predictions: logits and labels in; metrics by case and class, alike on any number of ranks, out."""
