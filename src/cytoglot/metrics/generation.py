"""How like real ones generated cell sentences are: valid, of the right type, and as varied.

A sentence is a sequence of genes, highest first, as words or as ids; anything that can be compared will do. Overlap
alone rewards the average cell: the mean profile of a type beats real cells in it. So read it beside that profile, real
against real, and the diversity. Axes: n sentences, g genes, d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.stats import kendalltau
from sklearn.neighbors import NearestNeighbors

from cytoglot.metrics.spec import metric

Sentence = Sequence[Hashable] | NDArray[Any]
Sentences = Sequence[Sentence]


@metric(
    "gene_overlap",
    inputs="sentence_pair",
    direction="higher",
    reference="C2S: |generated ∩ reference| / |reference| on sets; longer sentences can only raise it",
)
def gene_overlap(generated: Sentence, reference: Sentence) -> float:
    """Return the share of the reference's genes that were generated, order and repeats ignored; NaN if it has none.

    Of an answer that was told the reference's number of genes it is the overlap at an oracle's length.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.gene_overlap(["LYZ", "CD74"], ["LYZ", "CD74", "AIF1", "FTL"])
    0.5
    """
    wanted = set(reference)
    return len(wanted & set(generated)) / len(wanted) if wanted else math.nan


@metric(
    "gene_precision",
    inputs="sentence_pair",
    direction="higher",
    reference="|generated ∩ reference| / |generated| on sets",
)
def gene_precision(generated: Sentence, reference: Sentence) -> float:
    """Return the share of the distinct generated genes that the reference holds; NaN if nothing was generated.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.gene_precision(["LYZ", "CD74", "NKG7", "GNLY"], ["LYZ"])
    0.25
    """
    return gene_overlap(reference, generated)


@metric(
    "gene_jaccard",
    inputs="sentence_pair",
    direction="higher",
    reference="|generated ∩ reference| / |generated ∪ reference| on sets",
)
def gene_jaccard(generated: Sentence, reference: Sentence) -> float:
    """Return the Jaccard index of the two sets of genes; NaN if both are empty.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.gene_jaccard(["LYZ", "CD74"], ["LYZ", "CD74", "AIF1", "FTL"])
    0.5
    """
    first, second = set(generated), set(reference)
    union = first | second
    return len(first & second) / len(union) if union else math.nan


@metric(
    "kendall_tau_b",
    inputs="sentence_pair",
    direction="higher",
    low=-1.0,
    reference="C2S on L1000, as τ-b: genes absent from a sentence share its last rank",
)
def kendall_tau(
    generated: Sentence, reference: Sentence, vocabulary: Collection[Hashable], *, variant: Literal["a", "b"] = "b"
) -> float:
    """Return Kendall's τ of the ranks of all genes of the vocabulary in two sentences.

    Genes absent from a sentence share the rank after its last gene; words outside the vocabulary take no rank; a
    repeated gene has the rank of its first occurrence. The paper prints the formula of τ-a, yet says that ties are
    handled, so τ-b is the default. Only genes of the two sentences are sorted: pass the vocabulary as a set for speed.

    Returns
    -------
    float
        NaN where τ is undefined, such as the τ-b of a sentence without genes.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.kendall_tau(["LYZ", "CD74", "FTL"], ["FTL", "CD74", "LYZ"], {"LYZ", "CD74", "FTL"})
    -1.0
    """
    known = vocabulary if isinstance(vocabulary, (set, frozenset, dict)) else frozenset(vocabulary)
    first, second = ([g for g in dict.fromkeys(sentence) if g in known] for sentence in (generated, reference))
    untied = [math.comb(len(known), 2) - math.comb(len(known) - len(present), 2) for present in (first, second)]
    if len(known) < 2 or (variant == "b" and 0 in untied):
        return math.nan
    surplus = _concordance(first, second, n_genes=len(known))
    return surplus / (math.sqrt(math.prod(untied)) if variant == "b" else math.comb(len(known), 2))


@metric(
    "validity",
    inputs="sentence",
    direction="higher",
    reference="share of the written words that are genes of the vocabulary, repeats counted",
)
def validity(words: Sentence, vocabulary: Collection[Hashable]) -> float:
    """Return the share of words that are genes; NaN if there are no words. Pass the vocabulary as a set for speed.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.validity(["LYZ", "the", "CD74", "cell"], {"LYZ", "CD74", "FTL"})
    0.5
    """
    return sum(word in vocabulary for word in words) / len(words) if len(words) else math.nan


@metric(
    "duplicate_share",
    inputs="sentence",
    direction="lower",
    reference="share of the written words that repeat an earlier one",
)
def duplicate_share(words: Sentence) -> float:
    """Return the share of words that had been written before; NaN if there are no words.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.duplicate_share(["LYZ", "LYZ", "CD74", "FTL"])
    0.25
    """
    return 1 - len(set(words)) / len(words) if len(words) else math.nan


@metric(
    "pairwise_overlap",
    inputs="sentences",
    direction="lower",
    reference="mean over pairs of 2·|A ∩ B| / (|A| + |B|): the gene overlap, for equal lengths",
)
def pairwise_overlap(sentences: Sentences) -> float:
    """Return how alike the sentences of a set are: the mean of 2·|A ∩ B| / (|A| + |B|) over its pairs.

    High is not bad by itself: the target is the value of as many real cells of the type.

    Returns
    -------
    float
        NaN with fewer than two non-empty sentences; empty ones are left out.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.pairwise_overlap([["LYZ", "CD74"], ["LYZ", "FTL"]])
    0.5
    """
    filled = [sentence for sentence in sentences if len(sentence)]
    if len(filled) < 2:
        return math.nan
    overlap_nn = _dice(filled, filled)
    return float((overlap_nn.sum() - np.trace(overlap_nn)) / (len(filled) * (len(filled) - 1)))


@metric(
    "pairwise_diversity",
    inputs="sentences",
    direction="higher",
    reference="1 − pairwise_overlap; compare with real cells of the type, more is not better without end",
)
def pairwise_diversity(sentences: Sentences) -> float:
    """Return one minus the mean overlap of the pairs of a set; 0 if all are the same genes; NaN as there.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.pairwise_diversity([["LYZ", "CD74"], ["LYZ", "CD74"]])
    0.0
    """
    return 1 - pairwise_overlap(sentences)


@metric(
    "mean_overlap",
    inputs="sentences",
    direction="higher",
    reference="mean over all pairs (generated, real) of 2·|A ∩ B| / (|A| + |B|)",
)
def mean_overlap(generated: Sentences, real: Sentences) -> float:
    """Return the mean overlap of generated with real sentences, over all pairs; NaN if either set has none.

    It has the scale of `pairwise_overlap`, so real against real is its ceiling for a sampler. Where generated sentences
    are given the lengths of real ones, as in the evaluation, it is the overlap at an oracle's length.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.mean_overlap([["LYZ", "CD74"]], [["LYZ", "FTL"], ["LYZ", "CD74"]])
    0.75
    """
    generated, real = [s for s in generated if len(s)], [s for s in real if len(s)]
    return float(_dice(generated, real).mean()) if generated and real else math.nan


def nearest_labels(
    reference_nd: ArrayLike,
    labels: ArrayLike,
    query_nd: ArrayLike,
    *,
    k: int = 15,
    identities: tuple[ArrayLike, ArrayLike] | None = None,
) -> NDArray[Any]:
    """Return for each query the label of most of its `k` nearest references; of equally many, the nearest one's.

    Euclidean distance. `k` is cut to the number of references.

    Parameters
    ----------
    identities
        What each reference and what each query is, such as hashes of the content of cells. A reference that is the
        query is not among its neighbors: it would be there at distance 0, with the right label. None where queries
        are no references. A query that all references equal has the label None.

    Raises
    ------
    ValueError
        There are no references, or the numbers of vectors, labels and identities differ.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.nearest_labels([[0.0], [1.0], [9.0]], ["B", "B", "T"], [[8.0]], k=1).tolist()
    ['T']
    """
    reference, labels_n = np.asarray(reference_nd, dtype=np.float64), np.asarray(labels, dtype=object)
    if not len(reference) or len(reference) != len(labels_n):
        raise ValueError(f"need references with one label each, found {len(reference)} and {len(labels_n)} labels")
    query = np.asarray(query_nd, dtype=np.float64)
    kinds_n, kinds_q = np.arange(len(reference)), np.full(len(query), -1)  # no reference is a query
    if identities is not None:
        reference_identities, query_identities = (np.asarray(each) for each in identities)
        if (len(reference_identities), len(query_identities)) != (len(reference), len(query)):
            found = f"{len(reference_identities)} for {len(reference)} and {len(query_identities)} for {len(query)}"
            raise ValueError(f"need one identity for each reference and each query, found {found}")
        kinds_n, kinds = pd.factorize(reference_identities)
        kinds_q = pd.Index(kinds).get_indexer(pd.Index(query_identities))
    copies_of_kind = np.bincount(kinds_n)
    n_copies = int(copies_of_kind[kinds_q[kinds_q >= 0]].max(initial=0))
    neighbors = NearestNeighbors(n_neighbors=min(k + n_copies, len(reference))).fit(reference)
    nearest = neighbors.kneighbors(query, return_distance=False)
    is_itself = kinds_n[nearest] == kinds_q[:, None]
    others_first = np.argsort(is_itself, axis=1, kind="stable")[:, :k]  # still from the nearest on
    nearest, is_itself = (np.take_along_axis(each, others_first, axis=1) for each in (nearest, is_itself))
    codes, names = pd.factorize(labels_n)
    code_nk = np.where(is_itself, -1, codes[nearest])
    votes_nl = (code_nk[:, :, None] == np.arange(len(names))).sum(axis=1)
    votes_of_neighbor_nk = np.where(is_itself, -1, np.take_along_axis(votes_nl, code_nk, axis=1))
    winner = votes_of_neighbor_nk.argmax(axis=1)  # neighbors are sorted: the first of the best is the nearest
    return np.array([*names, None], dtype=object)[code_nk[np.arange(len(code_nk)), winner]]


@metric(
    "knn_type_agreement",
    inputs="vectors",
    direction="higher",
    reference="C2S: share of generated cells whose nearest real cells are mostly of the wanted type",
)
def knn_type_agreement(
    real_nd: ArrayLike,
    real_types: ArrayLike,
    generated_nd: ArrayLike,
    wanted_types: ArrayLike,
    *,
    k: int = 15,
    identities: tuple[ArrayLike, ArrayLike] | None = None,
) -> float:
    """Return the share of generated cells whose `k` nearest real cells are mostly of the type that was asked for.

    Its ceiling is real cells in the place of the generated ones: held-out cells, or the reference cells themselves
    with `identities`, without which each would find itself (see `nearest_labels`). NaN without generated cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.knn_type_agreement([[0.0], [9.0]], ["B", "T"], [[1.0], [2.0]], ["B", "T"], k=1)
    0.5
    """
    wanted = np.asarray(wanted_types, dtype=object)
    if not len(wanted):
        return math.nan
    return float((nearest_labels(real_nd, real_types, generated_nd, k=k, identities=identities) == wanted).mean())


def _concordance(first: list[Hashable], second: list[Hashable], *, n_genes: int) -> int:
    """Return the number of concordant less that of discordant pairs of genes, with shared last ranks.

    A gene of both sentences stands above every gene of neither in both of them, so those pairs need no sorting; a gene
    of one sentence is tied with those of neither in the other.
    """
    union = list(dict.fromkeys([*first, *second]))
    n_both = len(first) + len(second) - len(union)
    surplus = n_both * (n_genes - len(union))
    untied = [math.comb(len(union), 2) - math.comb(len(union) - len(present), 2) for present in (first, second)]
    if 0 in untied:
        return surplus
    ranks = [_shared_last_ranks(present, union) for present in (first, second)]
    return surplus + round(float(kendalltau(*ranks, variant="b").statistic) * math.sqrt(math.prod(untied)))


def _shared_last_ranks(sentence: Sentence, genes: Sequence[Hashable]) -> NDArray[np.int64]:
    known = set(genes)
    present = [gene for gene in dict.fromkeys(sentence) if gene in known]
    rank = {gene: i for i, gene in enumerate(present, start=1)}
    return np.array([rank.get(gene, len(present) + 1) for gene in genes], dtype=np.int64)


def _dice(first: Sentences, second: Sentences) -> NDArray[np.float64]:
    """Return 2·|A ∩ B| / (|A| + |B|) for all pairs; no sentence may be empty."""
    index: dict[Hashable, int] = {}
    first_ng, second_ng = ([sorted({index.setdefault(g, len(index)) for g in s}) for s in ss] for ss in (first, second))
    a, b = _presence(first_ng, len(index)), _presence(second_ng, len(index))
    sizes = np.asarray(a.sum(axis=1)) + np.asarray(b.sum(axis=1)).T
    return np.asarray(2 * (a @ b.T).toarray() / sizes)


def _presence(ids: list[list[int]], n_genes: int) -> csr_matrix:
    indptr = np.cumsum([0, *map(len, ids)])
    indices = np.concatenate([np.asarray(i, dtype=np.int64) for i in ids])
    return csr_matrix((np.ones(len(indices)), indices, indptr), shape=(len(ids), n_genes))
