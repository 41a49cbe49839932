"""Pre-processing of the published models, each against an example worked out by hand."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


def test_rank_values_by_hand(module: Load) -> None:
    rank = module("rank_value")
    # a cell of 100 counts: per 10,000 these are 1000, 0, 500, 500; over the medians they are 500, 0, 50, 1000
    counts, medians, tokens = np.array([10, 0, 5, 5]), np.array([2.0, 1.0, 10.0, 0.5]), np.array([7, 8, 9, 10])
    values = rank.scaled_values(counts, medians, total=100)
    np.testing.assert_allclose(values, [500, 0, 50, 1000])
    assert rank.rank_tokens(values, tokens, max_tokens=2048).tolist() == [10, 7, 9]
    assert rank.rank_tokens(values, tokens, max_tokens=4, first=2, last=3).tolist() == [2, 10, 7, 3]
    assert rank.rank_tokens(np.array([1.0, 2.0, 1.0]), tokens[:3], max_tokens=9).tolist() == [8, 7, 9]
    assert rank.rank_tokens(np.zeros(4), tokens, max_tokens=9, first=2).tolist() == [2]
    np.testing.assert_allclose(rank.scaled_values(np.zeros(2), np.zeros(2)), [0, 0])


def test_nicheformer_tokens_by_hand(module: Load) -> None:
    # 1, 3, 0 of 4 counts are 2500, 7500, 0 per 10,000; over the means 1, 10 and 0 (which counts as 1): 2500, 750, 0
    found = module("rank_value").nicheformer_tokens(np.array([1, 3, 0]), np.array([1.0, 10.0, 0.0]), (5, 6, 7))
    assert found.tolist() == [5, 6, 7, 30, 31]


def test_genecompass_values_by_hand(module: Load) -> None:
    # 6 / 2 = 3 → log2(4) = 2; 7 / 1 → log2(8) = 3
    tokens, values = module("rank_value").genecompass_input(
        np.array([6, 0, 7]), np.array([2, 1, 1]), np.array([4, 5, 6])
    )
    assert tokens.tolist() == [6, 4]
    np.testing.assert_allclose(values, [3, 2])


def test_value_bins_by_hand(module: Load) -> None:
    bins = module("value_bins")
    # five bins: the edges are the quantiles 0, 1/3, 2/3 and 1 of 1, 2, 4 and 7, which are 1, 2, 4 and 7
    assert bins.value_bins(np.array([0, 7, 1, 4, 2]), n_bins=5).tolist() == [0, 4, 1, 3, 2]
    assert bins.value_bins(np.array([0, 3, 3]), n_bins=51).tolist() == [0, 50, 50]
    assert bins.value_bins(np.zeros(2)).tolist() == [0, 0]
    rng = np.random.default_rng(0)
    tokens, values = bins.scgpt_input(np.array([0, 3, 9]), np.array([11, 12, 13]), rng, cls=1, cls_value=-2)
    assert tokens.tolist() == [1, 12, 13]
    assert values.tolist() == [-2, 1, 50]
    tokens, values = bins.scgpt_input(np.arange(1, 9), np.arange(20, 28), rng, cls=1, max_tokens=4)
    assert len(tokens) == len(values) == 4
    assert (np.diff(tokens[1:]) > 0).all()


def test_log_bins_by_hand(module: Load) -> None:
    # 3 of 10,000 → log2(4) = 2; 1 → log2(2) = 1; 9996 → above 5
    found = module("log_bins").log_bin_tokens(np.array([[3, 1, 9996, 0], [0, 0, 0, 0]]))
    assert found.tolist() == [[2, 1, 5, 0, 0], [0, 0, 0, 0, 0]]


def test_scfoundation_values_by_hand(module: Load) -> None:
    values = module("continuous_values")
    # 100 counts: S = 2, and 1 of them is 100 per 10,000
    found = values.scfoundation_values(np.array([1, 0, 99]))
    np.testing.assert_allclose(found, [np.log(101), 0, np.log(9901), 4, 2])
    np.testing.assert_allclose(values.scfoundation_values(np.array([1, 99]), target="f10")[-2:], [3, 2])
    np.testing.assert_allclose(values.scfoundation_values(np.array([1, 99]), target="a1")[-2:], [3, 2])
    kept, places = values.scfoundation_tokens(found)
    assert places.tolist() == [0, 2, 3, 4]
    np.testing.assert_allclose(kept[-2:], [4, 2])
    with pytest.raises(ValueError, match="must begin with t, f or a"):
        values.scfoundation_values(np.array([1]), target="x4")


def test_cellfm_input_by_hand(module: Load) -> None:
    cellfm, rng = module("continuous_values").cellfm_input, np.random.default_rng(0)
    values, genes, depths = cellfm(np.array([1, 0, 3]), np.array([5, 6, 7]), rng)
    np.testing.assert_allclose(values, np.log1p([2500, 7500]), rtol=1e-6)
    assert genes.tolist() == [5, 7]
    np.testing.assert_allclose(depths, [np.log1p(0.004)] * 2, rtol=1e-6)
    # a cell of 200,000 counts is halved and rounded: 2 → 1, 6 → 3
    np.testing.assert_allclose(cellfm(np.array([2, 6]), np.array([1, 2]), rng, depth=2e5)[0], values, rtol=1e-6)


def test_chromosome_order_by_hand(module: Load) -> None:
    uce, rng = module("chromosomes"), np.random.default_rng(0)
    genes = uce.drawn_genes(np.array([0, 5, 1]), rng, n_draws=200)
    assert set(genes.tolist()) == {1, 2}
    assert abs((genes == 1).mean() - np.log(6) / (np.log(6) + np.log(2))) < 0.1
    # genes 0 and 2 lie on chromosome 4, gene 2 before gene 0; gene 1 lies on chromosome 9
    found = uce.chromosome_tokens(
        np.array([0, 1, 2, 2]), np.array([50, 51, 52]), np.array([4, 9, 4]), np.array([900, 10, 100]), rng
    ).tolist()
    fourth, ninth = [143_578, 52, 52, 50, 2], [143_583, 51, 2]
    assert found in ([3, *fourth, *ninth], [3, *ninth, *fourth])


def test_clipped_counts_by_hand(module: Load) -> None:
    clipped = module("clipped_counts").clipped_counts
    tokens, counts = clipped(np.array([0, 31, 2, 30]), np.array([5, 6, 7, 8]))
    assert (tokens.tolist(), counts.tolist()) == ([6, 7, 8], [30, 2, 30])
    assert clipped(np.array([0, 31, 2, 30]), np.array([5, 6, 7, 8]), max_genes=2)[0].tolist() == [6, 7]


def test_a_table_that_would_run_code_is_refused(module: Load, tmp_path: Path) -> None:
    read_table = module("gene_tables").read_table
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ENSG1": 3, "ENSG2": np.float64(0.5)}))
    assert read_table(tmp_path / "a.pkl") == {"ENSG1": 3, "ENSG2": 0.5}
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(pickle.UnpicklingError, match="no plain value"):
        read_table(tmp_path / "b.pkl")


def test_columns_come_in_the_order_of_the_model(module: Load) -> None:
    in_order_of = module("gene_tables").in_order_of
    found = in_order_of(np.array([[1, 2, 3]]), ["B", "X", "A"], ["A", "B", "C"])
    assert found.tolist() == [[3, 1, 0]]
    with pytest.raises(SystemExit, match="knows none of the 1 genes"):
        in_order_of(np.array([[1]]), ["X"], ["A"])
