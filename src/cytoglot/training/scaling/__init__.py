"""Ladders of sizes and amounts of data."""
