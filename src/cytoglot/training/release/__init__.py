"""Model card and publishing."""
