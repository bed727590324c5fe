"""Convert raw cases to a store: complete or not at all, resumable, in several processes."""
