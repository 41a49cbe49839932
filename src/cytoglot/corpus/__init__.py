"""Cells of many files as one corpus on disk, and as examples of every task again.

In the order in which they are best read: `format` (on disk), `sources` (where cells come from), `assign` (where each
cell goes), `build` (many files to one corpus), `read` (examples for people, batches for training), `inspect` (counts,
duplicates, audit).
"""

from cytoglot.corpus.build.build import BuildSummary, build_corpus
from cytoglot.corpus.format.folder import Corpus, open_corpus, write_corpus
from cytoglot.corpus.read.examples import sample_examples
from cytoglot.corpus.read.loader import BatchSettings, CorpusLoader, ExampleSettings
from cytoglot.corpus.sources.import_c2s import C2SCells, C2SReport, read_c2s
from cytoglot.corpus.sources.recipe import CorpusRecipe, load_corpus_recipe

__all__ = [
    "BatchSettings",
    "BuildSummary",
    "C2SCells",
    "C2SReport",
    "Corpus",
    "CorpusLoader",
    "CorpusRecipe",
    "ExampleSettings",
    "build_corpus",
    "load_corpus_recipe",
    "open_corpus",
    "read_c2s",
    "sample_examples",
    "write_corpus",
]
