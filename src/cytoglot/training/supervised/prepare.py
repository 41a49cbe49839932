"""From a file to what training needs: labelled sentences, a split, and what is fitted on training cells alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.hvg import select_hvg
from cytoglot.data.normalize import log_normalised
from cytoglot.data.qc import quality_control
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.content import content_of_cells
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import split_cells
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.encode import detection_rates, encode_matrix
from cytoglot.training.recipe import TrainRecipe

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreparedCells:
    """Cells ready to be turned into examples. Axes: n cells, g genes of the sentence vocabulary."""

    sentences: CellSentences
    """all cells, ranked over the sentence vocabulary; whole, since views drop genes before a sentence is cut off"""
    top_genes: int | None
    """where a sentence is cut off"""
    labels: NDArray[np.object_]
    """(n,) cell type, None where unknown"""
    part: NDArray[np.object_]
    """(n,) train, validation, test, or unused (training cells beyond the recipe's share)"""
    split: Split
    log_ng: csr_matrix
    """log10(1 + counts per 10,000 of the whole cell), columns in the order of the sentence vocabulary"""
    tie_rates: NDArray[np.float32]
    """(g,) detection rate among training cells"""
    messages: tuple[str, ...]
    """what was removed, fitted or decided, for the log and the report"""

    @property
    def n_words(self) -> NDArray[np.int64]:
        """(n,) words of each cell's sentence once it is cut off."""
        return np.minimum(self.sentences.lengths, self.top_genes or np.iinfo(np.int64).max)

    def rows(self, part: str, *, labelled: bool) -> NDArray[np.int64]:
        """Return the rows of the cells of a part, with a label only or all of them."""
        chosen = self.part == part
        if labelled:
            chosen &= np.array([label is not None for label in self.labels], dtype=bool)
        return np.flatnonzero(chosen)


def prepare_cells(
    adata: AnnData, *, label: str, recipe: TrainRecipe, split: Split | None, split_by: str, seed: int
) -> PreparedCells:
    """Split, select genes, rank. Everything fitted is fitted on training cells alone (their labels are not used).

    Parameters
    ----------
    adata
        What `cytoglot.data.readers.read.read` returns: one checked matrix in `X` with unique symbols.
    label
        Column of `obs` with the cell types; cells without a label train the generation tasks only.
    split
        A split made elsewhere; by default one is made by `split_by` and `seed`.
    """
    messages: list[str] = []
    if recipe.qc is not None:
        adata, report = quality_control(adata, recipe.qc)
        messages += report.messages()
    labels = read_labels(adata.obs, label)
    if labels.notna().sum() == 0:
        raise InputError(f"column {label!r} holds no label at all; pass another --label")
    split = split or split_cells(adata.obs, by=split_by, label=label, seed=seed)
    messages += list(split.warnings)
    train = split.mask(adata.obs_names, "train")
    genes = choose_genes(adata[train], recipe)
    vocabulary = GeneVocabulary(symbols=tuple(genes))
    columns = adata.var_names.get_indexer(list(genes))
    counts_ng = csr_matrix(adata.X)[:, columns]
    counts_ng.sort_indices()
    tie_rates = detection_rates(counts_ng[train])
    settings = RankSettings(ties=recipe.sentence.ties, seed=seed)
    sentences = encode_matrix(counts_ng, vocabulary, cell_ids=adata.obs_names, settings=settings, tie_rates=tie_rates)
    messages.append(
        f"{len(vocabulary)} genes in the sentence vocabulary; {sentences.n_empty} cells have an empty sentence"
    )
    return PreparedCells(
        sentences=sentences,
        top_genes=recipe.sentence.top_genes,
        labels=_training_labels(labels, train, recipe, seed),
        part=_thinned(_parts(adata.obs_names, split), recipe.train_share, seed),
        split=split.with_content(adata.obs_names, content_of_cells(adata, vocabulary)),
        log_ng=_log10_cp10k(adata, columns),
        tie_rates=tie_rates,
        messages=tuple(messages),
    )


def choose_genes(train_cells: AnnData, recipe: TrainRecipe) -> list[str]:
    """Return the genes of the sentence vocabulary, chosen on training cells.

    They are sorted, as in a corpus: the order of the genes in a file then changes neither a word's token nor the
    numbers that the model starts from.
    """
    names, sentence = train_cells.var_names, recipe.sentence
    if sentence.hvg is None or sentence.hvg >= len(names):
        seen = np.asarray((train_cells.X > 0).sum(axis=0)).ravel() > 0
        return sorted(str(name) for name in names[seen])
    return sorted(
        select_hvg(train_cells, n_top=sentence.hvg, flavor=sentence.hvg_flavor, batch_key=sentence.hvg_batch_key)
    )


def _log10_cp10k(adata: AnnData, columns: NDArray[np.intp]) -> csr_matrix:
    """Depth is the whole cell's, so genes outside of the sentence vocabulary still count towards it."""
    log_ng = log_normalised(csr_matrix(adata.X), matrix_state_of(adata), target_sum=1e4, base=10.0)[:, columns]
    log_ng.sort_indices()
    return log_ng


def _parts(names: pd.Index, split: Split) -> NDArray[np.object_]:
    part = np.full(len(names), "", dtype=object)
    for name in ("train", "validation", "test"):
        part[split.mask(names, name)] = name
    return part


def _thinned(part: NDArray[np.object_], share: float, seed: int) -> NDArray[np.object_]:
    """Leave a share of the training cells, at least one; the others belong to no part."""
    train = np.flatnonzero(part == "train")
    order = np.random.default_rng([seed, 6]).permutation(train)
    part[order[max(1, round(share * len(train))) :]] = "unused"
    return part


def _training_labels(
    labels: pd.Series, train: NDArray[np.bool_], recipe: TrainRecipe, seed: int
) -> NDArray[np.object_]:
    values = np.array([None if pd.isna(value) else str(value) for value in labels], dtype=object)
    if recipe.control == "shuffled_labels":
        known = np.flatnonzero(train & np.array([value is not None for value in values]))
        values[known] = values[np.random.default_rng([seed, 1]).permutation(known)]
    return values


def label_table(prepared: PreparedCells) -> Mapping[str, int]:
    """Return label → number of training cells, most frequent first and then by name."""
    counts = pd.Series(prepared.labels[prepared.rows("train", labelled=True)]).value_counts()
    return {str(name): int(n) for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def word_quantiles(prepared: PreparedCells) -> dict[str, tuple[int, ...]]:
    """Return label → sentence lengths at the 5, 25, 50, 75 and 95 % quantiles of its training cells."""
    rows = prepared.rows("train", labelled=True)
    lengths, labels = prepared.n_words[rows], prepared.labels[rows]
    return {
        str(name): tuple(int(q) for q in np.quantile(lengths[labels == name], [0.05, 0.25, 0.5, 0.75, 0.95]))
        for name in sorted(set(labels))
    }
