"""Record a run: losses, scores and predictions in; metrics, results, pictures and TensorBoard files out.

Imported by experiments/ and the loop of training/.
"""
