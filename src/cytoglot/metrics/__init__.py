"""Pure functions of arrays and strings."""
