"""Feed training: a store in, batches of tensors out, from memory, the node's disk or the file system."""
