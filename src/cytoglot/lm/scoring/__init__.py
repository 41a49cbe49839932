"""Exact likelihoods of closed sets of answers."""
