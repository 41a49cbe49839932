from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.decode import decode, decode_texts, expression_from_ranks, rank_matrix
from cytoglot.sentence.rank_curve import GeneLines, PolynomialCurve

GENES = GeneVocabulary(symbols=("A", "B", "C", "D", "E"))


def line(a: float = 3.0, b: float = -1.0, floor: float = 0.1) -> PolynomialCurve:
    return PolynomialCurve(
        kind="line", coefficients=(a, b), floor=floor, max_rank=10_000, length_range=(1, 10_000), n_pairs=1
    )


def make_sentences(ids: list[list[int]], vocabulary: GeneVocabulary = GENES) -> CellSentences:
    lengths = [len(i) for i in ids]
    return CellSentences(
        cell_ids=np.array([f"cell{i}" for i in range(len(ids))], dtype=object),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        gene_ids=np.array([gene for genes in ids for gene in genes], dtype=np.uint16),
        n_expressed=np.array(lengths, dtype=np.int32),
        vocabulary=vocabulary,
        settings=RankSettings(),
    )


def test_expression_worked_out_by_hand():
    # y = 3 - log10(rank): rank 1 -> 3, rank 2 -> 2.69897, rank 3 -> 2.52288
    matrix = expression_from_ranks(make_sentences([[2, 0, 4], [], [1]]), line())
    assert isinstance(matrix, csr_matrix)
    assert matrix.dtype == np.float32
    expected = [[2.69897, 0, 3, 0, 2.52288], [0, 0, 0, 0, 0], [0, 3, 0, 0, 0]]
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-5)
    assert matrix.has_canonical_format
    assert rank_matrix(make_sentences([[2, 0, 4]])).toarray().tolist() == [[2, 0, 1, 0, 3]]


def test_texts_become_cells_with_a_report():
    adata = decode(["C A E.", "", "A A A B nope", "b B"], vocabulary=GENES, rank_curve=line())
    assert adata.var_names.tolist() == list("ABCDE")
    assert adata.obs_names.tolist() == ["0", "1", "2", "3"]
    assert adata.layers["rank"].toarray().tolist() == [
        [2, 0, 1, 0, 3],
        [0, 0, 0, 0, 0],
        [1, 2, 0, 0, 0],
        [0, 1, 0, 0, 0],
    ]
    assert adata.layers["rank"].dtype == np.int32
    assert adata.X.dtype == np.float32
    np.testing.assert_allclose(adata.X[2].toarray(), [[3, 2.69897, 0, 0, 0]], atol=1e-5)
    assert adata.obs["n_genes"].tolist() == [3, 0, 2, 1]
    assert adata.obs["n_words"].tolist() == [3, 0, 5, 2]
    assert adata.obs["n_unknown"].tolist() == [0, 0, 1, 0]
    assert adata.obs["n_duplicates"].tolist() == [0, 0, 2, 1]
    assert adata.obs["n_case_fixed"].tolist() == [0, 0, 0, 1]
    assert adata.obs["first_fault"].tolist() == [-1, -1, 1, 1]
    assert adata.obs["valid_share"].iloc[2] == pytest.approx(0.8)
    assert math.isnan(adata.obs["valid_share"].iloc[1])
    assert adata.uns["cytoglot"]["decode"]["X"] == "log10(1+CP10k) by line"


def test_without_a_curve_x_holds_the_ranks():
    adata = decode(make_sentences([[2, 0]]))
    assert adata.X.toarray().tolist() == [[2, 0, 1, 0, 0]]
    assert adata.obs_names.tolist() == ["cell0"]
    assert adata.uns["cytoglot"]["decode"]["X"] == "rank"


def test_unknown_words_shift_no_rank():
    # 4.4 of the peer: there C would come back at rank 4.
    clean, dirty = (decode([text], vocabulary=GENES, rank_curve=line()) for text in ("A B C", "x A y B z C."))
    assert (clean.X != dirty.X).nnz == 0


def test_a_repeated_gene_does_not_keep_its_last_position():
    adata = decode(["A B C A"], vocabulary=GENES)  # mean position 1.5: after B, before C
    assert adata.X.toarray().tolist() == [[2, 1, 3, 0, 0]]


def test_late_ranks_are_never_negative():
    # 4.4 of the peer: below zero from rank 2,050 on.
    genes = GeneVocabulary(symbols=tuple(f"G{i}" for i in range(5000)))
    curve = line(2.2379, -0.6757, floor=0.05)
    matrix = expression_from_ranks(make_sentences([list(range(5000))], genes), curve)
    assert 2.2379 - 0.6757 * np.log10(5000) < 0
    assert matrix.data.min() == pytest.approx(0.05)
    assert matrix.nnz == 5000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.permutations(range(5)).flatmap(lambda p: st.integers(0, 5).map(lambda n: list(p)[:n])), max_size=6))
def test_ranking_the_decoded_expression_gives_the_sentence_again(ids):
    sentences = make_sentences(ids)
    decoded = expression_from_ranks(sentences, line()).toarray()
    for row, genes in zip(decoded, ids, strict=True):
        assert np.argsort(-row, kind="stable")[: np.count_nonzero(row)].tolist() == genes
    texts = [" ".join(words) for words in sentences]
    again, reports = decode_texts(texts, GENES)
    assert again.gene_ids.tolist() == sentences.gene_ids.tolist()
    assert again.offsets.tolist() == sentences.offsets.tolist()
    assert all(report.first_fault is None for report in reports)


def test_n_expressed_can_be_given_for_sentences_that_were_cut_off():
    curve = PolynomialCurve(
        kind="line_length",
        coefficients=(1.0, 0.0, 1.0, 0.0),  # y = 1 + l
        floor=0.0,
        max_rank=100,
        length_range=(1, 10_000),
        n_pairs=1,
    )
    texts = ["A B", "A B"]
    assert decode(texts, vocabulary=GENES, rank_curve=curve).X[0, 0] == pytest.approx(1 + np.log10(2))
    assert decode(texts, vocabulary=GENES, rank_curve=curve, n_expressed=1000).X[0, 0] == pytest.approx(4)
    each = decode(texts, vocabulary=GENES, rank_curve=curve, n_expressed=[10, 100])
    assert each.X[:, 0].toarray().ravel() == pytest.approx([2, 3])
    with pytest.raises(InputError, match=r"n_expressed must be one number or one per cell \(2\), found \(3,\)"):
        decode(texts, vocabulary=GENES, rank_curve=curve, n_expressed=[1, 2, 3])


def test_cell_ids_are_kept_and_checked():
    assert decode(["A", "B"], vocabulary=GENES, cell_ids=["x", "y"]).obs_names.tolist() == ["x", "y"]
    with pytest.raises(InputError, match="expected one cell id per text, found 1 ids for 2 texts"):
        decode(["A", "B"], vocabulary=GENES, cell_ids=["x"])


def test_no_texts_give_no_cells():
    adata = decode([], vocabulary=GENES, rank_curve=line())
    assert adata.shape == (0, 5)


def test_texts_without_a_vocabulary_are_refused():
    with pytest.raises(InputError, match="texts can only be decoded with the genes they speak of; pass vocabulary="):
        decode(["A B"])


def test_sentences_with_another_vocabulary_are_refused():
    other = GeneVocabulary(symbols=("A", "B"))
    with pytest.raises(InputError, match=r"the sentences bring a vocabulary of 5 genes; leave out vocabulary="):
        decode(make_sentences([[0]]), vocabulary=other)


def test_a_curve_with_lines_for_other_genes_is_refused():
    curve = GeneLines(
        kind="gene_lines",
        base=line(),
        offset_g=np.zeros(5),
        slope_g=np.zeros(5),
        centre=1.0,
        strength=(1, 1),
        floor=0.1,
        max_rank=100,
        vocabulary_fingerprint="0" * 16,
    )
    with pytest.raises(VocabularyMismatchError, match="fitted for the genes of vocabulary 0000000000000000"):
        decode(["A"], vocabulary=GENES, rank_curve=curve)


def test_decoding_full_sentences_takes_no_time_per_gene_of_the_vocabulary():
    # The peer: 2.7 ms per cell of 2,060 genes out of 30,000 to reconstruct, 256 ms to post-process.
    genes = GeneVocabulary(symbols=tuple(f"G{i}" for i in range(30_000)))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"G{i}" for i in rng.permutation(30_000)[:2000]) for _ in range(40)]
    decode(texts[:1], vocabulary=genes, rank_curve=line())
    seconds = []
    for _ in range(3):
        start = time.process_time()
        adata = decode(texts, vocabulary=genes, rank_curve=line())
        seconds.append(time.process_time() - start)
    assert min(seconds) / 40 < 0.02  # 2 to 3 ms on a quiet machine
    assert adata.X.nnz == 40 * 2000
