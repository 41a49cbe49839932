"""A corpus on disk: its folder, its shards, its card."""
