"""Feed training: a store and a part of its split in, batches of tensors on the training device out.

`rows` reads, `loader` reads ahead, `row_cache` keeps rows in memory, `staging` copies a store to the node's disk;
augmentation works on whole batches. Imported by cluster/, prediction/ and training/.
"""
