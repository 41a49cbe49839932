"""Change the weights."""
