"""The state of a matrix by test, and normalization against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

from cytoglot.data.normalize import MatrixState, check_values, log_normalize, matrix_state, normalize_log
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError

LAYOUTS = [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array, lambda m: m.toarray()]


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    return make_cells(n_cells=120, n_genes=400, seed=3).X


def by_hand(counts_ng: np.ndarray, target_sum: float, base: float) -> np.ndarray:
    totals = counts_ng.sum(axis=1, keepdims=True)
    return np.log1p(counts_ng / np.where(totals == 0, 1, totals) * target_sum) / math.log(base)


class TestState:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32, np.float32, np.float64, np.float16])
    def test_integer_counts_in_any_type_and_layout(
        self, counts: sparse.csr_matrix, layout: Callable, dtype: type
    ) -> None:
        if layout(counts).__class__ is np.ndarray or dtype is not np.float16:  # scipy has no sparse float16
            dense = np.minimum(counts.toarray(), 200).astype(dtype)
            state = matrix_state(dense if dtype is np.float16 else layout(sparse.csr_matrix(dense)))
            assert state.kind == "counts"
            assert state.n_cells_checked == 120
            assert state.description == "integer counts"

    @pytest.mark.parametrize("base", [math.e, 10.0, 2.0])
    @pytest.mark.parametrize("target", [1.0, 1832.5, 1e4, 1e6])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_base_and_target_sum_of_log1p_are_found(
        self, counts: sparse.csr_matrix, base: float, target: float, layout: Callable
    ) -> None:
        state = matrix_state(layout(normalize_log(counts, target_sum=target, base=base)))
        assert (state.kind, state.log_base) == ("log1p", base)
        assert state.target_sum == pytest.approx(target, rel=1e-3)

    @pytest.mark.parametrize("base", [math.e, 10.0, 2.0])
    @pytest.mark.parametrize("n_kept", [200, 40])
    def test_the_base_is_found_after_a_choice_of_genes(
        self, counts: sparse.csr_matrix, base: float, n_kept: int
    ) -> None:
        genes = np.random.default_rng(0).choice(400, n_kept, replace=False)
        state = matrix_state(normalize_log(counts, base=base)[:, genes])
        assert (state.kind, state.log_base, state.target_sum) == ("log1p", base, None)

    def test_words_for_the_states(self, counts: sparse.csr_matrix) -> None:
        assert matrix_state(normalize_log(counts)).description == "log1p (base 10), likely target sum 10,000"
        chosen = matrix_state(normalize_log(counts, base=math.e)[:, :50])
        assert chosen.description == "log1p (natural), scaled to an unknown total"
        share = sparse.csr_matrix(counts / counts.sum(axis=1))
        assert matrix_state(share * 1e6).description == "non-negative values, each cell sums to 1,000,000"
        assert matrix_state(sparse.csr_matrix((3, 2))).description == "integer counts, all zero"

    def test_normalized_but_not_logged_values_are_no_logs(self, counts: sparse.csr_matrix) -> None:
        linear = sparse.csr_matrix(counts / counts.sum(axis=1)) * 1e4
        assert matrix_state(linear).kind == "nonnegative"
        state = matrix_state(linear[:, :100])
        assert (state.kind, state.log_base, state.note) == ("nonnegative", None, "multiples of a unit in each cell")

    def test_counts_with_one_fraction_are_no_logs(self, counts: sparse.csr_matrix) -> None:
        values = counts.astype(np.float32).tolil()
        values[3, 5] = 0.37
        assert matrix_state(sparse.csr_matrix(values)).kind == "nonnegative"

    def test_other_nonnegative_values_are_called_just_that(self) -> None:
        values = np.random.default_rng(0).gamma(2.0, 1.5, (50, 60))
        state = matrix_state(values)
        assert (state.kind, state.log_base, state.target_sum) == ("nonnegative", None, None)

    def test_signed_values_name_the_first_cell_and_gene(self, counts: sparse.csr_matrix) -> None:
        scaled = counts.toarray() - 0.5
        state = matrix_state(scaled, cell_names=[f"c{i}" for i in range(120)], gene_names=[f"g{i}" for i in range(400)])
        assert state.kind == "signed"
        assert "found -0.5 in cell 'c0' (number 0), gene 'g" in state.description

    def test_negative_whole_numbers_are_signed(self) -> None:
        state = matrix_state(np.array([[1, 2], [3, -4]]))
        assert state.kind == "signed"
        assert "whole numbers, found -4 in cell 1, gene 1" in state.description

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_and_infinity_are_refused_by_cell_and_gene(
        self, counts: sparse.csr_matrix, layout: Callable, value: float
    ) -> None:
        faulty = counts.astype(np.float64).tolil()
        faulty[7, 11] = value
        with pytest.raises(InputError, match=rf"found {value} in cell 7, gene 11"):
            matrix_state(layout(sparse.csr_matrix(faulty)))

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_nothing_at_all_counts_as_counts(self, shape: tuple[int, int]) -> None:
        assert matrix_state(sparse.csr_matrix(shape)).kind == "counts"
        assert matrix_state(np.zeros(shape)).kind == "counts"

    def test_the_matrix_is_left_alone(self, counts: sparse.csr_matrix) -> None:
        logs = normalize_log(counts)
        before = logs.copy()
        matrix_state(logs)
        assert (logs != before).nnz == 0

    def test_what_is_no_matrix_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"cells × genes with two axes, found an array of shape \(3,\)"):
            matrix_state(np.arange(3))
        with pytest.raises(InputError, match="expected numbers"):
            matrix_state(np.array([["a"]]))

    @pytest.mark.data
    def test_real_matrices_are_what_their_makers_say(self, data_path: Callable[[str], Path]) -> None:
        perturbseq = anndata.read_h5ad(data_path("norman_mcfaline_perturbseq_500hvg.h5ad"))
        assert matrix_state(perturbseq.X).kind == "counts"
        lognorm = matrix_state(perturbseq.layers["lognorm"])
        assert (lognorm.kind, lognorm.log_base) == ("log1p", math.e)
        kang = anndata.read_h5ad(data_path("kang_ifnb_pbmc_merged.h5ad"))
        assert matrix_state(normalize_log(kang.X, target_sum=1832.5, base=math.e)).target_sum == pytest.approx(
            1832, 1e-3
        )
        for name in ("human_celltype_pseudobulk_profiles", "pancreas_panc8_5tech_500", "l1000_ljp005_a375_plate_377"):
            assert matrix_state(anndata.read_h5ad(data_path(f"{name}.h5ad")).X).kind == "nonnegative"


class TestCheckValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
    def test_the_first_fault_is_named(self, value: float) -> None:
        dense = np.ones((3, 4))
        dense[1, 2] = value
        message = rf"expected finite, non-negative values, found {value:g} in cell 'b' .*, gene 'z' .* of layers"
        for matrix in (dense, sparse.csr_matrix(dense), sparse.csc_matrix(dense)):
            with pytest.raises(InputError, match=message):
                check_values(
                    matrix, cell_names=["a", "b", "c"], gene_names=["x", "y", "z", "w"], what="layers['counts']"
                )

    def test_good_values_pass(self) -> None:
        check_values(np.zeros((0, 3)))
        check_values(np.array([[0, 3]], dtype=np.uint8))
        check_values(sparse.csr_matrix(np.eye(3)))


class TestNormalize:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("target", "base"), [(1e4, 10.0), (1e4, math.e), (50.0, 2.0)])
    def test_equals_the_formula(self, counts: sparse.csr_matrix, layout: Callable, target: float, base: float) -> None:
        result = normalize_log(layout(counts), target_sum=target, base=base)
        assert isinstance(result, sparse.csr_matrix)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.toarray(), by_hand(counts.toarray(), target, base), rtol=2e-6, atol=1e-7)

    def test_by_hand(self) -> None:
        assert normalize_log(np.array([[1, 0, 3]]), target_sum=36, base=10).toarray()[0].tolist() == pytest.approx(
            [1.0, 0.0, math.log10(28)]
        )

    def test_an_empty_cell_stays_empty_and_the_input_unchanged(self) -> None:
        counts = sparse.csr_matrix(np.array([[0.0, 0.0], [1.0, 3.0]], dtype=np.float32))
        before = counts.copy()
        result = normalize_log(counts)
        assert result[0].nnz == 0
        assert (counts != before).nnz == 0
        result.indices[:] = 0  # neither the structure is shared
        assert counts.indices.tolist() == [0, 1]

    def test_negative_counts_are_refused(self) -> None:
        with pytest.raises(InputError, match="found -2 in cell 0, gene 1"):
            normalize_log(np.array([[1, -2]]))

    @pytest.mark.parametrize("base", [math.e, 10.0, 2.0])
    @pytest.mark.parametrize("target", [1e3, 1e6])
    def test_any_log1p_comes_to_the_scale_asked_for(
        self, counts: sparse.csr_matrix, base: float, target: float
    ) -> None:
        logs = normalize_log(counts, target_sum=target, base=base)
        result = log_normalize(logs, matrix_state(logs), base=10.0)
        np.testing.assert_allclose(result.toarray(), by_hand(counts.toarray(), 1e4, 10.0), rtol=1e-3, atol=1e-4)
        direct = log_normalize(counts, matrix_state(counts), base=10.0)
        np.testing.assert_allclose(direct.toarray(), by_hand(counts.toarray(), 1e4, 10.0), rtol=1e-5, atol=1e-6)

    def test_after_a_choice_of_genes_the_scale_of_the_file_is_kept(self, counts: sparse.csr_matrix) -> None:
        chosen = normalize_log(counts, base=10.0)[:, :100]
        result = log_normalize(chosen, matrix_state(chosen))
        expected = by_hand(counts.toarray(), 1e4, math.e)[:, :100]
        np.testing.assert_allclose(result.toarray(), expected, rtol=1e-4, atol=1e-5)

    def test_signed_values_are_refused(self) -> None:
        with pytest.raises(InputError, match="expected counts or log1p values, found signed values"):
            log_normalize(np.array([[-0.5]]), MatrixState(kind="signed"))
