"""Sampled answers and expected ranks."""
