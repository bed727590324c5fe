"""Score predictions: metrics by case and class from logits and labels, identical on any number of ranks.

Imported by prediction/ and the rest of training/.
"""
