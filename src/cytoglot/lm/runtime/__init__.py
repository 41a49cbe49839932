"""Batches, memory, prefetching, shared prefixes."""
