"""Who is judged on what: never a training cell, controls beside it, and what cannot be shown is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from cytoglot.benchmark.evaluate import EvaluateSettings, Evaluation, evaluate
from cytoglot.benchmark.held_out import held_out_cells, with_reference
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import load_split
from cytoglot.data.readers.read import read
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError

QUICK = EvaluateSettings(control=False, generation=False, probe=False, maps=False)


@pytest.fixture(scope="module")
def split(tiny_model: CellModel) -> Split:
    found = load_split(tiny_model.folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def evaluation(cells: AnnData, tiny_model: CellModel, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """With baselines, probe and control, without generation and maps."""
    out = tmp_path_factory.mktemp("evaluate") / "evaluation"
    settings = EvaluateSettings(generation=False, maps=False)
    return evaluate(cells, tiny_model, out=out, settings=settings, seed=0, device="cpu")


def _read(evaluation: Evaluation, name: str) -> dict:
    return json.loads((evaluation.folder / name).read_text())


def test_the_control_is_at_chance_and_the_model_above_it(evaluation: Evaluation) -> None:
    accuracy = {row.method: row for row in evaluation.results if row.metric == "accuracy"}
    control, ours = accuracy["control: shuffled labels"], accuracy["cytoglot"]
    assert control.value < 1 / 3 + 0.25  # below chance it tells as little
    assert ours.value > max(control.value, accuracy["majority"].value) + 0.3
    assert {row.n for row in accuracy.values()} == {ours.n}, "all methods answer for the same cells"


def test_only_test_cells_are_judged(evaluation: Evaluation, split: Split) -> None:
    judged = pd.read_parquet(evaluation.folder / "predictions.parquet")
    assert set(judged["cell_id"]) == set(split.test)
    (accuracy,) = [r for r in evaluation.results if (r.method, r.metric) == ("cytoglot", "accuracy")]
    assert accuracy.value == (judged["truth"] == judged["predicted: cytoglot"]).mean()
    assert accuracy.n == len(split.test)


def test_differences_are_against_every_other_method(evaluation: Evaluation) -> None:
    methods = {row.method for row in evaluation.results if row.metric == "accuracy"}
    others = {name for name in methods if not name.startswith("cytoglot")}
    differences = {row.method for row in evaluation.results if row.metric == "accuracy_difference"}
    assert {"cytoglot", "cytoglot hybrid", "cytoglot head", "cytoglot linear probe"} <= methods
    assert differences == {f"{ours} - {other}" for ours in methods - others for other in others}


def test_the_folder_holds_what_the_report_reads(evaluation: Evaluation, split: Split) -> None:
    card = _read(evaluation, "data_card.json")
    assert (card["n_train"], card["n_test"]) == (len(split.train), len(split.test))
    assert card["labels_unseen_in_training"] == []
    confusion = _read(evaluation, "confusion.json")
    assert np.sum(confusion["counts"]) == len(split.test)
    assert not list(evaluation.folder.parent.glob(".*")), "the control leaves nothing after"


def test_the_folder_says_whether_the_model_knows_more_than_the_type(
    cells: AnnData, tiny_model: CellModel, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"generation": True, "max_generated": 5})
    found = evaluate(cells, tiny_model, out=tmp_path / "out", settings=settings, device="cpu")
    results, generation = _read(found, "results.json"), _read(found, "generation.json")
    assert found.verdict is not None
    assert {name: results[name] for name in ("knows_more_than_type", "verdict")} == found.verdict.to_dict()
    nats = {row["method"]: row["value"] for row in results["results"] if row["metric"] == "nats_per_word"}
    assert nats["cytoglot"] is not None, "ties are drawn at random for both, and the model gives probabilities"
    assert nats["plackett_luce_draw"] is not None
    assert len(generation["markers"]) == 3 * 4
    held_out = [entry for entry in generation["per_type"] if entry["method"] == "held_out_cells"]
    assert [entry["c2st_auc"] for entry in held_out] == [None] * 3


def test_training_cells_are_refused(cells: AnnData, tiny_model: CellModel, split: Split) -> None:
    used = read(cells[~split.mask(cells.obs_names, "test")])
    with pytest.raises(
        InputError, match=r"no cell to evaluate on: \d+ of \d+ cells have a label, .* pass held-out cells"
    ):
        held_out_cells(used, tiny_model, label=None)


def test_training_cells_are_set_aside_among_new_ones(cells: AnnData, tiny_model: CellModel, split: Split) -> None:
    mixed = cells.copy()
    fresh = split.mask(cells.obs_names, "test")
    mixed.obs_names = np.where(fresh, [f"new {name}" for name in cells.obs_names], cells.obs_names)
    held = held_out_cells(read(mixed), tiny_model, label=None)
    assert held.test.tolist() == np.flatnonzero(fresh).tolist()
    assert set(mixed.obs_names[held.train]) == set(split.train)


def _other_cells(cells: AnnData) -> AnnData:
    """As many other cells, under the same names."""
    other = cells.copy()
    other.X = csr_matrix(np.random.default_rng(5).permuted(cells.X.toarray(), axis=1))
    return other


def _changed(cells: AnnData, how: str) -> AnnData:
    changed = cells.copy()
    if how == "suffix":
        changed.obs_names = [f"{name}-1" for name in cells.obs_names]
    elif how == "numbers":
        changed.obs_names = [str(i) for i in range(cells.n_obs)]
    elif how == "dense, other order of cells and genes":
        rng = np.random.default_rng(0)
        changed = cells[rng.permutation(cells.n_obs), rng.permutation(cells.n_vars)].copy()
        changed.X = changed.X.toarray().astype(np.float64)
        changed.obs_names = [f"{name}-1" for name in changed.obs_names]
    elif how == "logarithms":
        changed.obs_names = [f"{name}-1" for name in cells.obs_names]
        changed.X = cells.X.multiply(1e4 / cells.X.sum(axis=1)).tocsr().log1p()
    return changed


@pytest.mark.parametrize("how", ["suffix", "numbers", "dense, other order of cells and genes", "logarithms"])
def test_training_cells_are_refused_however_they_are_named(
    how: str, cells: AnnData, tiny_model: CellModel, split: Split
) -> None:
    changed = _changed(cells, how)
    changed.obs["was"] = changed.obs_names.str.removesuffix("-1") if how != "numbers" else cells.obs_names
    held = held_out_cells(read(changed), tiny_model, label=None)
    was = changed.obs["was"].to_numpy()
    assert (set(was[held.train]), set(was[held.test])) == (set(split.train), set(split.test))
    assert held.matched.counts["renamed"] == cells.n_obs
    assert held.matched.counts["new"] == 0


def test_cells_of_another_file_with_the_same_names_are_refused_or_new(
    cells: AnnData, tiny_model: CellModel, tmp_path: Path
) -> None:
    other = _other_cells(cells)
    with pytest.raises(InputError, match=r"240 of 240 cells are named .* --new-cells \(new_cells=True\)"):
        evaluate(other, tiny_model, out=tmp_path / "out", settings=QUICK, device="cpu")
    assert list(tmp_path.iterdir()) == []
    found = evaluate(other, tiny_model, out=tmp_path / "out", settings=QUICK, new_cells=True, device="cpu")
    assert {row.n for row in found.results if row.metric == "accuracy"} == {240}
    assert (found.cells["other_content"], found.cells["new"], found.cells["train"]) == (240, 240, 0)
    assert _read(found, "data_card.json")["cells"] == found.cells


def test_a_file_that_has_changed_is_refused(cells: AnnData, tiny_model: CellModel) -> None:
    permuted = cells.copy()
    permuted.X = cells.X[np.random.default_rng(0).permutation(cells.n_obs)]
    with pytest.raises(InputError, match=r"2[34]\d of 240 cells are named .* the file has changed"):
        held_out_cells(read(permuted), tiny_model, label=None)
    held = held_out_cells(read(permuted), tiny_model, label=None, new_cells=True)
    assert held.matched.counts["new"] == 0, "all of them are cells of the training file, under names of others"


def test_a_model_of_an_earlier_version_knows_names_only_and_says_so(
    cells: AnnData, tiny_model: CellModel, split: Split, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_model.folder or "", folder)
    stored = json.loads((folder / "split.json").read_text())
    del stored["content"]
    (folder / "split.json").write_text(json.dumps(stored))
    held = held_out_cells(read(cells), replace(tiny_model, folder=folder), label=None)
    assert set(cells.obs_names[held.test]) == set(split.test)
    assert held.matched.messages[0].startswith("the model was written by an earlier version")


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: f"not {name}", r"^no label of the judged cells is known to the model, .*: 'not .*; it knows '"),
        (
            lambda name: f" {name.upper()}",
            r"; other spellings are not the same label, it has '(.*)' for '(?!\1)(?i:\1)'",
        ),
    ],
)
def test_labels_that_the_model_does_not_know_are_told(
    rename: Callable[[str], str], message: str, cells: AnnData, tiny_model: CellModel, tmp_path: Path
) -> None:
    other = cells.copy()
    other.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories(rename)
    found = evaluate(other, tiny_model, out=tmp_path / "e", settings=QUICK, device="cpu")
    assert re.search(message, found.messages[0]), found.messages
    assert len(found.unknown_labels) == 3
    (accuracy,) = [row.value for row in found.results if (row.method, row.metric) == ("cytoglot", "accuracy")]
    assert accuracy == 0


def test_cells_without_a_label_are_left_out(cells: AnnData, tiny_model: CellModel, split: Split) -> None:
    some = cells.copy()
    first = split.mask(cells.obs_names, "test").nonzero()[0][0]
    some.obs["cell_type"] = some.obs["cell_type"].astype(object)
    some.obs.iloc[first, some.obs.columns.get_loc("cell_type")] = None
    held = held_out_cells(read(some), tiny_model, label="cell_type")
    assert first not in held.test
    assert len(held.test) == len(split.test) - 1


def test_a_column_that_is_not_there_and_a_model_without_a_split(cells: AnnData, tiny_model: CellModel) -> None:
    adata = read(cells)
    with pytest.raises(InputError, match="no column 'celltype'; its columns are: 'cell_type', 'donor', 'batch'"):
        held_out_cells(adata, tiny_model, label="celltype")
    with pytest.raises(InputError, match="no stored split, so training cells cannot be told from others"):
        held_out_cells(adata, replace(tiny_model, folder=None), label=None)
    with pytest.raises(InputError, match="not trained on a label column; pass --label"):
        held_out_cells(adata, replace(tiny_model, spec=replace(tiny_model.spec, label_column=None)), label=None)


def test_another_file_is_judged_without_baselines_and_told_of_unseen_types(
    cells: AnnData, tiny_model: CellModel, tmp_path: Path
) -> None:
    other = _other_cells(cells)[:60].copy()
    other.obs_names = [f"elsewhere {i}" for i in range(60)]
    names = other.obs["cell_type"].astype(str).to_numpy(dtype=object)
    names[:5] = "type nobody knew"
    other.obs["annotation"] = names
    found = evaluate(other, tiny_model, label="annotation", out=tmp_path / "out", settings=QUICK, device="cpu")
    assert found.messages == [
        "60 of 60 cells are not of the model's training file and are judged as new",
        "5 of 60 judged cells have labels that the model does not know and count as wrong: 'type nobody knew'",
        "baselines and controls are not shown: the file holds no training cell of the model; pass the file that it was "
        "trained from as --reference (reference=)",
    ]
    assert (found.cells["new"], found.unknown_labels) == (60, ["type nobody knew"])
    annotation = [row for row in found.results if row.task == "annotation"]
    assert {(row.method, row.n) for row in annotation} == {(f"cytoglot{how}", 60) for how in ("", " hybrid", " head")}
    card = _read(found, "data_card.json")
    assert card["labels_unseen_in_training"] == ["type nobody knew"]
    assert (card["n_train"], card["n_test"]) == (0, 60)
    rows = _read(found, "per_class.json")
    (recall,) = [r["recall"] for r in rows if (r["method"], r["label"]) == ("cytoglot", "type nobody knew")]
    assert recall == 0, "an unseen type counts as missed"


# Another file, with the file of training beside it


def _other_file(cells: AnnData, split: Split) -> AnnData:
    """The test cells as a file of their own, with other names, other labels, fewer genes and one of its own."""
    other = cells[split.mask(cells.obs_names, "test"), 3:].copy()
    other.obs_names = [f"query {i}" for i in range(other.n_obs)]
    other.obs["author"] = other.obs["cell_type"].astype(str).str.replace("type", "cluster")
    other.obs = other.obs[["author"]]
    other.var_names = [*other.var_names[:-1], "OWN"]
    return other


NAMES = {"cluster A": "type A", "cluster B": "type B", "cluster C": "type C"}


def test_another_file_is_judged_beside_baselines_of_the_reference(
    cells: AnnData, tiny_model: CellModel, split: Split, tmp_path: Path
) -> None:
    other = _other_file(cells, split)
    found = evaluate(
        other,
        tiny_model,
        label="author",
        out=tmp_path / "out",
        settings=EvaluateSettings(maps=False),
        reference=cells,
        label_map=NAMES,
        device="cpu",
    )
    accuracy = {row.method: row for row in found.results if (row.task, row.metric) == ("annotation", "accuracy")}
    assert {row.n for row in accuracy.values()} == {other.n_obs}
    assert {"cytoglot linear probe", "majority", "logistic_regression", "control: shuffled labels"} <= set(accuracy)
    # Markers are shared, so what is learned on the reference holds for the other file; shuffled labels teach nothing.
    assert accuracy["logistic_regression"].value > 0.9
    assert accuracy["cytoglot"].value > accuracy["control: shuffled labels"].value + 0.3
    judged = pd.read_parquet(found.folder / "predictions.parquet")
    assert list(judged["cell_id"]) == list(other.obs_names)
    assert set(judged["truth"]) == set(NAMES.values())
    card = _read(found, "data_card.json")
    assert (card["n_train"], card["n_validation"], card["n_test"]) == (
        len(split.train),
        len(split.validation),
        other.n_obs,
    )
    assert card["n_cells"] == other.n_obs
    assert f"the baselines see the {cells.n_vars - 4} genes that both files have" in found.messages[-1]
    alone = evaluate(
        other, tiny_model, label="author", out=tmp_path / "alone", settings=QUICK, label_map=NAMES, device="cpu"
    )
    ours = pd.read_parquet(alone.folder / "predictions.parquet")["confidence: cytoglot"]
    np.testing.assert_allclose(ours, judged["confidence: cytoglot"], atol=1e-6)


def test_a_reference_must_hold_training_cells_of_the_same_kind(
    cells: AnnData, tiny_model: CellModel, split: Split
) -> None:
    held = held_out_cells(read(_other_file(cells, split)), tiny_model, label="author", label_map=NAMES)
    strangers = cells[split.mask(cells.obs_names, "test")].copy()
    with pytest.raises(InputError, match=r"none of the \d+ cells of the reference is a training cell of the model"):
        with_reference(held, read(strangers), tiny_model)
    with pytest.raises(InputError, match="reference holds log1p values and the judged file counts values"):
        with_reference(held, read(_changed(cells, "logarithms")), tiny_model)
    with pytest.raises(InputError, match="obs has no column 'cell_type'"):
        with_reference(held, read(AnnData(cells.X, obs=cells.obs[["donor"]], var=cells.var)), tiny_model)


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"cluster A": "typ A"}, "gives 'cluster A' the label 'typ A', which the model does not have; did you mean"),
        (
            {"type A": "cluster A", "type B": "cluster B"},
            "no label of column 'author' is in the label map, which has 'type A', 'type B'; the column has 'cluster A'",
        ),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(
    label_map: dict[str, str], message: str, cells: AnnData, tiny_model: CellModel, split: Split
) -> None:
    with pytest.raises(InputError, match=message):
        held_out_cells(read(_other_file(cells, split)), tiny_model, label="author", label_map=label_map)


def test_a_label_map_renames_leaves_out_and_keeps(cells: AnnData, tiny_model: CellModel, split: Split) -> None:
    other = read(_other_file(cells, split))
    names = {"label": "of the model", "cluster A": "type B", "cluster B": "", "cluster Z": "type A"}
    held = held_out_cells(other, tiny_model, label="author", label_map=names)
    author = other.obs["author"].to_numpy()
    assert set(held.labels[author == "cluster A"]) == {"type B"}
    assert set(held.labels[author == "cluster B"]) == {None}
    assert set(held.labels[author == "cluster C"]) == {"cluster C"}
    assert held.test.tolist() == np.flatnonzero(author != "cluster B").tolist()
    assert held.messages[0] == "1 labels of the label map are not in column 'author': 'cluster Z'"
    n_left_out = (author == "cluster B").sum()
    assert held.messages[1] == f"{n_left_out} cells are left out, as the label map gives them no label"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "grpo"}, "not shown: alignment learns from rewards and not from labels"),
        ({}, "not shown: its base model .* has learned labels of these cells; evaluate that one"),
        ({"model": {"base": "moved"}}, "not shown: no folder 'moved' here"),
    ],
)
def test_where_a_control_would_tell_nothing_it_is_not_made(
    changes: dict, message: str, cells: AnnData, tiny_model: CellModel, tmp_path: Path
) -> None:
    recipe = tiny_model.spec.manifest["config"]["recipe"]
    recipe = {**recipe, "model": {**recipe["model"], "base": str(tiny_model.folder)}, **changes}
    spec = replace(tiny_model.spec, manifest={**tiny_model.spec.manifest, "config": {"recipe": recipe}})
    settings = QUICK.model_copy(update={"control": True})
    found = evaluate(cells, replace(tiny_model, spec=spec), out=tmp_path / "e", settings=settings, device="cpu")
    assert re.search(message, found.messages[-1])
    assert "control: shuffled labels" not in {row.method for row in found.results}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_a_folder_of_other_things_is_left_alone(cells: AnnData, tiny_model: CellModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other things than a result of `cytoglot evaluate` \(thesis\.tex\)"):
        evaluate(cells, tiny_model, out=tmp_path, settings=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
