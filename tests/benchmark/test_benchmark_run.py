"""A comparison from recipe to verdict: leaks are caught, failures are rows, runs are kept and can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.metrics import accuracy_score, f1_score

from cytoglot.benchmark.cells import BenchmarkCells, fewer_reads, halves_of_reads, load_cells
from cytoglot.benchmark.classifiers.base import CLASSIFIERS
from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.protocols import PROTOCOLS, Maker
from cytoglot.benchmark.protocols.annotation import fold_rows
from cytoglot.benchmark.recipe import BenchmarkRecipe, DataSettings, MethodSettings
from cytoglot.benchmark.results_table import COLUMNS, statistics, write_results
from cytoglot.benchmark.run import read_cells, reproduce, run_benchmark
from cytoglot.benchmark.verdict import pairwise, strata, verdicts, write_verdict
from cytoglot.cli.main import run as command
from cytoglot.config import load_recipe
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import CytoglotError, InputError, UnknownNameError
from cytoglot.metrics import holm
from cytoglot.report.verdict_page import write_verdict_page

LEARNED: dict[str, list[set[str]]] = {}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 labelled cells of six donors and two cells without a label."""
    cells = make_cells(n_cells=242, n_genes=100, n_types=3, seed=5)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[:2, cells.obs.columns.get_loc("cell_type")] = None
    cells.obs["donor"] = [f"donor {i % 6}" for i in range(242)]
    cells.obs["guess"] = cells.obs["cell_type"].fillna("none").astype(str)
    cells.obsm["X_given"] = np.random.default_rng(0).normal(size=(242, 4))
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def recipe_of(source: Path, **changes: Any) -> BenchmarkRecipe:
    values: dict[str, Any] = {
        "data": [{"name": "toy", "source": str(source), "groups": "donor"}],
        "methods": [
            {"name": "majority", "classifier": "majority", "role": "control"},
            {"name": "logistic", "classifier": "logistic_regression"},
            {"name": "knn", "classifier": "nearest_neighbors", "embedder": "pca"},
            {"name": "ours", "classifier": "linear_svm", "embedder": "rank_pca", "role": "model"},
            {"name": "replicate", "classifier": "logistic_regression", "role": "replicate"},
        ],
        "protocols": {"annotation": {"folds": 3}},
        "reference": "logistic",
    }
    return load_recipe(BenchmarkRecipe, None, values | changes)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("finished") / "out"
    protocols = {
        "annotation": {"folds": 3},
        "leave_group_out": {},
        "open_set": {"folds": 3},
        "label_fractions": {"folds": 3, "fractions": [0.1], "per_type": [3]},
        "damage": {"folds": 3, "n_variable": 50},
        "embedding": {},
        "bulk_matching": {"cells_per_profile": 4},
    }
    summary = run_benchmark(recipe_of(source, protocols=protocols), folder)
    assert (summary.failed, summary.cached) == (0, 0)
    _, table = write_results(folder)
    write_verdict(folder, table)
    return folder, table


def test_the_table_is_tidy_and_its_values_are_those_of_scikit_learn(finished: tuple[Path, pd.DataFrame]) -> None:
    folder, table = finished
    assert list(table.columns) == list(COLUMNS)
    whole = table[(table["split"] == "all") & (table["task"] == "annotation") & (table["model"] == "knn")]
    ids = table[(table["task"] == "annotation") & (table["model"] == "knn")]["run_id"].dropna().unique()
    cells = pd.concat([read_cells(folder, name) for name in ids])
    assert len(cells) == 240  # each labelled cell once
    assert cells["cell"].is_unique
    values = whole.set_index("metric")["value"]
    assert values["accuracy"] == pytest.approx(accuracy_score(cells["truth"], cells["predicted"]))
    assert values["macro_f1"] == pytest.approx(f1_score(cells["truth"], cells["predicted"], average="macro"))
    row = whole[whole["metric"] == "macro_f1"].iloc[0]
    assert row["low"] <= row["value"] <= row["high"]
    assert (row["unit"], row["n_units"], row["n"]) == ("donor", 6, 240)
    tested = table[(table["split"] == "all") & (table["task"] == "annotation") & table["mcnemar_p"].notna()]
    np.testing.assert_allclose(tested["mcnemar_holm"], holm(tested["mcnemar_p"]))
    assert row["p_better"] + row["p_same"] + row["p_worse"] == pytest.approx(1)


def test_controls_do_not_reach_the_baselines(finished: tuple[Path, pd.DataFrame]) -> None:
    _, table = finished
    whole = table[(table["split"] == "all") & (table["metric"] == "macro_f1") & (table["task"] == "annotation")]
    found = whole.set_index("model")
    assert found.loc["majority", "high"] < found.loc["logistic", "low"]
    assert found.loc["logistic", "scaled"] in (0.0, None) or np.isnan(found.loc["logistic", "scaled"])


def test_every_protocol_has_rows_of_every_method(finished: tuple[Path, pd.DataFrame]) -> None:
    _, table = finished
    whole = table[table["split"] == "all"]
    methods = {"majority", "logistic", "knn", "ours"}
    for task in ("annotation", "leave_group_out", "open_set", "label_fractions", "damage"):
        assert set(whole[whole["task"] == task]["model"]) >= methods, task
    assert "replicate" not in set(whole[whole["task"] == "damage"]["model"])  # it knows no ceiling
    known = whole[whole["metric"] == "auroc_novel"].set_index("model")["value"]
    assert known["majority"] == pytest.approx(0.5)
    assert known["logistic"] > 0.6
    damaged = whole[(whole["task"] == "damage") & (whole["metric"] == "accuracy") & (whole["model"] == "ours")]
    of = damaged.set_index("condition")["value"]
    assert of["log twice"] == pytest.approx(of["untouched"])  # ranks are the same
    assert of["10 % of the reads"] < of["untouched"]
    held = whole[whole["task"] == "embedding"].pivot_table(index="model", columns="metric", values="value")
    assert held.loc["ours", "knn_accuracy"] > held.loc["ours", "permuted_knn_accuracy"] + 0.2
    matched = whole[(whole["task"] == "bulk_matching") & (whole["metric"] == "foscttm")].set_index("model")
    assert matched.loc["knn", "high"] < 0.49
    few = whole[(whole["task"] == "label_fractions") & (whole["metric"] == "macro_f1")]
    assert set(few["condition"]) == {"10% of labels", "3 cells a type"}


def test_no_cell_is_tested_by_a_method_that_saw_its_donor(source: Path) -> None:
    cells = load_cells(DataSettings(name="toy", source=str(source), groups="donor").model_dump_json())
    assert cells.groups is not None
    for train, validation, test in fold_rows(cells, "group", 5, 0):
        assert not set(cells.groups[test]) & set(cells.groups[np.concatenate([train, validation])])
        assert len(np.unique(np.concatenate([train, validation, test]))) == 240


def test_methods_see_no_label(source: Path) -> None:
    cells = load_cells(DataSettings(name="toy", source=str(source), groups="donor").model_dump_json())
    assert list(cells.adata.obs.columns) == ["batch"]
    assert cells.adata.uns == {}
    with pytest.raises(InputError, match="holds the truth"):
        load_cells(DataSettings(name="toy", source=str(source)).model_dump_json(), ("cell_type",))


class Peeking:
    """Standardizes with the cells that it is asked about: a leak."""

    def embed(self, adata: AnnData) -> np.ndarray:
        dense = np.asarray(adata.X.toarray(), dtype=np.float64)
        return np.asarray((dense - dense.mean(axis=0)) / (dense.std(axis=0) + 1), dtype=np.float32)


class Spy:
    """Notes which cells it was fitted on."""

    def fit(self, train: AnnData) -> Spy:
        LEARNED.setdefault("spy", []).append(set(train.obs_names))
        return self

    def embed(self, adata: AnnData) -> np.ndarray:
        return np.asarray(adata.X.toarray(), dtype=np.float32)


@pytest.fixture
def more_embedders(monkeypatch: pytest.MonkeyPatch) -> None:
    EMBEDDERS["pca"]  # the registered ones are loaded
    for name, made in {"peeking": Peeking, "spy": Spy}.items():
        monkeypatch.setitem(EMBEDDERS._entries, name, lambda made=made, **_: made())


def maker(cells: BenchmarkCells, **method: Any) -> Maker:
    return Maker(MethodSettings(name="it", **method), cells)


def test_a_planted_leak_is_caught(source: Path, more_embedders: None) -> None:
    cells = load_cells(DataSettings(name="toy", source=str(source)).model_dump_json())
    protocol = PROTOCOLS["annotation"](folds=3)
    # Its vectors of the data set are computed once, from all cells, and it does not say so.
    with pytest.raises(CytoglotError, match="depend on the other"):
        protocol.run(cells, maker(cells, classifier="logistic_regression", embedder="peeking"), "0", 0)


@pytest.mark.parametrize("name", ["annotation", "open_set", "label_fractions", "damage"])
def test_embedders_are_fitted_on_training_cells_alone(name: str, source: Path, more_embedders: None) -> None:
    cells = load_cells(DataSettings(name="toy", source=str(source)).model_dump_json())
    protocol, LEARNED["spy"] = PROTOCOLS[name](folds=3), []
    split = protocol.splits(cells, 0)[0]
    outcome = protocol.run(cells, maker(cells, classifier="logistic_regression", embedder="spy"), split, 0)
    assert outcome.cells is not None
    assert LEARNED["spy"]
    for seen in LEARNED["spy"]:
        assert not seen & set(outcome.cells["cell"])


def test_a_method_that_fails_is_a_row_and_is_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLASSIFIERS["majority"]
    broken = {"is": True}
    real = CLASSIFIERS["logistic_regression"]

    def sometimes(**options: Any) -> Any:
        if broken["is"]:
            raise RuntimeError("out of luck")
        return real(**options)

    monkeypatch.setitem(CLASSIFIERS._entries, "logistic_regression", sometimes)
    recipe = recipe_of(source)
    first = run_benchmark(recipe, tmp_path / "out")
    assert (first.runs, first.failed) == (15, 6)  # logistic and the replicate, three folds each
    assert "out of luck" in first.errors[0]
    _, table = write_results(tmp_path / "out")
    failed = table[table["metric"] == "failed"]
    assert len(failed) == 6
    assert set(failed["error"]) == {"RuntimeError: out of luck"}
    write_verdict(tmp_path / "out", table)
    assert "out of luck" in write_verdict_page(tmp_path / "out").read_text()
    broken["is"] = False
    second = run_benchmark(recipe, tmp_path / "out")
    assert (second.runs, second.failed, second.cached) == (15, 0, 9)


def test_an_interrupted_comparison_goes_on_and_an_unchanged_one_computes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLASSIFIERS["majority"]
    calls: list[int] = []
    real = CLASSIFIERS["nearest_neighbors"]

    def counted(**options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(**options)

    monkeypatch.setitem(CLASSIFIERS._entries, "nearest_neighbors", counted)
    recipe = recipe_of(source)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(recipe, tmp_path / "out")
    done = len(list((tmp_path / "out" / "runs").glob("*.json")))
    assert done == 3 + 3 + 1  # majority, logistic and the first fold of knn
    again = run_benchmark(recipe, tmp_path / "out")
    assert again.cached == done
    assert len(calls) == 1 + 1 + 2
    _, table = write_results(tmp_path / "out")
    stamp = (tmp_path / "out" / "results.parquet").stat().st_mtime_ns
    third = run_benchmark(recipe, tmp_path / "out")
    assert third.cached == third.runs == 15
    assert len(calls) == 4
    _, same = write_results(tmp_path / "out")
    assert (tmp_path / "out" / "results.parquet").stat().st_mtime_ns == stamp
    assert len(table) == len(same)


def test_workers_find_what_one_process_finds(source: Path, tmp_path: Path, finished: tuple[Path, pd.DataFrame]) -> None:
    run_benchmark(recipe_of(source), tmp_path / "out", workers=2)
    _, table = write_results(tmp_path / "out")
    columns = ["model", "metric", "value", "low", "high"]
    ours = table[table["split"] == "all"][columns].reset_index(drop=True)
    other = finished[1]
    other = other[(other["split"] == "all") & (other["task"] == "annotation")][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, other, check_dtype=False)


def test_a_run_is_reproduced_and_a_changed_one_is_noticed(finished: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, table = finished
    name = table[(table["model"] == "ours") & table["run_id"].notna()]["run_id"].iloc[0]
    found = reproduce(folder, name)
    assert (found.same, found.changed_cells, found.largest_difference) == (True, 0, 0.0)
    other = tmp_path / "out"
    (other / "runs").mkdir(parents=True)
    for file in folder.glob(f"runs/{name}.*"):
        (other / "runs" / file.name).write_bytes(file.read_bytes())
    cells = pd.read_parquet(other / "runs" / f"{name}.parquet")
    cells.loc[0, "predicted"] = "another"
    cells.to_parquet(other / "runs" / f"{name}.parquet", index=False)
    assert not reproduce(other, name).same
    record = json.loads((other / "runs" / f"{name}.json").read_text())
    (other / "runs" / f"{name}.json").write_text(json.dumps(record | {"data_fingerprint": "0"}))
    with pytest.raises(InputError, match="has changed since"):
        reproduce(other, name)
    with pytest.raises(InputError, match="has no run 'nothing'"):
        reproduce(folder, "nothing")


def test_the_verdict_says_better_only_where_the_interval_leaves_out_zero() -> None:
    base = dict.fromkeys(COLUMNS)
    rows = [
        base | {"model": model, "role": role, "task": "annotation", "condition": "", "data_set": "toy", "split": "all",
                "metric": "macro_f1", "value": value, "n": 100, "unit": "donor", "n_units": 8, "against": "base",
                "difference": d, "difference_low": low, "difference_high": high, "contamination": seen}
        for model, role, value, d, low, high, seen in (
            ("base", "baseline", 0.8, 0.01, -0.01, 0.03, "none"),
            ("good", "model", 0.9, 0.1, 0.05, 0.15, "none"),
            ("even", "model", 0.81, 0.01, -0.02, 0.04, "none"),
            ("bad", "model", 0.6, -0.2, -0.3, -0.1, "none"),
            ("seen", "model", 0.95, 0.15, 0.1, 0.2, "unknown"),
        )
    ]  # fmt: skip
    said = {one["model"]: one["sentence"] for one in verdicts(pd.DataFrame(rows))}
    assert said["good"].startswith("good: better than the best simple method on toy (folds of cells, +10.0 points")
    assert said["even"].startswith("even: not distinguishable from the best simple method on toy")
    assert said["bad"].startswith("bad: worse than the best simple method on toy")
    assert "8 groups by donor" in said["good"]
    assert "this is no win" in said["seen"]
    failed = base | {"model": "lost", "role": "model", "task": "annotation", "data_set": "toy", "metric": "failed"}
    again = {one["model"]: one["sentence"] for one in verdicts(pd.DataFrame([*rows, failed]))}
    assert again["lost"] == "lost: no comparison with a simple method could be made; see what failed."
    assert "base" not in said  # with models there, baselines are not judged
    assert strata(pd.DataFrame(rows)) == [
        {"task": "annotation", "data_set": "toy", "condition": "", "best": 0.8, "stratum": "open"}
    ]


def test_pairs_have_probabilities_of_a_real_gain(finished: tuple[Path, pd.DataFrame]) -> None:
    folder, table = finished
    found = next(one for one in pairwise(folder, table, margin=0.01) if one["task"] == "annotation")
    assert "replicate" not in found["methods"]
    place = found["methods"].index
    assert found["p_better"][place("logistic")][place("majority")] == 1
    assert found["p_better"][place("majority")][place("logistic")] == 0
    assert found["p_better"][0][0] is None


def test_the_page_holds_every_method_run_and_filter(finished: tuple[Path, pd.DataFrame]) -> None:
    folder, table = finished
    page = write_verdict_page(folder).read_text(encoding="utf-8")
    for text in ("ours", "replicate", 'data-task="damage"', "<select", "<svg", "Quality and cost", "better / same"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    for name in table["run_id"].dropna().unique()[:5]:
        assert f"runs/{name}.json" in page


def test_halves_share_the_reads_and_fewer_reads_are_fewer() -> None:
    counts = csr_matrix(np.random.default_rng(0).poisson(3, size=(50, 40)).astype(np.float32))
    cells = AnnData(counts, obs=pd.DataFrame(index=[f"c{i}" for i in range(50)]))
    first, second = halves_of_reads(cells, seed=0)
    np.testing.assert_array_equal((first.X + second.X).toarray(), counts.toarray())
    assert abs(first.X.sum() / counts.sum() - 0.5) < 0.03
    assert abs(fewer_reads(cells, 0.1, seed=0).X.sum() / counts.sum() - 0.1) < 0.02
    cells.X = counts.log1p()
    with pytest.raises(InputError, match="need counts"):
        halves_of_reads(cells, seed=0)


def test_labels_that_are_the_batches_are_warned_of(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = DataSettings(name="toy", source=str(source), groups="cell_type")
    assert "cannot be told apart" in load_cells(settings.model_dump_json()).warnings[0]


def test_a_label_that_training_lacks_is_told_apart(tmp_path: Path) -> None:
    cells = make_cells(n_cells=120, n_genes=60, n_types=2, seed=6)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    cells.obs["donor"] = [f"d{i % 2}" for i in range(120)]
    alone = np.flatnonzero(cells.obs["donor"] == "d1")[:15]
    cells.obs.iloc[alone, cells.obs.columns.get_loc("cell_type")] = "rare"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    recipe = recipe_of(tmp_path / "cells.h5ad", protocols={"leave_group_out": {}})
    run_benchmark(recipe, tmp_path / "out")
    _, table = write_results(tmp_path / "out")
    whole = table[(table["split"] == "all") & (table["model"] == "logistic")].set_index("metric")["value"]
    assert whole["accuracy_shared"] > whole["accuracy"]
    assert whole["macro_f1_shared"] > whole["macro_f1"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"protocols": {"annotaton": {}}}, UnknownNameError, "did you mean 'annotation'"),
        ({"protocols": {"annotation": {"fold": 3}}}, InputError, "its settings are folds, by"),
        ({"methods": [{"name": "x", "classifier": "forest"}]}, UnknownNameError, "unknown classifier 'forest'"),
        ({"methods": []}, InputError, "a benchmark needs methods"),
        (
            {"methods": [{"name": "x", "classifier": "linear_svm", "options": {"n_component": 3}}]},
            InputError,
            "method 'x' has no option 'n_component'; did you mean 'n_components'",
        ),
        ({"methods": [{"name": "x", "embedder": "gene_table"}]}, InputError, "method 'x' needs the option 'path'"),
        ({"data": [{"name": "a", "source": "nowhere.h5ad"}]}, InputError, "CYTOGLOT_DATA names the folder"),
    ],
)
def test_faults_of_a_recipe_are_named_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run_benchmark(recipe_of(source, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_are_rated_on_the_ontology_where_labels_have_terms() -> None:
    cells = pd.DataFrame(
        {
            "truth": ["CD4 T", "B cell", "NK cell"],
            "predicted": ["CD8 T", "B cell", "NK cell"],
            "confidence": 1.0,
            "brier": 0.0,
            "in_training": True,
        }
    )
    found = statistics(cells)
    assert found["lcad"].value == 1
    assert 0.8 < found["hierarchical_f1"].value < 1
    assert "lcad" not in statistics(cells.assign(truth=["x", "y", "z"]))


def test_two_methods_of_one_name_are_refused(source: Path) -> None:
    twice = [{"name": "x", "classifier": "majority"}, {"name": "x", "classifier": "linear_svm"}]
    with pytest.raises(InputError, match="found 'x' twice"):
        recipe_of(source, methods=twice)


def test_what_does_not_fit_a_data_set_is_said(tmp_path: Path, source: Path) -> None:
    data = [{"name": "toy", "source": str(source)}]
    found = run_benchmark(recipe_of(source, data=data, protocols={"leave_group_out": {}}), tmp_path / "out")
    assert (found.runs, found.failed) == (0, 0)
    assert "names no column of groups" in found.skipped[0]


def test_the_command_judges_an_embedding_and_predictions_of_ones_own(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", "run", "--data", str(source), "--label", "cell_type", "--embedding", "X_given",
                 "--predictions", "guess", "-o", str(tmp_path / "out"), "--set", "protocols.annotation.folds=3",
                 "--json"]  # fmt: skip
    assert command([*arguments, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["missing"] == dry["runs"] == 30
    assert not (tmp_path / "out").exists()
    assert command(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["failed"], found["cached"]) == (30, 0, 0)
    table = pd.read_parquet(found["results"])
    whole = table[(table["split"] == "all") & (table["metric"] == "accuracy")].set_index("model")
    assert whole.loc["column guess", "value"] == 1
    assert whole.loc["obsm X_given", "value"] < 0.6
    assert whole.loc["obsm X_given", "sees_all_cells"]
    assert command(["report", str(tmp_path / "out"), "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["html"]).is_file()
    name = table["run_id"].dropna().iloc[0]
    assert command(["benchmark", "reproduce", name, "--folder", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"]
    assert command(["benchmark", "run"]) == 2
    assert "either a RECIPE or --data FILE" in capsys.readouterr().err


def test_the_verdict_recipe_that_ships_can_be_read() -> None:
    recipe = load_recipe(BenchmarkRecipe, Path(__file__).parents[2] / "recipes" / "verdict.yaml")
    assert (len(recipe.data), len(recipe.methods)) == (6, 12)
    for name, settings in recipe.protocols.items():
        PROTOCOLS[name].model_validate(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "celltype"], "celltype"),
        (["--label", "cell_type", "--groups", "donr"], "did you mean 'donor'"),
        (["--label", "cell_type", "--embedding", "X_umap"], "it has X_given"),
        (["--label", "cell_type", "--predictions", "gues"], "did you mean 'guess'"),
        (["--label", "cell_type", "--models", "no/such folder"], "no/such folder"),
    ],
)
def test_a_mistyped_name_is_refused_and_nothing_is_written(
    options: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["benchmark", "run", "--data", str(source), *options, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_renamed_keeps_its_runs_and_has_its_new_name(source: Path, tmp_path: Path) -> None:
    run_benchmark(recipe_of(source), tmp_path / "out")
    old = recipe_of(source).model_dump(mode="json")
    methods = [method | {"name": f"new {method['name']}"} for method in old["methods"]]
    data = [one | {"name": "new toy"} for one in old["data"]]
    found = run_benchmark(recipe_of(source, data=data, methods=methods, reference="new logistic"), tmp_path / "out")
    assert found.cached == found.runs == 15
    _, table = write_results(tmp_path / "out")
    assert set(table["data_set"]) == {"new toy"}
    assert set(table["model"]) == {method["name"] for method in methods}


def test_a_table_of_an_interrupted_comparison_holds_no_run_of_other_settings(source: Path, tmp_path: Path) -> None:
    run_benchmark(recipe_of(source), tmp_path / "out")
    run_benchmark(recipe_of(source, protocols={"annotation": {"folds": 4}}), tmp_path / "out")
    (tmp_path / "out" / "plan.json").unlink()  # as it is until the last run is done
    _, table = write_results(tmp_path / "out")
    assert set(table[table["split"] == "all"]["n"]) == {240}
    assert len(table[table["model"] == "knn"]["run_id"].dropna().unique()) == 4


def test_every_seed_has_random_vectors_of_its_own(source: Path) -> None:
    cells = load_cells(DataSettings(name="toy", source=str(source)).model_dump_json())
    made = maker(cells, embedder="random_vectors")
    first, second = (made.fitted_embedder(cells.adata, seed).embed(cells.adata) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_cells_without_counts_cannot_be_thinned(tmp_path: Path, source: Path) -> None:
    cells = make_cells(n_cells=90, n_genes=60, n_types=2, seed=6)
    cells.X = cells.X.astype(np.float32).log1p()
    cells.write_h5ad(tmp_path / "log.h5ad")
    data = [{"name": "log", "source": str(tmp_path / "log.h5ad")}]
    found = run_benchmark(recipe_of(source, data=data, protocols={"damage": {}, "bulk_matching": {}}), tmp_path / "out")
    assert found.runs == 0
    assert len(found.skipped) == 2
    assert all("need counts, found" in line for line in found.skipped)
