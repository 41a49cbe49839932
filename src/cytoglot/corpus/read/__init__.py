"""A corpus back as examples for people and as batches for training."""
