"""Ranked genes and metadata on disk."""
