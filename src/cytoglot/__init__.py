"""The language of cells: cell sentences, language models of them, and honest measurements.

The public verbs are loaded on first use, so that `import cytoglot` loads neither torch nor a plotting library.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytoglot import corpus as corpus
    from cytoglot import metrics as metrics
    from cytoglot import pl as pl
    from cytoglot.applications.annotation import annotate as annotate
    from cytoglot.applications.answering import answer_prompts as answer_prompts
    from cytoglot.applications.embedding import embed as embed
    from cytoglot.applications.expected_expression import expected_expression as expected_expression
    from cytoglot.applications.gene_vectors import gene_embeddings as gene_embeddings
    from cytoglot.applications.generation import generate as generate
    from cytoglot.applications.reconstruction import reconstruct as reconstruct
    from cytoglot.benchmark.evaluate import evaluate as evaluate
    from cytoglot.cell_model.load import CellModel as CellModel
    from cytoglot.cell_model.load import load_cell_model as load_cell_model
    from cytoglot.data import datasets as datasets
    from cytoglot.data.audit import audit as audit
    from cytoglot.data.datasets import load_dataset as load_dataset
    from cytoglot.data.genes.vocabulary import GeneVocabulary as GeneVocabulary
    from cytoglot.data.readers.read import read as read
    from cytoglot.lm.model.language_model import LanguageModel as LanguageModel
    from cytoglot.lm.model.load import load_model as load_model
    from cytoglot.sentence.cell_sentence import CellSentences as CellSentences
    from cytoglot.sentence.decode import decode as decode
    from cytoglot.sentence.encode import encode as encode
    from cytoglot.sentence.parquet import read_sentences as read_sentences
    from cytoglot.sentence.parquet import write_sentences as write_sentences
    from cytoglot.training.run import train as train

__version__ = "0.1.0"

# Read by OpenMP and numba when they are loaded. Busy waiting makes two processes on two cores ten times slower; and
# numba takes all cores unless told otherwise, and takes OpenMP, so torch, along.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if (_n_threads := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdecimal() and int(_n_threads):
    os.environ.setdefault("NUMBA_NUM_THREADS", _n_threads)

_HOME = {
    "CellModel": "cytoglot.cell_model.load",
    "CellSentences": "cytoglot.sentence.cell_sentence",
    "GeneVocabulary": "cytoglot.data.genes.vocabulary",
    "LanguageModel": "cytoglot.lm.model.language_model",
    "annotate": "cytoglot.applications.annotation",
    "answer_prompts": "cytoglot.applications.answering",
    "audit": "cytoglot.data.audit",
    "decode": "cytoglot.sentence.decode",
    "embed": "cytoglot.applications.embedding",
    "encode": "cytoglot.sentence.encode",
    "evaluate": "cytoglot.benchmark.evaluate",
    "expected_expression": "cytoglot.applications.expected_expression",
    "gene_embeddings": "cytoglot.applications.gene_vectors",
    "generate": "cytoglot.applications.generation",
    "load_dataset": "cytoglot.data.datasets",
    "load_cell_model": "cytoglot.cell_model.load",
    "load_model": "cytoglot.lm.model.load",
    "read": "cytoglot.data.readers.read",
    "read_sentences": "cytoglot.sentence.parquet",
    "reconstruct": "cytoglot.applications.reconstruction",
    "train": "cytoglot.training.run",
    "write_sentences": "cytoglot.sentence.parquet",
}

_MODULES = {
    "corpus": "cytoglot.corpus",
    "datasets": "cytoglot.data.datasets",
    "metrics": "cytoglot.metrics",
    "pl": "cytoglot.pl",
}

__all__ = ["__version__", *sorted({*_HOME, *_MODULES})]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = importlib.import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'cytoglot' has no attribute {name!r}")
    globals()[name] = value  # the next use is an ordinary attribute
    return value


def __dir__() -> list[str]:
    return __all__
