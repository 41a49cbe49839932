from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr
from sklearn.isotonic import IsotonicRegression

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError
from cytoglot.sentence import fit_curves
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.curve_score import SparseRanks, evaluate_curve
from cytoglot.sentence.fit_curves import CurveFitter, fit_rank_curve, fit_rank_curves
from cytoglot.sentence.rank_curve import CURVE_KINDS, PolynomialCurve, predict_words, rank_curve_from_dict
from cytoglot.sentence.rank_sums import hash_uniform

USEFUL = [kind for kind in CURVE_KINDS if kind != "peer_line"]


def rank(matrix: csr_matrix) -> CellSentences:
    """Sentences by numpy alone: falling value, then vocabulary order."""
    dense = matrix.toarray()
    ids = [np.argsort(-row, kind="stable")[: np.count_nonzero(row)] for row in dense]
    lengths = np.array([len(i) for i in ids])
    return CellSentences(
        cell_ids=np.array([f"cell{i}" for i in range(len(ids))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        gene_ids=np.concatenate([*ids, np.zeros(0, int)]).astype(np.uint16),
        n_expressed=lengths.astype(np.int32),
        vocabulary=GeneVocabulary(symbols=tuple(f"G{g}" for g in range(dense.shape[1]))),
        settings=RankSettings(),
    )


def log_cp10k(counts: np.ndarray) -> csr_matrix:
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return csr_matrix(np.log10(1 + 1e4 * counts / total).astype(np.float32))


def make_cells(n_cells: int = 200, n_genes: int = 300, seed: int = 0) -> csr_matrix:
    level = np.exp(np.random.default_rng(n_genes).normal(-1, 1.5, n_genes))  # the same genes for every seed
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(0, 0.5, (n_cells, 1)))
    return log_cp10k(rng.poisson(rng.gamma(2, level * depth / 2, (n_cells, n_genes))))


@pytest.fixture(scope="module")
def cells() -> tuple[CellSentences, csr_matrix]:
    matrix = make_cells()
    return rank(matrix), matrix


@pytest.fixture(scope="module")
def other_cells() -> tuple[CellSentences, csr_matrix]:
    matrix = make_cells(seed=1)
    return rank(matrix), matrix


def flat(sentences: CellSentences, matrix: csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.log10(sentences.ranks())
    length = np.log10(np.repeat(sentences.n_expressed, sentences.lengths))
    return x, length, matrix.toarray()[sentences.cells(), sentences.gene_ids].astype(np.float64)


def test_a_line_worked_out_by_hand():
    # Ranks 1, 10 and 100 with expression 3, 2 and 1 lie on y = 3 - log10(rank); the other ranks of one cell follow it.
    ranks = np.arange(1, 101)
    matrix = csr_matrix((3 - np.log10(ranks)).astype(np.float32)[None, :])
    sentences = rank(matrix)
    assert sentences.gene_ids.tolist() == list(range(100))
    curve = fit_rank_curve("line", sentences, matrix)
    assert isinstance(curve, PolynomialCurve)
    assert curve.coefficients == pytest.approx((3.0, -1.0), abs=1e-5)
    predicted = curve.predict([1, 10, 100], np.zeros(3, int), [100, 100, 100])
    assert predicted == pytest.approx([3, 2, 1], abs=1e-5)
    assert predicted.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "design"),
    [
        ("line", lambda x, n: [x**0, x]),
        ("line_length", lambda x, n: [x**0, x, n, x * n]),
        ("cubic_length", lambda x, n: [x**0, x, x**2, x**3, n, x * n]),
    ],
)
def test_polynomials_equal_least_squares_on_all_pairs(cells, kind, design):
    sentences, matrix = cells
    x, length, y = flat(sentences, matrix)
    f = np.stack(design(x, length), axis=1)
    expected = f @ np.linalg.lstsq(f, y, rcond=None)[0]
    curve = fit_rank_curve(kind, sentences, matrix)
    predicted = predict_words(curve, sentences)
    inside = expected > y.min() + 1e-6  # elsewhere the floor holds
    if kind == "cubic_length":  # and this one may be held level where the cubic turns upwards
        inside &= predicted > expected - 1e-3
        assert inside.mean() > 0.9
    assert predicted[inside] == pytest.approx(expected[inside], abs=1e-4)


def test_the_isotonic_curve_equals_scikit_learn_on_all_pairs(cells):
    sentences, matrix = cells
    _, _, y = flat(sentences, matrix)
    reference = IsotonicRegression(increasing=False).fit(sentences.ranks(), y)
    curve = fit_rank_curve("isotonic", sentences, matrix)
    assert predict_words(curve, sentences) == pytest.approx(reference.predict(sentences.ranks()), abs=2e-6)


def test_gene_lines_equal_a_ridge_regression_of_each_gene(cells):
    sentences, matrix = cells
    curve = fit_rank_curve("gene_lines", sentences, matrix)
    x, _, y = flat(sentences, matrix)
    residual = y - predict_words(fit_rank_curve("line", sentences, matrix), sentences)
    centred = x - x.mean()
    assert curve.centre == pytest.approx(x.mean())
    for gene in np.argsort(np.bincount(sentences.gene_ids))[[0, 100, -1]]:
        mine = sentences.gene_ids == gene
        f = np.stack([np.ones(mine.sum()), centred[mine]], axis=1)
        penalty = np.diag([curve.strength[0], curve.strength[1] * x.var()])
        expected = np.linalg.solve(f.T @ f + penalty, f.T @ residual[mine])
        assert [curve.offset_g[gene], curve.slope_g[gene]] == pytest.approx(expected, abs=2e-6)


def test_the_strength_is_the_best_of_the_held_out_training_cells(cells):
    sentences, matrix = cells
    curve = fit_rank_curve("gene_lines", sentences, matrix)
    second = hash_uniform(sentences.cell_ids, 0)[sentences.cells()] >= 0.8
    assert 0 < second.sum() < (~second).sum()
    x, _, y = flat(sentences, matrix)
    residual, centred, gene = y - predict_words(curve.base, sentences), x - x.mean(), sentences.gene_ids

    def error(strength: tuple[float, float]) -> float:
        left = residual[second].copy()
        for g in np.unique(gene):
            f = np.stack([np.ones(len(x)), centred], axis=1)[(gene == g) & ~second]
            products = f.T @ f + np.diag([strength[0], strength[1] * x.var()])
            offset, slope = np.linalg.solve(products, f.T @ residual[(gene == g) & ~second])
            mine = gene[second] == g
            left[mine] -= offset + slope * centred[second][mine]
        return float((left**2).sum())

    tried = [error((a, b)) for a in (0.3, 3.0, 30.0, 1000.0) for b in (0.3, 3.0, 30.0, 1000.0)]
    assert error(curve.strength) <= min(tried) + 1e-6


def test_a_gene_never_seen_follows_the_line_of_all_genes():
    dense = make_cells().toarray()
    dense[:, 7] = 0
    matrix = csr_matrix(dense)
    curves = fit_rank_curves(["line", "gene_lines"], rank(matrix), matrix)
    ranks, genes, length = np.array([1, 5, 50]), np.array([7, 7, 7]), np.array([100, 100, 100])
    assert curves["gene_lines"].predict(ranks, genes, length) == pytest.approx(
        curves["line"].predict(ranks, genes, length), abs=1e-6
    )


def test_a_gene_seen_once_stays_nearer_to_the_line_than_one_seen_often(cells):
    sentences, matrix = cells
    curve = fit_rank_curve("gene_lines", sentences, matrix)
    seen = np.bincount(sentences.gene_ids, minlength=300)
    shrink = seen / (seen + curve.strength[0])
    assert shrink[seen <= 3].max(initial=0) < shrink[seen > 100].min()


def test_the_peer_line_is_fitted_on_ranks_below_1000_and_goes_below_zero():
    # 4.4 of the peer: fit restricted to log10(1 + rank0) < 3, used without a bound.
    ranks = np.arange(1, 3001)
    y = np.where(ranks < 1000, 3 - np.log10(ranks), 0.0001)  # would be 0 at rank 1000
    matrix = csr_matrix(y.astype(np.float32)[None, :])
    sentences = rank(matrix)
    peer = fit_rank_curve("peer_line", sentences, matrix)
    assert peer.coefficients == pytest.approx((3, -1), abs=1e-5)
    assert predict_words(peer, sentences).min() < -0.4
    own = fit_rank_curve("line", sentences, matrix)
    assert own.coefficients[1] != pytest.approx(-1, abs=1e-2)  # every rank counts
    assert predict_words(own, sentences).min() == pytest.approx(0.0001)


def test_refitting_on_all_ranks_beats_the_restricted_fit(cells):
    matrix = make_cells(n_cells=60, n_genes=3000, seed=3)
    sentences = rank(matrix)
    assert sentences.lengths.max() > 1000
    peer, line = (fit_rank_curve(kind, sentences, matrix) for kind in ("peer_line", "line"))
    r2 = {row["curve"]: row["r2"] for row in evaluate_curve([peer, line], sentences, matrix, held_out=False)}
    assert r2["line"] > r2["peer_line"]


@pytest.mark.parametrize("kind", USEFUL)
def test_no_curve_is_ever_below_the_smallest_training_value(cells, kind):
    sentences, matrix = cells
    curve = fit_rank_curve(kind, sentences, matrix)
    rng = np.random.default_rng(0)
    ranks, genes, length = rng.integers(1, 50_000, 500), rng.integers(0, 300, 500), rng.integers(1, 90_000, 500)
    value = curve.predict(ranks, genes, length)
    assert value.dtype == np.float32
    assert np.isfinite(value).all()
    assert value.min() >= np.float32(matrix.data.min()) - 1e-6 > 0


@pytest.mark.parametrize("kind", [kind for kind in USEFUL if not kind.startswith("gene_lines")])
def test_a_curve_of_all_genes_never_rises_with_the_rank(cells, kind):
    sentences, matrix = cells
    curve = fit_rank_curve(kind, sentences, matrix)
    ranks = np.arange(1, 400)
    for n_expressed in (1, 20, 60, 100, 150, 300, 5000):
        value = curve.predict(ranks, np.zeros(399, int), np.full(399, n_expressed))
        assert (np.diff(value) <= 1e-6).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6), st.floats(0.5, 4))
def test_any_cubic_is_held_at_the_lowest_point_before(coefficients, length):
    curve = PolynomialCurve(
        kind="cubic_length",
        coefficients=tuple(coefficients),
        floor=-1e9,
        max_rank=10_000,
        length_range=(1.0, 10_000.0),
        n_pairs=1,
    )
    a, b, c, d, e, f = coefficients
    ranks = np.geomspace(1, 10_000, 3000)  # the minimum may lie between two whole ranks
    x = np.log10(ranks)
    plain = a + b * x + c * x**2 + d * x**3 + e * length + f * x * length
    held = np.minimum.accumulate(plain)
    value = curve.predict(ranks, np.zeros(len(ranks), int), np.full(len(ranks), 10**length))
    np.testing.assert_allclose(value, held, atol=0.02, rtol=1e-5)  # the grid of ranks is finite
    assert (value <= held + 1e-4).all()


def test_length_tells_cells_of_different_depth_apart(other_cells, cells):
    curves = [fit_rank_curve(kind, *cells) for kind in ("line", "line_length", "cubic_length", "gene_lines_length")]
    rows = evaluate_curve(curves, *other_cells, held_out=True)
    r2 = {row["curve"]: row["r2"] for row in rows if row["scope"] == "expressed"}
    assert r2["line"] < r2["line_length"] < r2["cubic_length"] < r2["gene_lines_length"]


def test_isotonic_length_has_groups_only_where_there_are_pairs_enough(cells):
    curve = fit_rank_curve("isotonic_length", *cells)
    assert 1 < len(curve.lengths) <= 8
    assert list(curve.lengths) == sorted(curve.lengths)
    few = cells[0][:5]
    assert len(few.gene_ids) < fit_curves._MIN_PAIRS
    assert len(fit_rank_curve("isotonic_length", few, cells[1][:5]).lengths) == 1


@pytest.mark.parametrize("kind", CURVE_KINDS)
def test_json_gives_back_exactly_the_same_curve(cells, kind):
    sentences, matrix = cells
    curve = fit_rank_curve(kind, sentences, matrix)
    again = rank_curve_from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert again.to_dict() == curve.to_dict()
    assert type(again) is type(curve)
    assert np.array_equal(predict_words(again, sentences), predict_words(curve, sentences))


def test_chunks_in_any_order_give_the_same_curves(cells):
    sentences, matrix = cells
    whole = fit_rank_curves(CURVE_KINDS, sentences, matrix)
    chunked = CurveFitter(CURVE_KINDS, sentences.vocabulary)
    for reading in range(2):
        for rows in (slice(150, 200), slice(0, 90), slice(90, 150)):
            chunked.add(sentences[rows], matrix[rows])
        if reading == 0:
            assert chunked.needs_second_reading
            chunked.start_second_reading()
    for kind, curve in chunked.curves().items():
        assert predict_words(curve, sentences) == pytest.approx(predict_words(whole[kind], sentences), abs=1e-5)


def test_scores_equal_scipy_over_expressed_genes_and_over_all_genes(cells, other_cells):
    curve = fit_rank_curve("gene_lines", *cells)
    sentences, matrix = other_cells
    expressed, everything = evaluate_curve(curve, sentences, matrix, held_out=True, genes="hvg")
    _, _, y = flat(sentences, matrix)
    p = predict_words(curve, sentences).astype(np.float64)
    observed = matrix.toarray().ravel().astype(np.float64)
    predicted = np.zeros(matrix.shape)
    predicted[sentences.cells(), sentences.gene_ids] = p
    for row, scope, o, q in ((expressed, "expressed", y, p), (everything, "all", observed, predicted.ravel())):
        assert (row["curve"], row["genes"], row["scope"], row["held_out"]) == ("gene_lines", "hvg", scope, True)
        assert row["n"] == row["n_spearman"] == len(o)
        assert row["r2"] == pytest.approx(1 - ((o - q) ** 2).sum() / ((o - o.mean()) ** 2).sum())
        assert row["pearson"] == pytest.approx(pearsonr(o, q)[0])
        assert row["spearman"] == pytest.approx(spearmanr(o, q)[0])


def test_genes_that_a_cut_off_sentence_misses_count_as_zero_over_all_genes(cells):
    sentences, matrix = cells
    short = sentences.truncate(20)
    curve = fit_rank_curve("line", short, matrix)
    expressed, everything = evaluate_curve(curve, short, matrix, held_out=False)
    assert expressed["n"] == len(short.gene_ids)
    predicted = np.zeros(matrix.shape)
    predicted[short.cells(), short.gene_ids] = predict_words(curve, short)
    o, q = matrix.toarray().ravel().astype(np.float64), predicted.ravel()
    assert everything["n"] == matrix.shape[0] * matrix.shape[1]
    assert everything["r2"] == pytest.approx(1 - ((o - q) ** 2).sum() / ((o - o.mean()) ** 2).sum())
    assert everything["spearman"] == pytest.approx(spearmanr(o, q)[0])


def test_spearman_over_many_words_rests_on_whole_cells_and_says_so(cells, monkeypatch):
    sentences, matrix = cells
    curve = fit_rank_curve("line", sentences, matrix)
    full = evaluate_curve(curve, sentences, matrix, held_out=False)
    monkeypatch.setattr("cytoglot.sentence.curve_score.SPEARMAN_WORDS", len(sentences.gene_ids) // 2)
    for row, sampled in zip(full, evaluate_curve(curve, sentences, matrix, held_out=False), strict=True):
        assert sampled["n"] == row["n"]
        assert 0.2 * row["n"] < sampled["n_spearman"] < 0.8 * row["n"]
        assert sampled["r2"] == row["r2"]
        assert sampled["spearman"] == pytest.approx(row["spearman"], abs=0.02)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), max_size=30), st.integers(0, 20))
def test_sparse_ranks_give_the_spearman_of_the_dense_vectors(pairs, n_zeros):
    left, right = (np.array([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
    found = SparseRanks(left, n_zeros=n_zeros).correlation(SparseRanks(right, n_zeros=n_zeros))
    dense = np.append(left, np.zeros(n_zeros)), np.append(right, np.zeros(n_zeros))
    if len(np.unique(dense[0])) < 2 or len(np.unique(dense[1])) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(*dense)[0], abs=1e-12)


def test_constant_expression_has_no_correlation_and_no_r2():
    matrix = csr_matrix(np.ones((2, 3), dtype=np.float32))
    sentences = rank(matrix)
    row = evaluate_curve(fit_rank_curve("line", sentences, matrix), sentences, matrix, held_out=False)[0]
    assert (row["r2"], row["pearson"], row["spearman"], row["n"]) == (None, None, None, 6)


def test_an_empty_cell_among_others_changes_no_curve(cells):
    sentences, matrix = cells
    with_empty = csr_matrix(np.vstack([matrix.toarray(), np.zeros((1, 300), dtype=np.float32)]))
    for kind in CURVE_KINDS:
        one, other = fit_rank_curve(kind, sentences, matrix), fit_rank_curve(kind, rank(with_empty), with_empty)
        assert one.to_dict() == other.to_dict()


def test_cells_of_one_length_and_one_cell_can_be_fitted():
    matrix = csr_matrix(np.array([[3.0, 2.0, 1.0]], dtype=np.float32))
    sentences = rank(matrix)
    for kind in CURVE_KINDS:
        value = predict_words(fit_rank_curve(kind, sentences, matrix), sentences)
        assert np.isfinite(value).all()
        assert value[0] > value[-1]


def test_the_matrix_of_other_cells_is_refused(cells):
    sentences, matrix = cells
    with pytest.raises(InputError, match=r"found G\d+ of cell 'cell\d+' to be 0 in the matrix but in the sentence"):
        fit_rank_curve("line", sentences, make_cells(seed=9))
    with pytest.raises(VocabularyMismatchError, match=r"of 200 cells x 300 genes .* found 200 x 299"):
        fit_rank_curve("line", sentences, matrix[:, 1:])


def test_no_expressed_gene_at_all_is_refused():
    matrix = csr_matrix((3, 4), dtype=np.float32)
    with pytest.raises(InputError, match="needs expressed genes, found none in the training cells"):
        fit_rank_curve("line", rank(matrix), matrix)


def test_an_unknown_kind_is_answered_with_the_nearest(cells):
    with pytest.raises(UnknownNameError, match=r"unknown rank curve 'gene_line'; did you mean 'gene_lines'"):
        fit_rank_curve("gene_line", *cells)
    with pytest.raises(UnknownNameError, match="unknown rank curve 'spline'"):
        rank_curve_from_dict({"kind": "spline"})


def test_a_broken_stored_curve_is_refused(cells):
    stored = fit_rank_curve("line", *cells).to_dict()
    del stored["floor"]
    with pytest.raises(InputError, match="not a stored line curve: key 'floor' is missing"):
        rank_curve_from_dict(stored)


def test_a_curve_of_lines_per_gene_refuses_another_vocabulary(cells):
    sentences, matrix = cells
    curve = fit_rank_curve("gene_lines", sentences, matrix)
    foreign = rank(matrix[:, :299])
    with pytest.raises(VocabularyMismatchError, match="was fitted for the genes of vocabulary"):
        predict_words(curve, foreign)


def test_ranks_below_one_are_refused(cells):
    for kind in CURVE_KINDS:
        with pytest.raises(InputError, match="ranks start at 1 for the most expressed gene, found 0"):
            fit_rank_curve(kind, *cells).predict([1, 0], np.array([0, 1]), [5, 5])


def test_the_input_matrix_is_not_changed(cells):
    sentences, matrix = cells
    dirty = matrix.copy()
    dirty.indices = np.append(dirty.indices, np.int32(0))[: dirty.nnz]
    dirty.data[0] = 0.0
    keep = dirty.copy()
    evaluate_curve(fit_rank_curve("line", sentences, matrix), sentences, dirty, held_out=False)
    assert np.array_equal(keep.data, dirty.data)
    assert np.array_equal(keep.indices, dirty.indices)
