"""A file of labelled cells as a corpus of one study, so that all training reads corpora.

Genes are chosen and ties broken by training cells alone, whose labels are not looked at; test cells are left out. The
same cells and options give the same bytes, so a run whose corpus is gone goes on with one that is made again.

Axes: n cells, g genes of the sentence vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.corpus.format.folder import Corpus, Part, write_corpus
from cytoglot.corpus.format.shard_file import FIXED_COLUMNS, CellBlock, make_block
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.hvg import Flavor, select_hvg
from cytoglot.data.normalize import log_normalize
from cytoglot.data.qc import QcSettings, quality_control
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.data.schema import GROUP_FIELDS, group_values, recognize_obs
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.assignment import PARTS
from cytoglot.data.splits.content import content_of_cells
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import FRACTIONS, split_cells
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, TieRule
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.fit_curves import fit_rank_curve
from cytoglot.sentence.rank_curve import DEFAULT_CURVE
from cytoglot.sentence.ranker import detection_rates

if TYPE_CHECKING:
    from anndata import AnnData

LABELLED, UNLABELLED = "labelled cells", "unlabelled cells"
"""the two sources of the corpus: cells without a label can be asked less, so their visits are weighed apart"""


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """Which cells and genes of a file are learned from, and how cells are ranked."""

    hvg: int | None = None
    """sentences hold only so many highly variable genes; None: every gene that a training cell expresses"""
    hvg_flavor: Flavor = "pearson_residuals"
    hvg_batch_key: str | None = None
    ties: TieRule = "symbol"
    qc: QcSettings | None = None
    train_share: float = 1.0
    """share of the training cells that is kept; a smaller share is a part of a larger one"""
    shuffle_labels: bool = False
    """permute the labels of the training cells: the control that must reach chance"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """canonical name → what holds for every cell"""


@dataclass(frozen=True, kw_only=True)
class CellCorpus:
    """The corpus of a file, and what a corpus does not keep of its training cells."""

    corpus: Corpus
    split: Split
    """of all cells of the file, those included that quality control or `train_share` left out"""
    sentences: CellSentences
    """the training cells, ranked over the vocabulary; whole, since views drop genes before a sentence is truncated"""
    labels: NDArray[np.object_]
    """(n,) cell type of each training cell, None where unknown"""
    tied: NDArray[np.bool_] | None
    """whether each gene of these sentences is expressed as much as the one before it; None where that is unknown"""
    log_ng: csr_matrix | None
    """log10(1 + counts per 10,000 of the whole cell) of the training cells; None for cells that came ranked"""
    tie_rates: NDArray[np.float32] | None
    """(g,) detection rate among training cells; None for cells that came ranked"""
    messages: tuple[str, ...]
    """what was removed, fitted or decided, for the log and the report"""


def corpus_of_cells(
    adata: AnnData,
    folder: str | Path,
    *,
    label: str,
    options: CellOptions | None = None,
    split: Split | None = None,
    split_by: str = "auto",
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    rank: Callable[[AnnData], CellSentences] | None = None,
) -> CellCorpus:
    """Write the training and validation cells of a file as a corpus in `folder`.

    Parameters
    ----------
    adata
        What `cytoglot.data.readers.read.read` returns: one checked matrix in `X` with unique symbols.
    label
        Column of `obs` with the cell types; cells without a label have no `cell_type` in the corpus.
    split, split_by, fractions
        A split made elsewhere; by default one is made by `split_by`, `fractions` and `seed`.
    rank
        Ranks the cells instead, such as over the genes of a trained model; then no gene is chosen and no curve fitted.

    Raises
    ------
    InputError
        The column holds no label, a name in `options.metadata` is taken, or the genes cannot be chosen.
    """
    options = options or CellOptions()
    taken = sorted(set(options.metadata) & {*FIXED_COLUMNS, "cell_type"})
    if taken:
        raise InputError(f"expected metadata such as organism or tissue, found {taken}, which cells have of their own")
    messages: list[str] = []
    if options.qc is not None:
        adata, report = quality_control(adata, options.qc)
        messages += report.messages()
    series = read_labels(adata.obs, label)
    if series.notna().sum() == 0:
        raise InputError(f"column {label!r} holds no label at all; pass another --label")
    split = split or split_cells(adata.obs, by=split_by, label=label, fractions=fractions, seed=seed)
    messages += split.warnings
    part_n = split.part_of(adata.obs_names)
    n_train, n_validation, n_test = (f"{int((part_n == part).sum()):,}" for part in PARTS)
    messages.append(
        f"{n_train} cells for training, {n_validation} for validation, {n_test} kept for test; split by {split.by}"
    )
    train_n = part_n == "train"
    labels = series.where(series.notna(), None).to_numpy(dtype=object, copy=True)  # pandas 3 gives a read-only view
    if options.shuffle_labels:
        known = np.flatnonzero(train_n & series.notna().to_numpy())
        labels[known] = labels[np.random.default_rng([seed, 1]).permutation(known)]
    # At least one cell; a smaller share is a part of a larger one, as both are cut from one order.
    order = np.random.default_rng([seed, 6]).permutation(np.flatnonzero(train_n))
    learned = np.sort(order[: max(1, round(options.train_share * len(order)))])
    log_ng, tie_rates, curve, tied_w = None, None, None, None
    if rank is not None:
        sentences = rank(adata)
    else:
        names = choose_genes(adata[train_n], options)
        columns, vocabulary = adata.var_names.get_indexer(names), GeneVocabulary(symbols=tuple(names))
        counts_ng = csr_matrix(adata.X)[:, columns]
        counts_ng.sort_indices()
        tie_rates = detection_rates(counts_ng[train_n])
        settings = RankSettings(ties=options.ties, seed=seed)
        sentences = encode_matrix(
            counts_ng, vocabulary, cell_ids=adata.obs_names, settings=settings, tie_rates=tie_rates
        )
        tied_w = ties_of(sentences, counts_ng)
        # Depth is the whole cell's, so genes outside of the sentence vocabulary still count towards it.
        matrix_ng = csr_matrix(adata.X)[learned]
        log_ng = log_normalize(matrix_ng, matrix_state_of(adata), target_sum=1e4, base=10.0)[:, columns]
        log_ng.sort_indices()
        curve = fit_rank_curve(DEFAULT_CURVE, sentences[learned], log_ng, seed=split.seed).to_dict()
    n_genes = len(sentences.vocabulary)
    messages.append(f"{n_genes} genes in the sentence vocabulary; {sentences.n_empty} cells have an empty sentence")
    metadata: dict[str, NDArray[np.object_]] = {"cell_type": labels}
    fields = recognize_obs(adata.obs)
    for name in GROUP_FIELDS:  # what intervals are resampled by, where the file names it
        if name in fields:
            values = group_values(adata.obs, fields[name])
            metadata[name] = values.where(values.notna(), None).to_numpy(dtype=object)
    metadata |= {name: np.full(adata.n_obs, text, dtype=object) for name, text in options.metadata.items()}

    def blocks(rows: NDArray[np.intp]) -> list[CellBlock]:
        chosen = sentences[rows]
        tied = None if tied_w is None else tied_w[np.isin(sentences.cells(), rows)]
        return [make_block(
            cell_ids=chosen.cell_ids,
            offsets=chosen.offsets,
            gene_ids=chosen.gene_ids,
            n_genes=n_genes,
            n_expressed=chosen.n_expressed,
            source=[UNLABELLED if labels[row] is None else LABELLED for row in rows],
            metadata={name: values[rows].tolist() for name, values in metadata.items()},
            tied=tied,
        )] if len(rows) else []  # fmt: skip

    cells: dict[Part, list[CellBlock]] = {
        "train": blocks(learned),
        "validation": blocks(np.flatnonzero(part_n == "validation")),
    }
    corpus = write_corpus(
        folder, cells, vocabulary=sentences.vocabulary, settings=sentences.settings, rank_curve=curve, seed=seed
    )
    return CellCorpus(
        corpus=corpus,
        split=split.with_content(adata.obs_names, content_of_cells(adata, sentences.vocabulary)),
        sentences=sentences[learned],
        tied=None if tied_w is None else tied_w[np.isin(sentences.cells(), learned)],
        labels=labels[learned],
        log_ng=log_ng,
        tie_rates=tie_rates,
        messages=tuple(messages),
    )


def choose_genes(train_cells: AnnData, options: CellOptions) -> list[str]:
    """Return the genes of the sentence vocabulary, chosen on training cells.

    They are sorted, as in a corpus: the order of the genes in a file then changes neither a word's token nor the
    numbers that the model starts from.
    """
    names = train_cells.var_names
    if options.hvg is None or options.hvg >= len(names):
        seen_g = np.asarray((train_cells.X > 0).sum(axis=0)).ravel() > 0
        return sorted(str(name) for name in names[seen_g])
    return sorted(
        select_hvg(train_cells, n_top=options.hvg, flavor=options.hvg_flavor, batch_key=options.hvg_batch_key)
    )


def ties_of(sentences: CellSentences, matrix_ng: csr_matrix) -> NDArray[np.bool_]:
    """Return, for each gene of each sentence, whether it is expressed as much as the gene before it, (w,).

    Parameters
    ----------
    matrix_ng
        What the sentences were ranked by, with sorted columns.
    """
    # Where each stored value stands in its sentence.
    cells_w, genes_w = sentences.cells(), sentences.gene_ids.astype(np.int64)
    order_w = np.lexsort((genes_w, cells_w))
    stored = matrix_ng.data != 0
    values_w = np.empty(len(genes_w), dtype=matrix_ng.dtype)
    values_w[order_w] = matrix_ng.data[stored]
    tied_w = np.zeros(len(genes_w), dtype=np.bool_)
    tied_w[1:] = (values_w[1:] == values_w[:-1]) & (cells_w[1:] == cells_w[:-1])
    return tied_w
