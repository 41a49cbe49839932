"""The training loop: data in, weights out, whatever is trained."""
