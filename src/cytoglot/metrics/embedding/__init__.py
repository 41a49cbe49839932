"""Metrics of vectors: `neighbors` first, then `silhouette_width`, `integration`, `structure` and the others."""
