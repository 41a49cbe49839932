from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import pearsonr, spearmanr

import cytoglot as cg
from cytoglot.applications import reconstruction_passes
from cytoglot.applications.reconstruction import ReconstructionResult, reconstruct
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.hvg import select_hvg
from cytoglot.data.normalize import normalize_log
from cytoglot.data.splits.split import Split
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError
from cytoglot.sentence.curve_score import CurveScore
from cytoglot.sentence.encode import encode
from cytoglot.sentence.fit_curves import fit_rank_curves
from cytoglot.sentence.rank_curve import CURVE_KINDS, predict_words, rank_curve_from_dict


def cells() -> AnnData:
    return make_cells(n_cells=150, n_genes=400, seed=3)


@pytest.fixture(scope="module")
def result() -> ReconstructionResult:
    return reconstruct(cells(), hvg=100, split_by="donor", chunk_cells=40)


def row(rows: list[CurveScore], curve: str, *, genes: str = "full", scope: str = "expressed", held_out: bool = True):
    (found,) = [
        r for r in rows if (r["curve"], r["genes"], r["scope"], r["held_out"]) == (curve, genes, scope, held_out)
    ]
    return found


def test_there_is_one_row_for_each_curve_sentences_scope_and_part(result):
    assert len(result.curves) == len(CURVE_KINDS) * 2 * 2 * 2
    for r in result.curves:
        assert set(r) == {
            "curve", "genes", "scope", "held_out", "r2", "pearson", "spearman", "n", "n_spearman",
        }  # fmt: skip
        assert r["r2"] <= 1
        assert -1 <= r["spearman"] <= 1


def test_whole_donors_are_held_out(result):
    donor = cells().obs["donor"]
    train, test = set(donor[list(result.split.train)]), set(donor[list(result.split.test)])
    assert not train & test
    assert result.split.by == "donor"


def test_curves_are_fitted_on_training_cells_alone_and_scored_on_the_others(result):
    adata = cells()
    train, test = (adata[result.split.mask(adata.obs_names, part)] for part in ("train", "test"))
    log = {part.n_obs: normalize_log(part.X) for part in (train, test)}
    fitted = fit_rank_curves(CURVE_KINDS, encode(train), log[train.n_obs])
    sentences = encode(test)
    observed = log[test.n_obs].toarray()[sentences.cells(), sentences.gene_ids].astype(np.float64)
    for kind, curve in fitted.items():
        predicted = predict_words(curve, sentences).astype(np.float64)
        found = row(result.curves, kind)
        assert found["n"] == len(observed)
        assert found["r2"] == pytest.approx(
            1 - ((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum(), abs=1e-5
        )
        assert found["pearson"] == pytest.approx(pearsonr(observed, predicted)[0], abs=1e-5)
        assert found["spearman"] == pytest.approx(spearmanr(observed, predicted)[0], abs=1e-4)
        assert row(result.curves, kind, scope="all")["n"] == test.n_obs * test.n_vars


def test_highly_variable_genes_are_chosen_on_training_cells_and_normalized_by_all_genes(result):
    adata = cells()
    train = adata[result.split.mask(adata.obs_names, "train")].copy()
    chosen = select_hvg(train, n_top=100)
    hvg = next(f for f in result.fitted if f.sentences.name == "hvg")
    assert list(hvg.sentences.vocabulary.symbols) == chosen
    log = normalize_log(train.X)[:, train.var_names.get_indexer(chosen)]
    expected = fit_rank_curves(["line"], encode(train, genes=chosen), log)["line"]
    assert hvg.curves["line"].coefficients == pytest.approx(expected.coefficients, abs=1e-5)


def test_the_result_does_not_depend_on_the_chunks_or_on_file_or_memory(result, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells().write_h5ad(path)
    again = reconstruct(path, hvg=100, split_by="donor", chunk_cells=1000)
    for one, other in zip(result.curves, again.curves, strict=True):
        assert {k: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for k, v in one.items()} == other


def test_log_values_give_the_scores_of_counts(result):
    adata = cells()
    adata.X = normalize_log(adata.X, base=np.e)
    again = reconstruct(adata, split_by="donor", kinds=["line", "gene_lines"])
    for kind in ("line", "gene_lines"):
        assert row(again.curves, kind)["r2"] == pytest.approx(row(result.curves, kind)["r2"], abs=1e-3)


@pytest.mark.parametrize("ties", ["random", "rare_first", "common_first"])
def test_every_tie_rule_works_with_rates_of_training_cells(result, ties):
    adata = cells()
    other = reconstruct(adata, split=result.split, ties=ties, hvg=50, kinds=["isotonic"], chunk_cells=37)
    rates = other.fitted[0].sentences.tie_rates
    if ties == "random":
        assert rates is None
    else:
        train = adata[result.split.mask(adata.obs_names, "train")]
        assert rates == pytest.approx(np.asarray((train.X > 0).mean(axis=0)).ravel(), abs=1e-6)
    assert row(other.curves, "isotonic")["n"] == row(result.curves, "isotonic")["n"]


def test_validation_cells_of_a_given_split_take_no_part(result):
    names = list(cells().obs_names)
    split = Split(
        train=tuple(names[:90]), validation=tuple(names[90:120]), test=tuple(names[120:]), by="cell", seed=0,
        fractions=(0.6, 0.2, 0.2),
    )  # fmt: skip
    found = reconstruct(cells(), split=split, kinds=["line"])
    assert row(found.curves, "line", scope="all")["n"] == 30 * 400
    assert row(found.curves, "line", scope="all", held_out=False)["n"] == 90 * 400


def test_the_folder_holds_rows_curves_and_two_plots(result, tmp_path):
    result.write(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert stored["curves"] == result.curves
    assert stored["split"] == {
        "by": "donor", "n_train": len(result.split.train), "n_held_out": len(result.split.test),
        "warnings": list(result.split.warnings),
    }  # fmt: skip
    assert stored["genes"] == {"full": 400, "hvg": 100}
    assert stored["manifest"]["command"] == "reconstruct"
    curves = json.loads((tmp_path / "out" / "rank_curves.json").read_text())
    for fitted in result.fitted:
        of_genes = curves[fitted.sentences.name]
        assert GeneVocabulary.from_dict(of_genes["vocabulary"]) == fitted.sentences.vocabulary
        for kind, curve in fitted.curves.items():
            assert rank_curve_from_dict(of_genes["curves"][kind]).to_dict() == curve.to_dict()
    for name in ("log_rank_expression.png", "reconstructed.png"):
        image = (tmp_path / "out" / name).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 20_000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "curves.json", "log_rank_expression.png", "rank_curves.json", "reconstructed.png",
    ]  # fmt: skip


def test_plots_are_drawn_from_a_sample_of_held_out_words(monkeypatch):
    monkeypatch.setattr(reconstruction_passes, "PLOT_WORDS", 500)
    found = reconstruct(cells(), split_by="cell", kinds=["line"])
    assert 0 < len(found.points["full"]) < 2000
    assert len(found.points["full"]["line"]) == len(found.points["full"])


def test_the_input_is_not_changed():
    adata = cells()
    before = adata.copy()
    reconstruct(adata, split_by="cell", hvg=50, kinds=["line", "gene_lines"])
    assert (adata.X != before.X).nnz == 0
    assert adata.obs.equals(before.obs)
    assert adata.uns.keys() == before.uns.keys()


def test_a_split_of_other_cells_is_refused():
    split = Split(train=("x",), test=("y",), by="cell", seed=0, fractions=(0.5, 0.0, 0.5))
    with pytest.raises(InputError, match="needs training and held-out cells, found 0 and 0 of 150 cells"):
        reconstruct(cells(), split=split)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        reconstruct(tmp_path / "nowhere.h5ad")


def test_it_is_public():
    assert cg.reconstruct is reconstruct


@pytest.mark.data
def test_our_curves_beat_the_reference_line_on_real_held_out_cells(data_path):
    path: Path = data_path("kang_ifnb_pbmc_832_fullgenes.h5ad")
    found = reconstruct(path, split_by="donor", kinds=["peer_line", "line", "isotonic_length", "gene_lines_length"])
    r2 = {r["curve"]: r["r2"] for r in found.curves if r["held_out"] and r["scope"] == "expressed"}
    assert r2["peer_line"] < r2["isotonic_length"]
    assert r2["gene_lines_length"] > 0.95
