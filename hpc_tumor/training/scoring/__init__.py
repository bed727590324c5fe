"""Score predictions: logits and labels in, metrics by case and by class out."""
