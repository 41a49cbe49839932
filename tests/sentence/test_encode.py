"""Cells → sentences, against a plain reference and against each silent fault of the original implementation."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError
from cytoglot.hashing import hash_texts, mixed
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, TieRule
from cytoglot.sentence.encode import encode, encode_matrix
from cytoglot.sentence.ranker import detection_rates

TIES: tuple[TieRule, ...] = get_args(TieRule)
DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
    ">f4",
    ">i8",
]


def vocabulary(n_genes: int) -> GeneVocabulary:
    return GeneVocabulary(tuple(f"GENE{gene}" for gene in range(n_genes)))


def some_counts(n_cells: int = 40, n_genes: int = 300, *, seed: int = 0, most: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts_ng = np.minimum(rng.poisson(rng.gamma(0.3, 2.0, (n_cells, n_genes))), most)
    counts_ng[0] = 0
    counts_ng[1, 1:] = 0
    return counts_ng


def rank(matrix: Any, ties: TieRule = "order", top_genes: int | None = None, **options: Any) -> CellSentences:
    genes = options.pop("vocabulary", None) or vocabulary(matrix.shape[1])
    rates = options.pop("tie_rates", np.random.default_rng(1).random(matrix.shape[1]).round(1))
    seed = options.pop("seed", 0)
    return encode_matrix(
        matrix, genes, settings=RankSettings(top_genes=top_genes, ties=ties, seed=seed), tie_rates=rates, **options
    )


def plain_reference(
    values_ng: np.ndarray, ties: TieRule, top_genes: int | None, rates_g: np.ndarray, seed: int = 0
) -> list[list[int]]:
    """The definition, written with np.lexsort: value falling, then the tie rule, then vocabulary order."""
    genes = vocabulary(values_ng.shape[1])
    symbols = np.array(genes.symbols)
    gene_hash = hashes(symbols, 0)
    sentences = []
    for cell, values_g in enumerate(values_ng):
        expressed = np.flatnonzero(values_g)
        values = values_g[expressed]
        _, steps = np.unique(values, return_inverse=True)
        falling = -steps
        if ties == "order":
            keys: list[Any] = [expressed]
        elif ties == "symbol":
            keys = [gene_hash[expressed]]
        elif ties == "random":
            cell_hash = hashes(np.array([str(cell)]), seed)[0]
            keys = [expressed, [int(mixed(cell_hash ^ gene_hash[gene])) >> 32 for gene in expressed]]
        else:
            rates = np.asarray(rates_g, np.float32)[expressed]
            keys = [symbols[expressed], rates if ties == "rare_first" else -rates]
        sentences.append(expressed[np.lexsort((*keys, falling))][:top_genes].tolist())
    return sentences


def hashes(texts: np.ndarray, seed: int) -> np.ndarray:
    encoded = [str(text).encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)])
    return hash_texts(offsets, np.frombuffer(bytearray(b"".join(encoded)), np.uint8), np.uint64(seed))


def as_lists(sentences: CellSentences) -> list[list[int]]:
    return [sentences.ids(cell).tolist() for cell in range(len(sentences))]


# Truth


def test_a_cell_worked_out_by_hand() -> None:
    genes = GeneVocabulary(("ACTB", "CD3E", "GAPDH", "MS4A1", "NKG7"))
    counts_ng = np.array([[3, 1, 7, 0, 1], [0, 0, 0, 0, 0], [0, 2, 0, 2, 2]])
    rates_g = np.array([0.9, 0.2, 0.8, 0.1, 0.3])

    def words(ties: TieRule, top_genes: int | None = None) -> list[list[str]]:
        return list(rank(counts_ng, ties, top_genes, vocabulary=genes, tie_rates=rates_g))

    assert RankSettings().ties == "symbol"
    assert words("symbol") == [["GAPDH", "ACTB", "NKG7", "CD3E"], [], ["NKG7", "MS4A1", "CD3E"]]
    assert words("order") == [["GAPDH", "ACTB", "CD3E", "NKG7"], [], ["CD3E", "MS4A1", "NKG7"]]
    assert words("rare_first") == [["GAPDH", "ACTB", "CD3E", "NKG7"], [], ["MS4A1", "CD3E", "NKG7"]]
    assert words("common_first") == [["GAPDH", "ACTB", "NKG7", "CD3E"], [], ["NKG7", "CD3E", "MS4A1"]]
    assert words("common_first", 3) == [["GAPDH", "ACTB", "NKG7"], [], ["NKG7", "CD3E", "MS4A1"]]
    sentences = rank(counts_ng, vocabulary=genes, top_genes=2)
    assert sentences.n_expressed.tolist() == [4, 0, 3]
    assert sentences.lengths.tolist() == [2, 0, 2]
    assert sentences.n_empty == 1


def test_the_hash_of_a_symbol_never_changes() -> None:
    """Stored models and corpora rest on it: FNV-1a over UTF-8, mixed as in SplitMix64, the smallest first."""

    def plain(text: str) -> int:
        value = 0xCBF29CE484222325
        for byte in text.encode():
            value = (value ^ byte) * 0x100000001B3 % 2**64
        return mix(value ^ mix(0x9E3779B97F4A7C15))

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    symbols = ["ACTB", "CD3E", "GAPDH", "MS4A1", "NKG7", "HLA-DRA", "Actb", "Ünïcode", "ENSG00000141510"]
    assert plain("ACTB") == 10700850873391094515
    (words,) = rank(np.ones((1, len(symbols))), "symbol", vocabulary=GeneVocabulary(tuple(symbols)))
    assert words == sorted(symbols, key=plain)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_genes", [1, 20, 1000, None])
def test_equals_the_plain_reference(ties: TieRule, dtype: str, top_genes: int | None) -> None:
    values_ng = some_counts().astype(dtype)
    rates_g = np.random.default_rng(1).random(values_ng.shape[1]).round(1)
    matrix = (
        values_ng if dtype in ("float16", ">f4", ">i8") else sp.csr_matrix(values_ng)
    )  # no scipy matrix holds those
    found = rank(matrix, ties, top_genes, tie_rates=rates_g)
    assert as_lists(found) == plain_reference(values_ng, ties, top_genes, rates_g)


@pytest.mark.parametrize("ties", TIES)
def test_long_sentences_and_a_vocabulary_beyond_uint16_equal_the_plain_reference(ties: TieRule) -> None:
    rng = np.random.default_rng(3)
    values_ng = np.zeros((3, 70_000), np.float32)
    for cell in range(3):
        values_ng[cell, rng.choice(70_000, 5000, replace=False)] = rng.poisson(1.0, 5000)
    rates_g = rng.random(70_000).astype(np.float32)
    found = rank(sp.csr_matrix(values_ng), ties, tie_rates=rates_g)
    assert found.gene_ids.dtype == np.uint32
    assert as_lists(found) == plain_reference(values_ng, ties, None, rates_g)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2**40, 2**40 + 1, 3, 2**62, 2**63 - 1],
        np.array([1, 2**63, 2**64 - 1, 2**64 - 2, 5], np.uint64),
        np.array([1, 2**32 - 1, 2**31, 7], np.uint32),
        [5000, 4999, 1, 1, 70_000, 70_001],
        [1e-300, 2e-300, 5e-324, 1.0, 1.7e308],
        [1.0, 1.0 + 2**-50, 1.0 - 2**-52, 1.0 + 2**-51],
        np.array([1e-45, 3e-39, 3.4e38, 1.0, 1.0000001], np.float32),
        np.array([6e-8, 1.0, 65504.0, 1.001], np.float16),
        [0.1, 0.1, 0.1],
    ],
    ids=["int64", "uint64", "uint32", "large counts", "tiny", "beyond float32", "float32", "float16", "one value"],
)
@pytest.mark.parametrize("top_genes", [1, 2, 3, None])
def test_extreme_values_rank_right(values: Any, top_genes: int | None) -> None:
    values_ng = np.array([values])
    found = rank(values_ng, top_genes=top_genes)
    assert as_lists(found) == plain_reference(values_ng, "order", top_genes, np.zeros(values_ng.shape[1]))


# Properties


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    n_cells, n_genes = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    most = draw(st.sampled_from([1, 3, 300, 10_000]))
    flat = draw(st.lists(st.integers(0, most), min_size=n_cells * n_genes, max_size=n_cells * n_genes))
    return np.array(flat, np.int32).reshape(n_cells, n_genes)


@settings(deadline=None, max_examples=60)
@given(counts_ng=matrices(), ties=st.sampled_from(TIES), top_genes=st.one_of(st.none(), st.integers(1, 45)))
def test_any_matrix_equals_the_plain_reference(counts_ng: np.ndarray, ties: TieRule, top_genes: int | None) -> None:
    rates_g = np.random.default_rng(2).random(counts_ng.shape[1]).round(1)
    expected = plain_reference(counts_ng, ties, top_genes, rates_g)
    assert as_lists(rank(counts_ng, ties, top_genes, tie_rates=rates_g)) == expected


@settings(deadline=None, max_examples=40)
@given(counts_ng=matrices(), ties=st.sampled_from(TIES), factor=st.floats(0.01, 1e4))
def test_scaling_or_taking_the_log_of_a_cell_keeps_its_sentence(
    counts_ng: np.ndarray, ties: TieRule, factor: float
) -> None:
    expected = as_lists(rank(counts_ng, ties, 10))
    assert as_lists(rank(counts_ng * factor, ties, 10)) == expected
    assert as_lists(rank(np.log1p(counts_ng * factor), ties, 10)) == expected
    assert as_lists(rank(np.log1p(counts_ng * 7.5).astype(np.float32), ties, 10)) == expected


@settings(deadline=None, max_examples=40)
@given(counts_ng=matrices(), ties=st.sampled_from(TIES), data=st.data())
def test_the_order_of_rows_and_a_subset_of_them_change_no_sentence(
    counts_ng: np.ndarray, ties: TieRule, data: st.DataObject
) -> None:
    names = np.array([f"cell {cell}" for cell in range(len(counts_ng))], dtype=object)
    whole = rank(counts_ng, ties, 7, cell_ids=names)
    picked = np.array(data.draw(st.lists(st.integers(0, len(names) - 1), unique=True)), dtype=int)
    part = rank(counts_ng[picked], ties, 7, cell_ids=names[picked])
    assert as_lists(part) == as_lists(whole[picked])


@settings(deadline=None, max_examples=40)
@given(counts_ng=matrices(), ties=st.sampled_from([rule for rule in TIES if rule != "order"]), data=st.data())
def test_the_order_of_the_genes_in_the_file_changes_nothing(
    counts_ng: np.ndarray, ties: TieRule, data: st.DataObject
) -> None:
    genes = vocabulary(counts_ng.shape[1])
    rates_g = np.random.default_rng(2).integers(0, 3, len(genes)) / 2  # many equal ones
    order = np.array(data.draw(st.permutations(range(len(genes)))), dtype=int)
    moved = GeneVocabulary(tuple(genes.names[order]))
    expected = list(rank(counts_ng, ties, 9, vocabulary=genes, tie_rates=rates_g))
    assert list(rank(counts_ng[:, order], ties, 9, vocabulary=moved, tie_rates=rates_g[order])) == expected


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("top_genes", [15, None])
def test_unsorted_and_repeated_columns_and_stored_zeros_change_nothing(ties: TieRule, top_genes: int | None) -> None:
    counts_ng = some_counts(n_cells=30).astype(np.float32)
    expected = as_lists(rank(counts_ng, ties, top_genes))
    rng = np.random.default_rng(5)
    unsorted, repeated = sp.csr_matrix(counts_ng), sp.csr_matrix(counts_ng)
    for row in range(30):
        stored = slice(unsorted.indptr[row], unsorted.indptr[row + 1])
        order = rng.permutation(stored.stop - stored.start)
        unsorted.indices[stored], unsorted.data[stored] = unsorted.indices[stored][order], unsorted.data[stored][order]
    zeros = sp.csr_matrix(np.where(counts_ng == 0, 1, 2).astype(np.float32))
    zeros.data = counts_ng.ravel().copy()  # all are stored now
    halves = sp.csr_matrix(
        (np.repeat(repeated.data / 2, 2), np.repeat(repeated.indices, 2), repeated.indptr * 2), shape=repeated.shape
    )
    minus = zeros.copy()
    minus.data[minus.data == 0] = -0.0
    for name, matrix in {"unsorted": unsorted, "zeros": zeros, "twice": halves, "minus zero": minus}.items():
        before = [matrix.data.copy(), matrix.indices.copy(), matrix.indptr.copy()]
        assert as_lists(rank(matrix, ties, top_genes)) == expected, name
        for kept, now in zip(before, (matrix.data, matrix.indices, matrix.indptr), strict=True):
            np.testing.assert_array_equal(kept, now, err_msg=name)


@pytest.mark.parametrize("kind", ["csc", "csc unsorted", "coo", "csr_array", "dense", "dask", "dask sparse", "int64"])
def test_every_kind_of_matrix_gives_the_same_sentences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BLOCK_VALUES": 1000, "_FEW_CELLS": 1, "_DENSE_BLOCK": 2000}.items():
        monkeypatch.setattr(f"cytoglot.data.readers.cell_rows.{name}", value)
    monkeypatch.setattr("cytoglot.sentence.threads.TASK_VALUES", 300)
    counts_ng = some_counts(n_cells=50)
    assert as_lists(rank(in_form(counts_ng, kind), "rare_first", 30)) == plain_reference(
        counts_ng, "rare_first", 30, np.random.default_rng(1).random(300).round(1)
    )


def in_form(counts_ng: np.ndarray, kind: str) -> Any:
    if kind.startswith("dask"):
        dask_array = pytest.importorskip("dask.array")
        array = dask_array.from_array(counts_ng, chunks=(7, 90))
        return array if kind == "dask" else array.rechunk((7, -1)).map_blocks(sp.csr_matrix)
    if kind == "csc unsorted":
        matrix = sp.csc_matrix(counts_ng[::-1])
        return sp.csc_matrix((matrix.data, len(counts_ng) - 1 - matrix.indices, matrix.indptr), shape=matrix.shape)
    if kind == "int64":
        matrix = sp.csr_matrix(counts_ng)
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
        return matrix
    forms = {"csc": sp.csc_matrix, "coo": sp.coo_matrix, "csr_array": sp.csr_array, "dense": np.asarray}
    return forms[kind](counts_ng)


def test_read_only_memory_is_read() -> None:
    matrix = sp.csr_matrix(some_counts().astype(np.float32))
    expected = as_lists(rank(matrix))
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    assert as_lists(rank(matrix)) == expected


def test_no_cell_and_no_value() -> None:
    assert len(rank(np.zeros((0, 5)))) == 0
    assert list(rank(sp.csr_matrix((3, 5)))) == [[], [], []]


# Faults of the original implementation (cell2sentence 1.2.0)


def test_a_seed_changes_random_ties_and_leaves_numpys_global_state_alone() -> None:
    counts_ng = some_counts()
    np.random.seed(7)  # noqa: NPY002 - the state under test
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = rank(counts_ng, "random", seed=1), rank(counts_ng, "random", seed=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert as_lists(first) == as_lists(rank(counts_ng, "random", seed=1))
    assert as_lists(first) != as_lists(second)
    assert [sorted(a) for a in as_lists(first)] == [sorted(b) for b in as_lists(second)]


def test_random_ties_are_unbiased() -> None:
    firsts = np.array([ids[0] for ids in as_lists(rank(np.ones((4000, 4), np.int8), "random"))])
    assert np.abs(np.bincount(firsts, minlength=4) / 4000 - 0.25).max() < 0.03


def test_duplicated_names_shift_no_column() -> None:
    names = ["GeneA", "GENEA", "GeneB", "GeneB", "GeneD"]
    counts_ng = np.array([[5.0, 4, 3, 2, 0], [0, 0, 1, 1, 1]])
    with pytest.warns(UserWarning, match="not unique"):
        adata = AnnData(counts_ng, obs=pd.DataFrame(index=["x", "y"]), var=pd.DataFrame(index=names))
    assert list(encode(adata, ties="order")) == [["GeneA", "GeneB", "GENEA"], ["GeneB", "GeneD"]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_cannot_be_ranked_are_named(bad: float, form: Any, dtype: Any) -> None:
    values_ng = some_counts().astype(dtype)
    values_ng[17, 123] = bad
    names = [f"cell-{cell}" for cell in range(len(values_ng))]
    with pytest.raises(InputError, match=rf"found {bad} in cell 'cell-17', gene 'GENE123'; pass counts"):
        rank(form(values_ng), cell_ids=names)
    with pytest.raises(InputError, match=rf"found {bad} in cell '17', gene '123'"):
        detection_rates(form(values_ng))


def test_negative_integers_are_named() -> None:
    counts_ng = some_counts().astype(np.int8)
    counts_ng[3, 4] = -1
    with pytest.raises(InputError, match=r"found -1 in cell '3', gene 'GENE4'"):
        rank(counts_ng, "rare_first", 10)


# Rates and choices


def test_detection_rates_by_hand() -> None:
    counts_ng = np.array([[1, 0, 2, -0.0], [0, 0, 5, 0], [3, 0, 1, 0], [0, 0, 1, 0.5]])
    for form in (np.asarray, sp.csr_matrix, sp.csc_matrix):
        np.testing.assert_array_equal(detection_rates(form(counts_ng)), np.float32([0.5, 0, 1, 0.25]))
    twice = sp.csr_matrix((np.ones(3), [1, 1, 0], [0, 3]), shape=(1, 3))
    np.testing.assert_array_equal(detection_rates(twice), np.float32([1, 1, 0]))
    np.testing.assert_array_equal(detection_rates(np.zeros((0, 2))), np.float32([0, 0]))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (None, "need tie_rates, the share of training cells"),
        (np.zeros(3), r"must have shape \(300,\), one rate a gene, found \(3,\)"),
        (np.full(300, 2.0), r"between 0 and 1, found 2.0 for GENE0 and 299 more"),
        (np.full(300, np.nan), r"between 0 and 1, found nan for GENE0"),
        ({"GENE0": 0.5}, r"name 1 genes but lack 299 of the vocabulary's 300, such as 'GENE1'; pass genes="),
    ],
)
def test_rates_that_do_not_fit_are_refused(rates: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank(some_counts(), "rare_first", tie_rates=rates)


def test_settings_check_themselves() -> None:
    with pytest.raises(UnknownNameError, match="unknown tie rule 'rare'; did you mean 'rare_first'"):
        RankSettings(ties="rare")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top_genes must be at least 1, found 0; pass None"):
        RankSettings(top_genes=0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 4)), "one column for each of 5 genes, found 4"),
        (np.ones(5), "two axes, found \\(5,\\)"),
        ([[1, 2]], "two axes, found list"),
        (np.array([["a"] * 5]), "integers, floats or booleans\\), found values of type <U1"),
        (np.ones((2, 5), complex), "integers, floats or booleans\\), found values of type complex128"),
    ],
)
def test_what_is_no_expression_matrix_is_refused(matrix: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_matrix(matrix, vocabulary(5))


def test_cell_ids_must_fit() -> None:
    with pytest.raises(InputError, match=r"one cell id for each of 2 rows, found \(1,\)"):
        encode_matrix(np.ones((2, 5)), vocabulary(5), cell_ids=["a"])


# AnnData


def cells(counts_ng: Any) -> AnnData:
    n_cells, n_genes = counts_ng.shape
    obs = pd.DataFrame(index=[f"cell_{cell}" for cell in range(n_cells)])
    return AnnData(counts_ng, obs=obs, var=pd.DataFrame(index=list(vocabulary(n_genes).symbols)))


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_encode_takes_an_adata_and_its_layers(form: Any) -> None:
    counts_ng = some_counts().astype(np.float32)
    adata = cells(form(counts_ng))
    adata.layers["doubled"] = form(counts_ng[:, ::-1].copy())
    expected = plain_reference(counts_ng, "symbol", 12, np.zeros(300))
    assert as_lists(encode(adata, top_genes=12)) == expected
    assert encode(adata).cell_ids.tolist() == adata.obs_names.tolist()
    turned = plain_reference(counts_ng[:, ::-1], "symbol", 12, np.zeros(300))
    assert as_lists(encode(adata, top_genes=12, layer="doubled")) == turned


def test_scaled_values_are_refused() -> None:
    adata = cells(np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32))
    with pytest.raises(InputError, match="X"):
        encode(adata)


def test_a_bad_value_outside_the_tested_sample_is_named() -> None:
    counts_ng = sp.random(5000, 40, 0.2, format="csr", random_state=0, dtype=np.float32)
    counts_ng.data = np.ceil(counts_ng.data * 5)
    counts_ng.data[counts_ng.indptr[100] : counts_ng.indptr[100] + 1] = np.nan
    gene = counts_ng.indices[counts_ng.indptr[100]]
    with pytest.raises(InputError, match=rf"found nan in cell 'cell_100', gene 'GENE{gene}'"):
        encode(cells(counts_ng))


@pytest.mark.parametrize("ties", TIES)
def test_a_choice_of_genes_is_their_vocabulary(ties: TieRule) -> None:
    counts_ng = some_counts()
    chosen = ["GENE250", "GENE3", "ABSENT", "GENE77", "GENE8"]
    found = encode(cells(counts_ng), genes=chosen, ties=ties, seed=4)
    assert found.vocabulary.symbols == tuple(chosen)
    columns = np.concatenate([counts_ng, np.zeros((len(counts_ng), 1), int)], axis=1)[:, [250, 3, 300, 77, 8]]
    rates_g = detection_rates(columns)
    expected = encode_matrix(
        columns,
        GeneVocabulary(tuple(chosen)),
        cell_ids=found.cell_ids,
        settings=RankSettings(ties=ties, seed=4),
        tie_rates=rates_g,
    )
    assert list(found) == list(expected)
    assert found.n_expressed.tolist() == expected.n_expressed.tolist()
    if ties in ("rare_first", "common_first"):
        np.testing.assert_array_equal(found.tie_rates, rates_g)


def test_foreign_genes_are_refused() -> None:
    with pytest.raises(VocabularyMismatchError, match=r"none of 2 genes \(Actb, Gapdh, ...\) is among the 300 of"):
        encode(cells(some_counts()), genes=["Actb", "Gapdh"])


def test_rates_of_the_training_cells_serve_a_query() -> None:
    train, query = cells(some_counts(seed=1)), cells(some_counts(seed=2))
    trained = encode(train, ties="rare_first")
    by_name = dict(zip(trained.vocabulary.symbols, trained.tie_rates.tolist(), strict=True))
    found = encode(query, ties="rare_first", tie_rates=by_name)
    np.testing.assert_array_equal(found.tie_rates, trained.tie_rates)
    assert as_lists(found) != as_lists(encode(query, ties="rare_first"))
