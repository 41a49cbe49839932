"""Ranked genes and metadata on disk."""

from cytoglot.corpus.import_c2s import C2SCells, C2SReport, read_c2s
from cytoglot.corpus.shards import iterate_shards, read_shards, write_shards, write_table

__all__ = [
    "C2SCells",
    "C2SReport",
    "iterate_shards",
    "read_c2s",
    "read_shards",
    "write_shards",
    "write_table",
]
