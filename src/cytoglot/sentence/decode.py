"""Text or ranked genes → expression: the way back from a cell sentence to an AnnData.

All matrices are CSR; a gene that a sentence does not name is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.parse import ParseReport, Repeated, parse_many
from cytoglot.sentence.rank_curve import RankCurve, predict_words

if TYPE_CHECKING:
    from anndata import AnnData


def decode(
    sentences: Sequence[str] | CellSentences,
    *,
    vocabulary: GeneVocabulary | None = None,
    rank_curve: RankCurve | None = None,
    repeated: Repeated = "mean",
    cell_ids: Sequence[str] | None = None,
    n_expressed: ArrayLike | None = None,
) -> AnnData:
    """Return the cells that sentences describe.

    `X` is float32 log10(1 + counts per 10,000) where a rank curve is given, else the ranks. `layers["rank"]` holds the
    ranks, int32, 1 for the most expressed gene, 0 for genes not named. `obs["n_genes"]` counts the distinct genes of
    each sentence; for texts, `obs` also has `n_words`, `n_unknown`, `n_duplicates`, `n_case_fixed`, `first_fault` (-1:
    none) and `valid_share` of the parse report. `uns["cytoglot"]["decode"]` says what `X` is.

    Parameters
    ----------
    sentences
        Texts of any content (`parse.parse_genes` says how they are read), or ranked genes.
    vocabulary
        The genes; needed for texts, and taken from `CellSentences`.
    rank_curve
        From ranks to expression, as `model.rank_curve` or `cytoglot.reconstruct` has it; None leaves the ranks.
    repeated
        Rank of a gene that a text names more than once: the "mean" of its ranks, or the "first".
    cell_ids
        Names of the cells; None: those stored with the sentences, or numbers.
    n_expressed
        Genes that each cell is taken to express, one number or one per cell, for curves that depend on it; default:
        as stored with the sentences, and for texts the number of genes named. Pass it where sentences were cut off.

    Raises
    ------
    InputError
        Texts without a vocabulary, `CellSentences` with another one, or a wrong number of cell ids or of `n_expressed`.
    VocabularyMismatchError
        The curve has lines for the genes of another vocabulary.

    Examples
    --------
    >>> import cytoglot as cg
    >>> genes = cg.GeneVocabulary(("CD74", "LYZ", "NKG7"))
    >>> cells = cg.decode(["LYZ CD74", "NKG7"], vocabulary=genes)
    >>> cells.X.toarray()
    array([[2., 1., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    import anndata

    reports: list[ParseReport] | None = None
    if isinstance(sentences, CellSentences):
        if vocabulary is not None and vocabulary.fingerprint != sentences.vocabulary.fingerprint:
            raise InputError(
                f"the sentences bring a vocabulary of {len(sentences.vocabulary)} genes; leave out vocabulary=, "
                f"which has {len(vocabulary)} other genes"
            )
        ranked = sentences if cell_ids is None else replace(sentences, cell_ids=np.asarray(cell_ids, dtype=object))
    elif vocabulary is None:
        raise InputError("texts can only be decoded with the genes they speak of; pass vocabulary=")
    else:
        ranked, reports = decode_texts(sentences, vocabulary, repeated=repeated, cell_ids=cell_ids)
    if n_expressed is not None:
        given = np.asarray(n_expressed)
        if given.ndim and given.shape != (len(ranked),):
            raise InputError(f"n_expressed must be one number or one per cell ({len(ranked)}), found {given.shape}")
        ranked = replace(ranked, n_expressed=np.broadcast_to(given, len(ranked)).astype(np.int32))
    ranks = rank_matrix(ranked)
    obs = pd.DataFrame({"n_genes": ranked.lengths}, index=pd.Index(ranked.cell_ids, dtype=object))
    for name in ("n_words", "n_unknown", "n_duplicates", "n_case_fixed", "valid_share") if reports is not None else ():
        obs[name] = [getattr(report, name) for report in reports or ()]
    if reports is not None:
        obs["first_fault"] = [-1 if report.first_fault is None else report.first_fault for report in reports]
    return anndata.AnnData(
        X=ranks.astype(np.float32) if rank_curve is None else expression_from_ranks(ranked, rank_curve),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(ranked.vocabulary.symbols, dtype=object)),
        layers={"rank": ranks},
        uns={"cytoglot": {"decode": {"X": "rank" if rank_curve is None else f"log10(1+CP10k) by {rank_curve.kind}"}}},
    )


def decode_texts(
    texts: Sequence[str],
    vocabulary: GeneVocabulary,
    *,
    repeated: Repeated = "mean",
    cell_ids: Sequence[str] | None = None,
) -> tuple[CellSentences, list[ParseReport]]:
    """Return the genes that each text names as sentences, with a report per text; never raises on a text's content.

    A text without a known gene gives an empty sentence. `n_expressed` is the number of genes named. Cells without ids
    are called "0", "1", ...

    Raises
    ------
    InputError
        One str was passed in place of several, or the number of cell ids is wrong.
    """
    parsed = parse_many(texts, vocabulary, repeated=repeated)
    names = [str(i) for i in range(len(parsed))] if cell_ids is None else [str(name) for name in cell_ids]
    if len(names) != len(parsed):
        raise InputError(f"expected one cell id per text, found {len(names)} ids for {len(parsed)} texts")
    lengths = np.array([len(p.gene_ids) for p in parsed], dtype=np.int64)
    ids: NDArray[Any] = np.concatenate([p.gene_ids for p in parsed]) if parsed else np.zeros(0, dtype=np.int32)
    sentences = CellSentences(
        cell_ids=np.array(names, dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        gene_ids=ids.astype(np.uint16) if len(vocabulary) <= 1 << 16 else ids.astype(np.uint32),
        n_expressed=lengths.astype(np.int32),
        vocabulary=vocabulary,
        settings=RankSettings(),
    )
    return sentences, [p.report for p in parsed]


def expression_from_ranks(sentences: CellSentences, rank_curve: RankCurve) -> csr_matrix:
    """Return log10(1 + counts per 10,000), CSR float32 (n, g), from the ranks alone.

    Raises
    ------
    VocabularyMismatchError
        The curve has lines for the genes of another vocabulary.
    """
    return _matrix(sentences, predict_words(rank_curve, sentences))


def rank_matrix(sentences: CellSentences) -> csr_matrix:
    """Return 1-based ranks, CSR int32 (n, g); genes that a sentence does not name are 0."""
    return _matrix(sentences, sentences.ranks())


def _matrix(sentences: CellSentences, values: NDArray[Any]) -> csr_matrix:
    matrix = csr_matrix(
        (values, sentences.gene_ids.astype(np.int32), sentences.offsets),
        shape=(len(sentences), len(sentences.vocabulary)),
    )
    matrix.sort_indices()
    return matrix
