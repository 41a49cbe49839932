"""A causal language model: loading, adapters, tokenizer, small models from nothing."""
