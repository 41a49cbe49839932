"""Ontologies, gene sets and other tables."""
