"""Annotation: probabilities that are probabilities, labels that are labels, and doubt where there is doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.special import softmax

import cytoglot as cg
from cytoglot.applications.annotation import (
    KEY,
    UNASSIGNED,
    LabelProbabilities,
    annotate,
    label_probabilities,
    majority_labels,
)
from cytoglot.applications.embedding import embed
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import Calibration, load_split
from cytoglot.errors import InputError
from cytoglot.resume import Parts


def test_best_confidence_and_top_by_hand() -> None:
    probabilities = LabelProbabilities(
        labels=("A", "B", "C"), probability_nk=np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    )
    assert list(probabilities.best) == ["B", "A"]  # the first of equals
    assert list(probabilities.confidence) == [0.5, 0.4]
    assert probabilities.top(2) == ["B (0.50), C (0.30)", "A (0.40), B (0.40)"]


def test_probabilities_are_the_scores_at_the_models_temperature(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:8])
    scores_nk = tiny_model.label_scores(sentences)
    for temperature in (0.5, 1.0, 4.0):
        model = tiny_model.with_calibration(Calibration(temperature=temperature))
        found = label_probabilities(model, sentences).probability_nk
        np.testing.assert_allclose(found, softmax(scores_nk / temperature, axis=1), atol=1e-5)


def test_held_out_cells_are_mostly_right(tiny_model: CellModel, cells: AnnData) -> None:
    assert tiny_model.folder is not None
    split = load_split(tiny_model.folder)
    assert split is not None
    held_out = cells[split.mask(cells.obs_names, "test")]
    best = annotate(held_out, tiny_model, copy=True).obs[f"{KEY}_best"].astype(str)
    assert (best.to_numpy() == held_out.obs["cell_type"].astype(str).to_numpy()).mean() > 0.7


def test_the_input_is_not_changed_unless_asked(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:6].copy()
    assert annotate(some, tiny_model, copy=True) is not some
    assert list(some.obs.columns) == list(cells.obs.columns)
    assert not some.uns
    assert annotate(some, tiny_model) is None
    assert KEY in some.obs
    assert some.uns["cytoglot"]["annotation"]["labels"] == list(tiny_model.spec.labels)


def test_labels_in_the_query_are_not_read(tiny_model: CellModel, cells: AnnData) -> None:
    lying = cells[:10].copy()
    lying.obs["cell_type"] = "type A"
    honest = annotate(cells[:10], tiny_model, copy=True).obsm["cytoglot_probabilities"]
    np.testing.assert_array_equal(annotate(lying, tiny_model, copy=True).obsm["cytoglot_probabilities"], honest)


def test_a_threshold_leaves_cells_unassigned_but_keeps_the_best_label(tiny_model: CellModel, cells: AnnData) -> None:
    doubtful = tiny_model.with_calibration(Calibration(temperature=1e6, threshold=0.5))  # all probabilities near 1/3
    obs = annotate(cells[:6], doubtful, copy=True).obs
    assert set(obs[KEY]) == {UNASSIGNED}
    assert set(obs[f"{KEY}_best"]) <= set(doubtful.spec.labels)
    assert set(annotate(cells[:6], doubtful, threshold=0.0, copy=True).obs[KEY]) <= set(doubtful.spec.labels)


def test_the_calibrated_threshold_is_for_the_models_own_labels(tiny_model: CellModel, cells: AnnData) -> None:
    doubtful = tiny_model.with_calibration(Calibration(temperature=1e6, threshold=0.9))
    obs = annotate(cells[:6], doubtful, labels=("B cell", "T cell"), copy=True).obs
    assert UNASSIGNED not in set(obs[KEY])


def test_labels_get_their_cell_ontology_terms(tiny_model: CellModel, cells: AnnData) -> None:
    annotated = annotate(cells[:6], tiny_model, labels=("B cell", "no such cell at all"), copy=True)
    assert set(annotated.obs[f"{KEY}_ontology_term_id"]) <= {"CL:0000236", "unknown"}
    assert annotated.uns["cytoglot"]["annotation"]["labels_without_ontology_term"] == ["no such cell at all"]


def test_fewer_than_two_labels_are_refused(tiny_model: CellModel, cells: AnnData) -> None:
    unlabelled = replace(tiny_model, spec=replace(tiny_model.spec, labels=(), label_counts=()))
    with pytest.raises(InputError, match="at least two distinct labels, found 0; pass --labels FILE"):
        annotate(cells[:2], unlabelled, copy=True)
    with pytest.raises(InputError, match="at least two distinct labels, found 2"):
        annotate(cells[:2], tiny_model, labels=("B cell", "B cell"), copy=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("B cell", r"labels must be a list, found one text; pass \['B cell', \.\.\.\]"),
        (["B", float("nan")], "labels must be texts or numbers, found nan; leave out what stands for no label"),
        (["B", None], "labels must be texts or numbers, found None"),
        ([1, 1.0], "at least two distinct labels"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(labels: Any, message: str, tiny_model: CellModel, cells: AnnData) -> None:
    with pytest.raises(InputError, match=message):
        annotate(cells[:2], tiny_model, labels=labels, copy=True)


def test_numbers_are_labels_as_in_obs(tiny_model: CellModel, cells: AnnData) -> None:
    changed = annotate(cells[:5], tiny_model, labels=[1, 2.0, np.int64(3)], copy=True)
    assert list(changed.obsm["cytoglot_probabilities"].columns) == ["1", "2", "3"]


def test_a_key_that_is_no_text_is_refused(tiny_model: CellModel, cells: AnnData) -> None:
    with pytest.raises(InputError, match="key_added must be a text, found 3"):
        annotate(cells[:2], tiny_model, key_added=3, copy=True)  # type: ignore[arg-type]


def test_free_answers_are_read_and_others_left_unassigned(tiny_model: CellModel, cells: AnnData) -> None:
    obs = annotate(cells[:8], tiny_model, method="generate", copy=True).obs
    assert set(obs[KEY]) <= {*tiny_model.spec.labels, UNASSIGNED}
    for label, text in zip(obs[KEY], obs[f"{KEY}_text"], strict=True):
        assert label == UNASSIGNED or label.lower() in text.lower()


def with_empty_cells(cells: AnnData) -> AnnData:
    """Return twelve cells, of which the first has no counts and the third none of the model's genes."""
    counts_ng = cells[:12].X.toarray()
    counts_ng[[0, 2]] = 0
    foreign_n1 = np.zeros((12, 1), counts_ng.dtype)
    foreign_n1[2] = 5
    var = pd.DataFrame(index=[*cells.var_names, "OTHER"])
    return AnnData(csr_matrix(np.hstack([counts_ng, foreign_n1])), obs=cells.obs[:12], var=var)


@pytest.mark.parametrize("method", ["score", "generate"])
def test_a_cell_without_a_gene_of_the_model_is_unassigned_and_counted(
    tiny_model: CellModel, cells: AnnData, method: Literal["score", "generate"]
) -> None:
    some = with_empty_cells(cells)
    found = annotate(some, tiny_model, method=method, threshold=0.0, copy=True)
    assert list(found.obs[KEY].iloc[[0, 2]]) == [UNASSIGNED, UNASSIGNED]
    record = found.uns["cytoglot"]["annotation"]
    assert record["cells_without_genes"] == 2
    if method == "score":
        assert UNASSIGNED not in set(found.obs[KEY].drop(found.obs_names[[0, 2]]))
        assert np.flatnonzero(found.obs[f"{KEY}_confidence"].isna()).tolist() == [0, 2]
        assert np.flatnonzero(found.obsm["cytoglot_probabilities"].isna().all(axis=1)).tolist() == [0, 2]
        others = annotate(cells[[1, 3, 4]], tiny_model, copy=True).obsm["cytoglot_probabilities"]
        np.testing.assert_allclose(found.obsm["cytoglot_probabilities"].iloc[[1, 3, 4]], others, atol=1e-6)


def test_all_cells_without_genes(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    none = cells[:4].copy()
    none.X = none.X * 0
    for method in ("score", "generate"):
        found = annotate(none, tiny_model, method=method, output=tmp_path / "o.h5ad", copy=True)  # type: ignore[arg-type]
        assert set(found.obs[KEY]) == {UNASSIGNED}
        assert found.uns["cytoglot"]["annotation"]["cells_without_genes"] == 4


ODD = ("T", "T/NK", ".", "_index", "x" * 300, "50% T")


def test_labels_that_cannot_be_columns_are_refused_before_scoring_or_escaped(
    tiny_model: CellModel, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, output = cells[:4].copy(), tmp_path / "o.h5ad"
    with monkeypatch.context() as patched:
        patched.setattr(CellModel, "label_scores", None)
        for bad in ("T/NK", ".", "_index", "", "x" * 300):
            with pytest.raises(InputError, match="1 labels cannot name a column of a file, such as"):
                annotate(some, tiny_model, labels=("T", bad), output=output, copy=True)
        with pytest.raises(InputError, match=r"found 'a.*0b' with U.0000 or half a character"):
            annotate(some, tiny_model, labels=("T", "a\0b"), escape_labels=True, copy=True)
        named = some.copy()
        named.obs_names.name = "T"
        with pytest.raises(InputError, match="the index of obs is called 'T', as a label is"):
            annotate(named, tiny_model, labels=("T", "B"), copy=True)
    annotate(some, tiny_model, labels=ODD, escape_labels=True, threshold=0.0, output=output, copy=True)
    found = anndata.read_h5ad(output)
    columns = list(found.obsm["cytoglot_probabilities"].columns)
    assert columns[:4] == ["T", "T%2FNK", "%2E", "%5Findex"]
    assert len(set(columns)) == len(ODD)
    assert list(found.uns["cytoglot"]["annotation"]["labels"]) == list(ODD)
    best = found.obsm["cytoglot_probabilities"].to_numpy().argmax(axis=1)
    assert list(found.obs[KEY]) == [ODD[k] for k in best]


def test_what_cannot_be_written_is_refused_before_scoring(
    tiny_model: CellModel, cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellModel, "label_scores", None)
    named = cells[:4].copy()
    named.uns["cytoglot"] = "a word"
    with pytest.raises(InputError, match=r"expected a mapping in uns\['cytoglot'\], found a value"):
        annotate(named, tiny_model, copy=True)
    with pytest.raises(InputError, match="unknown field of the context 'tisue'; did you mean 'tissue'"):
        annotate(cells[:4], tiny_model, context={"tisue": "lung"}, copy=True)
    with pytest.raises(InputError, match="expected a text for tissue of the context, found ''"):
        annotate(cells[:4], tiny_model, context={"tissue": ""}, copy=True)


def test_a_backed_file_is_annotated_in_memory(tiny_model: CellModel, cells: AnnData, cells_file: Path) -> None:
    backed = anndata.read_h5ad(cells_file, backed="r")[:20]
    found = annotate(backed, tiny_model, copy=True)
    assert not found.isbacked
    assert list(found.obs[KEY]) == list(annotate(cells[:20], tiny_model, copy=True).obs[KEY])
    with pytest.raises(InputError, match="found a view of a backed one; pass copy=True"):
        annotate(backed, tiny_model)
    whole = anndata.read_h5ad(cells_file, backed="r")
    annotate(whole, tiny_model)
    assert list(whole.obs[KEY][:20]) == list(found.obs[KEY])
    assert KEY not in anndata.read_h5ad(cells_file).obs, "the file itself is not changed"
    whole.file.close()


def test_a_view_becomes_an_anndata_of_its_own(tiny_model: CellModel, cells: AnnData) -> None:
    whole = cells[:9].copy()
    view = whole[2:5]
    annotate(view, tiny_model)
    embed(view, tiny_model)
    assert not view.is_view
    assert view.n_obs == 3
    assert KEY in view.obs
    assert "X_cytoglot" in view.obsm
    assert KEY not in whole.obs
    assert not whole.uns


def test_two_models_stand_side_by_side_in_one_file(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    some = cells[:6].copy()
    annotate(some, tiny_model)
    annotate(some, tiny_model, labels=("B cell", "T cell"), key_added="other")
    embed(some, tiny_model)
    embed(some, tiny_model, key_added="X_other", hidden_layer=0)
    some.write_h5ad(tmp_path / "a.h5ad")
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert list(found.obsm["cytoglot_probabilities"].columns) == list(tiny_model.spec.labels)
    assert list(found.obsm["other_probabilities"].columns) == ["B cell", "T cell"]
    assert set(found.obs["other_cell_type"]) <= {"B cell", "T cell"}
    records = found.uns["cytoglot"]
    assert set(records) == {"annotation", "annotation_other", "embedding", "embedding_X_other"}
    assert list(records["annotation_other"]["labels"]) == ["B cell", "T cell"]
    assert records["embedding_X_other"]["hidden_layer"] == 0
    # Under the same key the newer replaces the older, and leaves nothing of it.
    annotate(found, tiny_model, key_added="other", method="generate")
    assert "other_probabilities" not in found.obsm
    assert "other_cell_type_confidence" not in found.obs
    assert "cytoglot_cell_type_confidence" in found.obs


def test_a_key_that_cannot_be_used_or_is_taken_is_refused_before_scoring(
    tiny_model: CellModel, cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellModel, "sentences", None)
    some = cells[:4].copy()
    for verb in (annotate, embed):
        for bad in ("a/b", "", "x" * 300):
            with pytest.raises(InputError, match="key_added must give names without '/'"):
                verb(some, tiny_model, key_added=bad)
    some.obs["mine_cell_type"], some.obsm["mine"] = "T cell", np.zeros((4, 2))
    with pytest.raises(InputError, match=r"obs\['mine_cell_type'\] is there already and cytoglot did not write it"):
        annotate(some, tiny_model, key_added="mine")
    with pytest.raises(InputError, match=r"obsm\['mine'\] is there already"):
        embed(some, tiny_model, key_added="mine")
    some.obs_names.name = "cytoglot_cell_type_top"
    with pytest.raises(InputError, match="the index of obs is called 'cytoglot_cell_type_top'"):
        annotate(some, tiny_model)
    for foreign in ("a word", {"annotation": 3, "embedding": "x"}):
        some.uns["cytoglot"] = foreign
        for verb in (annotate, embed):
            with pytest.raises(InputError, match=r"expected a (mapping|record) in uns\['cytoglot'\]"):
                verb(some, tiny_model)


def test_other_things_in_uns_are_kept(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:3].copy()
    some.uns["cytoglot"] = {"theirs": [1, 2], 7: None}
    annotate(some, tiny_model)
    embed(some, tiny_model)
    assert some.uns["cytoglot"]["theirs"] == [1, 2]


def test_names_of_nullable_texts_are_written(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    some = cells[:4].copy()
    some.obs_names, some.var_names = some.obs_names.astype("string"), some.var_names.astype("string")
    annotate(some, tiny_model, output=tmp_path / "o.h5ad", copy=True)
    assert list(anndata.read_h5ad(tmp_path / "o.h5ad").obs_names) == list(cells.obs_names[:4])


class KilledError(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("method", ["score", "generate"])
def test_a_killed_annotation_goes_on_and_ends_with_the_same_bytes(
    tiny_model: CellModel,
    cells: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Literal["score", "generate"],
) -> None:
    options: dict[str, Any] = {"method": method, "chunk_cells": 7}
    annotate(cells[:40], tiny_model, output=tmp_path / "whole.h5ad", **options, copy=True)
    write, done = Parts.write, []

    def die_at_part_3(self: Parts, number: int, table: Any) -> None:
        if number == 3:
            raise KilledError
        done.append(number)
        write(self, number, table)

    broken = tmp_path / "broken.h5ad"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", die_at_part_3)
        with pytest.raises(KilledError):
            annotate(cells[:40], tiny_model, output=broken, **options, copy=True)
    assert not broken.exists()
    with pytest.raises(InputError, match=r"unfinished broken.h5ad, made with another data; repeat"):
        annotate(cells[1:40], tiny_model, output=broken, **options, copy=True)
    other = replace(tiny_model, spec=replace(tiny_model.spec, tie_rates=None))
    with pytest.raises(InputError, match=r"made with .*another model"):
        annotate(cells[:40], other, output=broken, **options, copy=True)
    with pytest.raises(InputError, match=r"made with context.*, top_k 3 \(now 2\); repeat"):
        annotate(cells[:40], tiny_model, output=broken, top_k=2, context={"tissue": "lung"}, **options, copy=True)
    monkeypatch.setattr(Parts, "write", lambda self, number, table: (done.append(number), write(self, number, table)))
    annotate(cells[:40], tiny_model, output=broken, **options, copy=True)
    assert done == [0, 1, 2, 3, 4, 5], "no cell is asked about twice"
    assert broken.read_bytes() == (tmp_path / "whole.h5ad").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.h5ad", "whole.h5ad"]


def test_files_and_folders_are_taken_as_they_are(
    tiny_model: CellModel, tiny_model_folder: Path, cells: AnnData, cells_file: Path, tmp_path: Path
) -> None:
    expected = annotate(cells, tiny_model, copy=True)
    found = annotate(cells_file, tiny_model_folder, copy=True)
    assert found is not None
    np.testing.assert_allclose(found.obsm["cytoglot_probabilities"], expected.obsm["cytoglot_probabilities"], atol=1e-6)
    assert annotate(str(cells_file), tiny_model, output=tmp_path / "o.h5ad") is None
    written = anndata.read_h5ad(tmp_path / "o.h5ad")
    assert list(written.obs[KEY]) == list(found.obs[KEY])
    vectors_nd = embed(written, tiny_model, copy=True).obsm["X_cytoglot"]
    assert embed(tmp_path / "o.h5ad", str(tiny_model_folder), output=tmp_path / "e.h5ad") is None
    embedded = anndata.read_h5ad(tmp_path / "e.h5ad")
    assert KEY in embedded.obs
    np.testing.assert_allclose(embedded.obsm["X_cytoglot"], vectors_nd, atol=1e-5)
    embed(written, tiny_model, output=tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet").column_names == ["cell_id", "X_cytoglot"]
    np.testing.assert_allclose(embed(cells_file, tiny_model, copy=True).obsm["X_cytoglot"], vectors_nd, atol=1e-5)
    for verb in (annotate, embed):
        with pytest.raises(InputError, match="is a file, which is not changed; pass copy=True"):
            verb(cells_file, tiny_model)
        with pytest.raises(InputError, match="neither a file or folder nor the name of a data set"):
            verb(tmp_path / "none.h5ad", tiny_model, copy=True)
    with pytest.raises(InputError, match=r"the output must end in .h5ad or .parquet, found '.*o.csv'"):
        embed(cells_file, tiny_model, output=str(tmp_path / "o.csv"))


def test_a_plain_language_model_annotates_with_given_labels(
    tiny_model: CellModel, tiny_model_folder: Path, cells: AnnData, tmp_path: Path
) -> None:
    some, labels = cells[:5].copy(), ["B cell", "T cell"]
    tiny_model.lm.save(tmp_path / "plain")
    lm = cg.load_model(tmp_path / "plain", device="cpu")
    annotate(some, lm, labels=labels)
    assert set(some.obs[KEY]) <= set(labels)
    np.testing.assert_allclose(some.obsm["cytoglot_probabilities"].sum(axis=1), 1, atol=1e-6)
    by_name = annotate(cells[:5], tmp_path / "plain", labels=labels, copy=True)
    np.testing.assert_allclose(by_name.obsm["cytoglot_probabilities"], some.obsm["cytoglot_probabilities"], atol=1e-6)
    embed(some, lm)
    assert some.obsm["X_cytoglot"].shape == (5, 32)
    with pytest.raises(InputError, match=r"was not trained by cytoglot, .*pass labels="):
        annotate(some, lm)
    with pytest.raises(InputError, match="was not trained by cytoglot"):
        cg.generate(lm, n=1)
    # What was loaded from a folder of ours knows its genes and labels.
    same = cg.load_model(tiny_model_folder, device="cpu")
    annotate(some, same)
    assert list(some.uns["cytoglot"]["annotation"]["labels"]) == list(tiny_model.spec.labels)
    assert cg.generate(same, "type A", n=1).n_vars == len(tiny_model.spec.vocabulary)
    assert cg.gene_embeddings(tiny_model_folder).n_obs == len(tiny_model.spec.vocabulary)


# One label per cluster, and CSV


def _majority(labels: str, probability_nk: list[list[float]] | None = None) -> tuple[str, float]:
    """Return the label and the share of one cluster; U is unassigned."""
    names = np.array([UNASSIGNED if label == "U" else label for label in labels], dtype=object)
    table = None if probability_nk is None else pd.DataFrame(probability_nk, columns=["A", "B"])
    (row,) = majority_labels(names, pd.Series(["c"] * len(names), dtype=object), ("A", "B"), table).to_records()
    assert row["cells"] == len(names)
    return row["label"], row["share"]


def test_the_label_of_a_cluster_is_that_of_most_cells() -> None:
    assert _majority("AABBB") == ("B", 0.6)
    assert _majority("ABUUU") == (UNASSIGNED, 0.6)
    assert _majority("UU") == (UNASSIGNED, 1.0)


def test_ties_of_a_cluster_go_by_probability_then_order_and_unassigned_loses() -> None:
    assert _majority("AB", [[0.6, 0.4], [0.1, 0.9]]) == ("B", 0.5)
    assert _majority("AB", [[0.6, 0.4], [0.4, 0.6]]) == ("A", 0.5)
    assert _majority("BA") == ("A", 0.5)
    assert _majority("BBUU", [[0.6, 0.4]] * 4) == ("B", 0.5)
    assert _majority("ABBU", [[0.9, 0.1]] * 4) == ("B", 0.5), "probabilities decide between equals alone"
    assert _majority("AUB", [[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9]]) == ("B", 1 / 3)


def test_clusters_get_their_majority_and_cells_keep_their_own(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:60].copy()
    some.obs["cluster"] = some.obs["cell_type"].astype(object)
    some.obs.iloc[:4, some.obs.columns.get_loc("cluster")] = [None, "unknown", "", np.nan]
    plain = annotate(some, tiny_model, copy=True)
    voted = annotate(some, tiny_model, by="cluster", copy=True)
    pd.testing.assert_series_equal(voted.obs[KEY], plain.obs[KEY])
    own, majority = voted.obs[KEY].astype(str), voted.obs[f"{KEY}_majority"].astype(str)
    share = voted.obs[f"{KEY}_majority_share"]
    assert list(majority[:4]) == list(own[:4])
    assert share[:4].isna().all()
    for name in cells.obs["cell_type"].unique():
        inside = (voted.obs["cluster"] == name).to_numpy()
        (label,) = set(majority[inside])
        assert label == own[inside].value_counts().idxmax()
        assert set(share[inside]) == {(own[inside] == label).mean()}
    assert voted.uns["cytoglot"]["annotation"]["by"] == "cluster"
    annotate(voted, tiny_model)
    assert f"{KEY}_majority" not in voted.obs, "what another call wrote does not stay"


def test_free_answers_have_a_majority_too(tiny_model: CellModel, cells: AnnData) -> None:
    voted = annotate(cells[:12], tiny_model, method="generate", by="donor", copy=True)
    assert set(voted.obs[f"{KEY}_majority"]) <= {*tiny_model.spec.labels, UNASSIGNED}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("clusters", "obs has no column 'clusters'; .*did you mean 'cluster'"),
        ("empty", "needs a column of clusters, 'empty' holds no value"),
        ("barcode", "'barcode' holds 6 values, each of a single cell; pass another --by"),
        (f"{KEY}_best", "is a column that this call writes"),
    ],
)
def test_a_column_without_clusters_is_refused(column: str, message: str, tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:6].copy()
    some.obs["cluster"], some.obs["empty"], some.obs["barcode"] = "1", "unknown", some.obs_names
    with pytest.raises(InputError, match=message):
        annotate(some, tiny_model, by=column)


def test_a_csv_holds_what_was_added(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    some = cells[:20].copy()
    some.X = csr_matrix(some.X.toarray() * (np.arange(20) != 3)[:, None])
    labels = ["B cell", "T/NK, other"]
    path = tmp_path / "labels.csv"
    annotate(some, tiny_model, labels=labels, by="donor", escape_labels=True, output=path)
    table = pd.read_csv(path, index_col="cell_id")
    assert list(table.index) == list(some.obs_names)
    columns = [KEY, f"{KEY}_best", f"{KEY}_confidence", f"{KEY}_top", f"{KEY}_ontology_term_id"]
    columns += [f"{KEY}_majority", f"{KEY}_majority_share", *(f"probability: {label}" for label in labels)]
    assert list(table) == columns
    assert list(table[KEY]) == list(some.obs[KEY].astype(str))
    np.testing.assert_array_equal(table.iloc[:, -2:].to_numpy(), some.obsm["cytoglot_probabilities"].to_numpy())
    assert list(np.flatnonzero(table[f"{KEY}_confidence"].isna())) == [3]
    written = path.read_bytes()
    annotate(some, tiny_model, labels=labels, by="donor", escape_labels=True, output=path)
    assert path.read_bytes() == written


def test_another_ending_of_the_output_is_refused(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.h5ad or \.csv, found 'labels.tsv'"):
        annotate(cells[:5].copy(), tiny_model, output=tmp_path / "labels.tsv")
