"""Cells of many files as one corpus on disk, and as examples of every task again."""

from cytoglot.corpus.build import BuildSummary, build_corpus
from cytoglot.corpus.examples import sample_examples
from cytoglot.corpus.folder import Corpus, open_corpus, write_corpus
from cytoglot.corpus.import_c2s import C2SCells, C2SReport, read_c2s
from cytoglot.corpus.loader import BatchSettings, CorpusLoader, ExampleSettings
from cytoglot.corpus.recipe import CorpusRecipe, load_corpus_recipe

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
