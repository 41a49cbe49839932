"""A causal language model and what one can ask of it; knows nothing of genes or cells."""
