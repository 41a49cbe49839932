"""Thin commands: parse, call, print where the result is."""
