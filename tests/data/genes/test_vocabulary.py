"""The gene vocabulary, and columns that never shift."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cytoglot.data.genes.vocabulary import GeneVocabulary, collapse_columns, resolve_genes
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_texts


def var_of(names: list[str], **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


def totals(names: list[str], counts_ng: np.ndarray, **options: object) -> dict[str, list[int]]:
    """Counts of every cell by gene name, through resolve and collapse."""
    genes = resolve_genes(var_of(names), **options)
    collapsed = collapse_columns(sparse.csr_matrix(counts_ng), genes.column_gene, len(genes.vocabulary))
    dense = collapsed.toarray()
    return {symbol: dense[:, i].tolist() for i, symbol in enumerate(genes.vocabulary.symbols)}


class TestVocabulary:
    def test_ids_are_positions_and_unknown_names_are_minus_one(self) -> None:
        vocabulary = GeneVocabulary(("ACTB", "CD3D", "MT-CO1"))
        ids = vocabulary.index_of(["CD3D", "actb", "MT-CO1", "ACTB"])
        assert ids.dtype == np.int32
        assert ids.tolist() == [1, -1, 2, 0]
        assert "ACTB" in vocabulary
        assert "actb" not in vocabulary
        assert len(vocabulary) == 3
        assert vocabulary.names[ids[[0, 3]]].tolist() == ["CD3D", "ACTB"]

    def test_the_fingerprint_depends_on_names_and_order_alone(self) -> None:
        vocabulary = GeneVocabulary(("A", "B"))
        assert vocabulary.fingerprint == fingerprint_texts(["A", "B"])
        assert len(vocabulary.fingerprint) == 16
        assert vocabulary.fingerprint != GeneVocabulary(("B", "A")).fingerprint
        assert GeneVocabulary(("AB",)).fingerprint != vocabulary.fingerprint

    def test_equal_vocabularies_hash_alike_and_survive_pickle_and_json(self) -> None:
        vocabulary = GeneVocabulary(("A", "B"), "ensembl")
        assert hash(GeneVocabulary(("A", "B"), "ensembl")) == hash(vocabulary)
        assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary  # noqa: S301
        assert GeneVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
        assert vocabulary != GeneVocabulary(("A", "B"))
        assert vocabulary != ("A", "B")

    def test_it_cannot_be_changed(self) -> None:
        vocabulary = GeneVocabulary(("A", "B"))
        with pytest.raises(AttributeError):
            vocabulary.symbols = ("C",)  # type: ignore[misc]
        with pytest.raises(ValueError, match="read-only"):
            vocabulary.names[0] = "C"

    def test_a_subset_keeps_the_order_of_the_vocabulary(self) -> None:
        vocabulary = GeneVocabulary(("A", "B", "C", "D"))
        assert vocabulary.subset(["D", "A", "D"]).symbols == ("A", "D")
        assert vocabulary.subset([]).symbols == ()
        with pytest.raises(UnknownNameError, match="unknown gene 'E'"):
            vocabulary.subset(["A", "E"])

    def test_an_empty_vocabulary_knows_nothing(self) -> None:
        assert GeneVocabulary(()).index_of(["A"]).tolist() == [-1]

    def test_duplicates_are_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"must be unique, found 1 repeated: 'A'; resolve_genes\(\)"):
            GeneVocabulary(("A", "B", "A"))

    @pytest.mark.parametrize("name", ["", "HLA A", "A\n", " A", "A\u00a0B"])
    def test_names_that_are_not_one_word_are_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="without white space"):
            GeneVocabulary(("B", name))

    def test_a_changed_file_is_refused(self) -> None:
        value = GeneVocabulary(("A", "B")).to_dict() | {"symbols": ["B", "A"]}
        with pytest.raises(InputError, match="does not fit its fingerprint"):
            GeneVocabulary.from_dict(value)


class TestColumns:
    def test_duplicated_columns_are_summed_and_no_other_gene_moves(self) -> None:
        counts_ng = np.array([[1, 2, 4, 8], [0, 1, 0, 3]])
        assert totals(["B", "A", "B", "C"], counts_ng) == {"B": [5, 0], "A": [2, 1], "C": [8, 3]}
        genes = resolve_genes(var_of(["B", "A", "B", "C"]))
        assert genes.report.duplicates == ("B",)
        assert genes.report.n_duplicate_columns == 1
        assert genes.report.messages() == ["1 duplicated column ('B'): summed"]
        assert genes.first_column.tolist() == [0, 1, 3]

    def test_first_keeps_the_first_column(self) -> None:
        counts_ng = np.array([[1, 2, 4, 8]])
        assert totals(["B", "A", "B", "C"], counts_ng, duplicates="first") == {"B": [1], "A": [2], "C": [8]}

    def test_error_names_the_duplicates(self) -> None:
        with pytest.raises(InputError, match=r"found 2 repeated columns in var_names: 'B'; pass duplicates='sum'"):
            resolve_genes(var_of(["B", "A", "B", "B"]), duplicates="error")

    def test_names_that_differ_in_case_stay_apart_and_are_reported(self) -> None:
        names = ["C2orf15", "TP53", "C2ORF15"]
        assert totals(names, np.array([[1, 2, 4]])) == {"C2orf15": [1], "TP53": [2], "C2ORF15": [4]}
        report = resolve_genes(var_of(names)).report
        assert report.case_collisions == (("C2orf15", "C2ORF15"),)
        assert "C2orf15 / C2ORF15" in report.messages()[0]

    def test_names_made_unique_by_another_tool_are_reported(self) -> None:
        report = resolve_genes(var_of(["TBCE", "TBCE-1", "NKX2-1", "MRPL30", "MRPL30.1"])).report
        assert report.suffixed == ("TBCE-1", "MRPL30.1")

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_permuting_or_splitting_columns_changes_no_total(self, data: st.DataObject) -> None:
        alphabet = ["A", "a", "B", "b", "CD3D", "Cd3d", "MT-CO1", "X-1", "X"]
        names = data.draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=12))
        n_cells = data.draw(st.integers(0, 4))
        values = data.draw(st.lists(st.integers(0, 5), min_size=n_cells * len(names), max_size=n_cells * len(names)))
        counts_ng = np.array(values, dtype=np.int64).reshape(n_cells, len(names))
        order = data.draw(st.permutations(range(len(names))))
        split = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=4))
        expected = {name: counts_ng[:, [n == name for n in names]].sum(axis=1).tolist() for name in names}
        assert totals(names, counts_ng) == expected
        assert totals([names[i] for i in order], counts_ng[:, order]) == expected
        # a column of zeros under a name that is there already is a duplicate that must change nothing
        padded = np.hstack([counts_ng[:, order], np.zeros((n_cells, len(split)), dtype=np.int64)])
        assert totals([names[i] for i in [*order, *split]], padded) == expected
        doubled = totals([*names, *names], np.hstack([counts_ng, counts_ng]))
        assert doubled == {name: [2 * v for v in column] for name, column in expected.items()}

    def test_columns_without_a_name_are_dropped_and_reported(self) -> None:
        genes = resolve_genes(var_of(["A", "", "nan", "B"]))
        assert genes.column_gene.tolist() == [0, -1, -1, 1]
        assert genes.report.messages() == ["2 columns without a name dropped"]
        assert totals(["A", "", "B"], np.array([[1, 9, 2]])) == {"A": [1], "B": [2]}

    def test_no_name_at_all_is_refused(self) -> None:
        with pytest.raises(InputError, match="expected gene names in var_names, found none among 2 columns"):
            resolve_genes(var_of(["", "nan"]))

    def test_white_space_in_a_name_becomes_an_underscore(self) -> None:
        genes = resolve_genes(var_of(["CD3 TotalSeq", " ACTB "]))
        assert genes.vocabulary.symbols == ("CD3_TotalSeq", "ACTB")
        assert genes.report.n_white_space == 1

    def test_a_fly_gene_called_na_is_a_gene(self) -> None:
        assert resolve_genes(var_of(["na", "w"])).vocabulary.symbols == ("na", "w")

    def test_antibodies_beside_genes_are_dropped(self) -> None:
        var = var_of(["CD3D", "CD3", "ACTB"], feature_types=["Gene Expression", "Antibody Capture", "Gene Expression"])
        genes = resolve_genes(var)
        assert genes.vocabulary.symbols == ("CD3D", "ACTB")
        assert genes.report.messages() == ["1 column of other features than gene expression dropped"]

    def test_biotypes_in_feature_type_drop_nothing(self) -> None:
        assert len(resolve_genes(var_of(["A", "B"], feature_type=["protein_coding", "lncRNA"])).vocabulary) == 2


class TestNames:
    IDS = ("ENSG00000141510.17", "ENSG00000075624.15", "ENSG00000182378.14_PAR_Y")

    def test_versions_are_stripped_and_the_namespace_is_told(self) -> None:
        genes = resolve_genes(var_of(list(self.IDS)))
        assert genes.vocabulary.symbols == ("ENSG00000141510", "ENSG00000075624", "ENSG00000182378_PAR_Y")
        assert genes.vocabulary.namespace == "ensembl"
        assert genes.report.n_versions_stripped == 3

    @pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "Symbol", "gene_short_name"])
    def test_symbols_are_found_beside_ensembl_ids(self, column: str) -> None:
        genes = resolve_genes(var_of(list(self.IDS), **{column: ["TP53", "ACTB", None]}))
        assert genes.vocabulary.symbols == ("TP53", "ACTB", "ENSG00000182378_PAR_Y")
        assert genes.vocabulary.namespace == "symbol"
        assert genes.report.source == f"var['{column}']"
        assert genes.report.n_without_symbol == 1

    def test_symbols_in_var_names_win_over_columns(self) -> None:
        genes = resolve_genes(var_of(["TP53", "ACTB"], feature_name=["x", "y"]))
        assert genes.vocabulary.symbols == ("TP53", "ACTB")
        assert genes.report.messages() == []

    def test_numbers_in_var_names_give_way_to_a_symbol_column(self) -> None:
        assert resolve_genes(var_of(["0", "1"], symbol=["TP53", "ACTB"])).vocabulary.symbols == ("TP53", "ACTB")

    def test_a_symbol_column_that_holds_ids_is_not_taken(self) -> None:
        genes = resolve_genes(var_of(list(self.IDS), feature_name=list(self.IDS), symbols=["TP53", "ACTB", "ASMTL"]))
        assert genes.report.source == "var['symbols']"

    def test_the_column_asked_for_is_taken(self) -> None:
        var = var_of(["TP53", "ACTB"], gene_ids=["ENSG00000141510.17", "ENSG00000075624.15"])
        assert resolve_genes(var, gene_column="gene_ids").vocabulary.symbols == ("ENSG00000141510", "ENSG00000075624")
        with pytest.raises(UnknownNameError, match=r"unknown column of var 'gene_id'; did you mean 'gene_ids'\?"):
            resolve_genes(var, gene_column="gene_id")

    def test_a_mapping_may_name_versions_or_not_and_may_drop(self) -> None:
        mapping = {"ENSG00000141510": "TP53", "ENSG00000075624.1": "ACTB", "ENSG00000182378_PAR_Y": ""}
        genes = resolve_genes(var_of(list(self.IDS)), mapping=mapping)
        assert genes.vocabulary.symbols == ("TP53", "ACTB")
        assert genes.report.n_dropped == 1
        assert resolve_genes(var_of(["p53", "ACTB"]), mapping={"p53": "TP53"}).vocabulary.symbols == ("TP53", "ACTB")

    def test_two_ids_of_one_symbol_are_summed(self) -> None:
        ids = ["ENSG00000116957", "ENSG00000284770", "ENSG00000075624"]
        genes = resolve_genes(var_of(ids, gene_symbols=["TBCE", "TBCE", "ACTB"]))
        collapsed = collapse_columns(np.array([[1, 2, 4]]), genes.column_gene, 2)
        assert collapsed.toarray().tolist() == [[3, 4]]


class TestCollapse:
    def test_identity_shares_memory_and_others_do_not(self) -> None:
        csr = sparse.csr_matrix(np.array([[1, 0, 2], [0, 3, 0]], dtype=np.int32))
        before = csr.copy()
        assert collapse_columns(csr, np.arange(3, dtype=np.int32), 3) is csr
        moved = collapse_columns(csr, np.array([2, 1, 0], dtype=np.int32), 3)
        moved.data[:] = 0
        assert (csr != before).nnz == 0

    def test_small_integers_do_not_overflow(self) -> None:
        counts_ng = np.full((1, 3), 200, dtype=np.uint8)
        collapsed = collapse_columns(counts_ng, np.zeros(3, dtype=np.int32), 1)
        assert collapsed.toarray().tolist() == [[600]]
        assert collapsed.dtype == np.uint32

    @pytest.mark.parametrize(
        "make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.coo_matrix, np.array]
    )
    def test_any_layout_gives_sorted_csr(self, make: type) -> None:
        dense = np.array([[5, 0, 1, 2], [0, 7, 0, 0], [0, 0, 0, 0]])
        collapsed = collapse_columns(make(dense), np.array([1, -1, 0, 1], dtype=np.int32), 2)
        assert isinstance(collapsed, sparse.csr_matrix)
        assert collapsed.has_canonical_format
        assert collapsed.toarray().tolist() == [[1, 7], [0, 0], [0, 0]]

    def test_stored_duplicates_of_an_entry_are_summed_even_when_no_column_moves(self) -> None:
        csr = sparse.csr_matrix((np.array([1, 2, 4]), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2))
        assert collapse_columns(csr, np.arange(2, dtype=np.int32), 2).data.tolist() == [2, 5]
        assert csr.data.tolist() == [1, 2, 4]

    def test_a_wrong_width_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has 2 columns, column_gene has 3"):
            collapse_columns(np.eye(2), np.arange(3, dtype=np.int32), 3)
