"""Cells of many files as one corpus on disk, and as examples of every task again.

In the order in which they are best read:

- on disk: `folder`, `shard_file`, `wordings`, `card`
- where cells come from: `recipe`, `sources`, `file_source`, `census`, `source_genes`, `source_metadata`
- where each cell goes: `cell_keys`, `unit_split`, `caps`, `cell_groups`, `placement`, `duplicates`
- building: `build`, then its steps `build_plan`, `build_count`, `build_spans` (with `spill`), `build_shards` (with
  `gather`) and `build_knowledge`; `engines` runs them, `opened` keeps a source open between them
- reading: `records` → `mixture` → `examples` for people; `reading_plan` → `visits` → `fitting` (with `tokenize`,
  `gene_characters`) → `packing` → `loader` for training
- looking into it: `walk` with the looks `label_counts`, `lengths`, `gene_use`, `task_balance`, `same_cells`; then
  `near_duplicates` (with `gene_set_index`), `audit`, `statistics`, `show`
- from elsewhere: `import_c2s`, `labelled_table`
"""

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
