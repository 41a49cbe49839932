"""Where each cell goes: split, downsampling, groups, shard, duplicates."""
