"""Every command does its work, prints what it promises, and writes what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from anndata import AnnData

from cytoglot.sentence.parquet import read_sentences

Command = Callable[..., Any]
LONG = ["encode", "reconstruct", "train", "evaluate", "annotate", "embed", "generate"]


def _options(command: Command, name: str) -> str:
    outcome = command(name, "--help")
    assert outcome.code == 0
    return str(outcome.out)


@pytest.mark.parametrize(
    "name", ["audit", "encode", "decode", "reconstruct", "import-c2s", "report", "demo", "doctor", *LONG[2:]]
)
def test_every_command_takes_json_and_says_more_or_less(command: Command, name: str) -> None:
    options = _options(command, name)
    for option in ("--json", "--quiet", "--verbose"):
        assert option in options


@pytest.mark.parametrize("name", LONG)
def test_long_commands_take_a_forecast_and_threads(command: Command, name: str) -> None:
    options = _options(command, name)
    for option in ("--dry-run", "--threads"):
        assert option in options
    assert ("--device" in options) == (name not in ("encode", "reconstruct")), "only where a model runs"
    assert ("--seed" in options) == (name != "embed"), "only where something is random"


def test_no_command_shows_the_commands(command: Command) -> None:
    outcome = command()
    assert outcome.code == 0
    assert "annotate" in outcome.out


def test_audit_says_what_a_file_holds(command: Command, cells_file: Path) -> None:
    shown = command("audit", cells_file, "--label", "cell_type")
    assert shown.code == 0
    assert "integer counts" in shown.out
    report = command("audit", cells_file, "--label", "cell_type", "--json").result
    assert report["findings"]
    assert {"level", "check", "message", "fix"} <= set(report["findings"][0])


def test_audit_finds_the_fault_of_a_file(command: Command, cells: AnnData, tmp_path: Path) -> None:
    scaled = AnnData(X=cells.X.toarray() - 1.5, obs=cells.obs.copy(), var=cells.var.copy())
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    findings = command("audit", tmp_path / "scaled.h5ad", "--label", "celltype", "--json").result["findings"]
    errors = " ".join(f["message"] for f in findings if f["level"] == "error")
    assert re.search("signed|scaled|negative", errors)
    assert "'cell_type', 'donor', 'batch'" in errors
    assert all(f["fix"] for f in findings if f["level"] == "error")


# encode, decode, reconstruct


def test_encode_writes_ranked_genes_and_text(
    command: Command, cells: AnnData, cells_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cells.parquet"
    result = command("encode", cells_file, "-o", out, "--top-genes", "5", "--ties", "order", "--text", "--json").result
    assert result == {"cells": 240, "genes": 120, "empty_cells": 0, "output": str(out)}
    table = pq.read_table(out)
    assert {"cell_id", "gene_ids", "sentence"} <= set(table.column_names)
    vocabulary = json.loads(table.schema.metadata[b"cytoglot"])["vocabulary"]["symbols"]
    row = table.slice(7, 1).to_pylist()[0]
    counts = cells.X[7].toarray().ravel()
    expected = [cells.var_names[g] for g in np.argsort(-counts, kind="stable")[:5]]
    assert row["cell_id"] == cells.obs_names[7]
    assert row["sentence"].split() == expected
    assert [vocabulary[g] for g in row["gene_ids"]] == expected


def test_encode_without_text_has_no_sentences(command: Command, cells_file: Path, tmp_path: Path) -> None:
    command("encode", cells_file, "-o", tmp_path / "cells.parquet", "--json")
    assert "sentence" not in pq.read_schema(tmp_path / "cells.parquet").names


def test_encode_reads_the_layer_it_is_told(command: Command, cells: AnnData, tmp_path: Path) -> None:
    both = cells.copy()
    both.layers["other"] = both.X[:, ::-1].copy()
    both.write_h5ad(tmp_path / "in.h5ad")
    command("encode", tmp_path / "in.h5ad", "-o", tmp_path / "a.parquet", "--layer", "other", "--json")
    command("encode", tmp_path / "in.h5ad", "-o", tmp_path / "b.parquet", "--json")
    first, second = (read_sentences(tmp_path / f"{name}.parquet").words(0)[0] for name in "ab")
    place = list(cells.var_names)
    counts = cells.X[0].toarray().ravel()
    assert counts[place.index(second)] == counts.max()
    assert counts[::-1][place.index(first)] == counts.max()


def test_encode_ranks_highly_variable_genes_alone(command: Command, cells_file: Path, tmp_path: Path) -> None:
    result = command("encode", cells_file, "-o", tmp_path / "cells.parquet", "--hvg", "30", "--json").result
    assert result["genes"] == 30
    assert len(read_sentences(tmp_path / "cells.parquet").vocabulary) == 30


def test_tie_rates_come_from_a_model_or_an_encoded_file(
    command: Command, cells: AnnData, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    query = tmp_path / "query.h5ad"
    cells[:20].write_h5ad(query)
    ties = ["--ties", "rare_first", "--json"]
    command("encode", cells_file, "-o", tmp_path / "all.parquet", *ties)
    command("encode", query, "-o", tmp_path / "own.parquet", *ties)
    command("encode", query, "-o", tmp_path / "given.parquet", "--tie-rates", tmp_path / "all.parquet", *ties)
    rates = {n: read_sentences(tmp_path / f"{n}.parquet").tie_rates for n in ("all", "own", "given")}
    np.testing.assert_array_equal(rates["given"], rates["all"])
    assert not np.array_equal(rates["own"], rates["all"])
    model = command("encode", query, "-o", tmp_path / "m.parquet", "--tie-rates", tiny_model_folder, *ties)
    assert model.result["genes"] == len(json.loads((tiny_model_folder / "cytoglot.json").read_text())["tie_rates"])


def test_random_ties_follow_the_seed_and_not_the_row(
    command: Command, cells: AnnData, cells_file: Path, tmp_path: Path
) -> None:
    cells[::-1].write_h5ad(tmp_path / "reversed.h5ad")
    for name, source, seed in (
        ("a", cells_file, 1),
        ("b", tmp_path / "reversed.h5ad", 1),
        ("c", cells_file, 2),
    ):
        arguments = ["encode", source, "-o", tmp_path / f"{name}.parquet", "--ties", "random", "--seed", seed, "--json"]
        assert command(*arguments).code == 0
    a, b, c = (read_sentences(tmp_path / f"{name}.parquet") for name in "abc")
    assert a.words(0) == b.words(239)
    assert a.words(0) != c.words(0)
    assert set(a.words(0)) == set(c.words(0))


def test_encode_takes_a_data_set_by_name(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "pbmc.parquet"
    result = command("encode", "pbmc68k_reduced", "-o", out, "--top-genes", "10", "--json").result
    assert result["cells"] == 700
    assert len(read_sentences(out)) == 700


def test_decode_gives_expression_back(
    command: Command, cells: AnnData, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    sentences, out = tmp_path / "cells.parquet", tmp_path / "out.h5ad"
    command("encode", cells_file, "-o", sentences, "--ties", "rare_first", "--tie-rates", tiny_model_folder)
    result = command("decode", sentences, "-o", out, "--json").result
    assert (result["cells"], result["values"]) == (240, "rank (1 = highest)")
    decoded = command("decode", sentences, "--model", tiny_model_folder, "-o", out, "--overwrite", "--json").result
    assert decoded["values"] == "log10(1 + counts per 10,000)"
    expression = anndata.read_h5ad(out)
    assert list(expression.obs_names) == list(cells.obs_names)
    assert (expression.X.data >= 0).all()
    columns = cells.var_names.get_indexer(expression.var_names)
    true = np.asarray(np.log10(1 + 1e4 * cells.X.toarray() / cells.X.sum(axis=1)))[:, columns]
    assert np.corrcoef(true.ravel(), expression.X.toarray().ravel())[0, 1] > 0.95


def test_decode_reads_any_text_and_counts_its_faults(command: Command, tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.txt").write_text("GENE1 gene2, NOTAGENE GENE1.\n\nGENE3.\n")
    result = command(
        "decode", tmp_path / "cells.txt", "--model", tiny_model_folder, "-o", tmp_path / "out.h5ad", "--json"
    ).result
    assert (result["cells"], result["empty_cells"]) == (3, 1)
    assert (result["unknown_words"], result["repeated_genes"]) == (1, 1)


def test_reconstruct_judges_curves_that_decode_can_use(command: Command, cells_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "curves"
    result = command("reconstruct", cells_file, "--hvg", "40", "-o", folder, "--json").result
    rows = result["curves"]
    assert {"curve", "genes", "scope", "held_out", "r2", "pearson", "spearman", "n"} <= set(rows[0])
    assert {row["genes"] for row in rows} == {"full", "hvg"}
    assert {row["scope"] for row in rows} == {"expressed", "all"}
    assert {row["held_out"] for row in rows} == {True, False}
    assert {"curves.json", "log_rank_expression.png", "reconstructed.png"} <= {p.name for p in folder.iterdir()}
    command("encode", cells_file, "-o", tmp_path / "cells.parquet", "--json")
    decoded = command("decode", tmp_path / "cells.parquet", "--curves", folder, "-o", tmp_path / "o.h5ad", "--json")
    assert decoded.result["values"] == "log10(1 + counts per 10,000)"
    again = command("reconstruct", cells_file, "-o", folder, "--overwrite", "--json")
    assert {row["genes"] for row in again.result["curves"]} == {"full"}


# Models at work


def test_annotate_keeps_the_file_and_adds_to_it(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rich = cells.copy()
    del rich.obs["cell_type"]
    rich.layers["doubled"] = rich.X * 2
    rich.var["kept"] = "yes"
    rich.varm["loadings"] = np.ones((rich.n_vars, 2))
    rich.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    result = command("annotate", tmp_path / "in.h5ad", "--model", tiny_model_folder, "-o", out, "--json").result
    assert result["cells"] == 240
    assert sum(row["cells"] for row in result["cell_types"]) == 240
    annotated = anndata.read_h5ad(out)
    for column in ("", "_best", "_confidence", "_top", "_ontology_term_id"):
        assert f"cytoglot_cell_type{column}" in annotated.obs
    np.testing.assert_allclose(annotated.obsm["cytoglot_probabilities"].sum(axis=1), 1, atol=1e-6)
    assert set(annotated.layers) == {"doubled"}
    assert "kept" in annotated.var
    assert "loadings" in annotated.varm
    np.testing.assert_array_equal(annotated.X.toarray(), cells.X.toarray())


def test_evaluate_takes_a_reference_and_a_label_map(
    command: Command, cells: AnnData, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    test = json.loads((tiny_model_folder / "split.json").read_text())["test"]
    other = cells[test].copy()
    other.obs_names = [f"query {i}" for i in range(other.n_obs)]
    other.obs["author"] = other.obs["cell_type"].astype(str).str.removeprefix("type ")
    other.write_h5ad(tmp_path / "other.h5ad")
    (tmp_path / "map.csv").write_text("author,model\nA,type A\nB,type B\nC,type C\n")
    arguments = ["evaluate", tmp_path / "other.h5ad", "--model", tiny_model_folder, "--label", "author"]
    for part in ("control", "generation", "probe", "maps"):
        arguments += ["--set", f"{part}=false"]
    arguments += ["--label-map", tmp_path / "map.csv"]
    result = command(*arguments, "-o", tmp_path / "e", "--reference", cells_file, "--json").result
    assert result["unknown_labels"] == []
    assert {"cytoglot", "majority"} <= {row["method"] for row in result["results"] if row["metric"] == "accuracy"}
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert manifest["config"]["label_map"] == {"author": "model", "A": "type A", "B": "type B", "C": "type C"}
    (tmp_path / "map.csv").write_text("A,typ A\n")
    refusal = command(*arguments, "-o", tmp_path / "f").refusal
    assert "gives 'A' the label 'typ A', which the model does not have; did you mean 'type A'" in refusal
    refusal = command(*arguments, "-o", tmp_path / "f", "--reference", tmp_path / "none.h5ad").refusal
    assert "none.h5ad is neither a file or folder" in refusal


def test_annotate_writes_csv_with_a_label_for_each_cluster(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    clustered = cells.copy()
    clustered.obs["leiden"] = cells.obs["cell_type"].cat.codes.astype(str).where(np.arange(240) >= 10, "unknown")
    clustered.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "labels.txt").write_text("type A\ntype B\nT/NK\n")
    arguments = ["annotate", tmp_path / "in.h5ad", "--model", tiny_model_folder, "-o", tmp_path / "o.csv"]
    result = command(*arguments, "--labels", tmp_path / "labels.txt", "--by", "leiden", "--json").result
    table = pd.read_csv(tmp_path / "o.csv", index_col=0)
    assert list(table.index) == list(cells.obs_names)
    np.testing.assert_allclose(table.filter(like="probability: ").sum(axis=1), 1, atol=1e-6)
    assert "probability: T/NK" in table
    leiden, majority = clustered.obs["leiden"], table["cytoglot_cell_type_majority"]
    assert [row["cluster"] for row in result["clusters"]] == ["0", "1", "2"]
    for row in result["clusters"]:
        inside = (leiden == row["cluster"]).to_numpy()
        assert row["cells"] == inside.sum()
        assert set(majority[inside]) == {row["label"]}
        assert (table["cytoglot_cell_type"][inside] == row["label"]).mean() == pytest.approx(row["share"])
    assert "obs has no column 'louvain'" in command(*arguments, "--by", "louvain", "--overwrite").err


def test_annotate_leaves_doubtful_cells_unassigned(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    arguments = ["annotate", cells_file, "--model", tiny_model_folder, "-o", tmp_path / "o.h5ad", "--json"]
    arguments += ["--method", "score"]
    n_unassigned = command(*arguments, "--threshold", "1").result["unassigned"]
    obs = anndata.read_h5ad(tmp_path / "o.h5ad").obs
    doubtful = obs["cytoglot_cell_type_confidence"] < 1
    assert n_unassigned == doubtful.sum() > 0
    assert (obs["cytoglot_cell_type"] == "unassigned").equals(doubtful)
    assert "unassigned" not in set(obs["cytoglot_cell_type_best"])
    assert command(*arguments, "--threshold", "0", "--overwrite").result["unassigned"] == 0


def test_annotate_chooses_among_given_labels_alone(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("B cell\nmonocyte\n")
    out = tmp_path / "o.h5ad"
    arguments = ["--labels", tmp_path / "labels.txt", "--context", "organism=human, tissue=blood", "--json"]
    command("annotate", cells_file, "--model", tiny_model_folder, "-o", out, *arguments)
    found = anndata.read_h5ad(out).obs
    assert set(found["cytoglot_cell_type"]) <= {"B cell", "monocyte"}
    assert set(found["cytoglot_cell_type_ontology_term_id"]) <= {"CL:0000236", "CL:0000576"}


def test_a_plain_checkpoint_annotates_without_training(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    plain = shutil.copytree(tiny_model_folder, tmp_path / "plain")
    (plain / "cytoglot.json").unlink()
    (tmp_path / "labels.txt").write_text("B cell\nmonocyte\n")
    labelled = ["annotate", cells_file, "--model", plain, "--labels", tmp_path / "labels.txt"]
    assert command(*labelled, "-o", tmp_path / "a.h5ad", "--json").result["cells"] == 240
    embedded = command("embed", cells_file, "--model", plain, "--checkpoint", "-o", tmp_path / "e.h5ad", "--json")
    assert embedded.result["dimensions"] == 32


def test_a_query_with_half_of_the_genes_is_annotated_and_the_share_is_said(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    half = cells[:30, :60].copy()
    half.var_names = [*half.var_names[:50], *(f"OTHER{i}" for i in range(10))]
    half.write_h5ad(tmp_path / "half.h5ad")
    for name in ("annotate", "embed"):
        result = command(
            name, tmp_path / "half.h5ad", "--model", tiny_model_folder, "-o", tmp_path / f"{name}.h5ad", "--json"
        ).result
        assert re.match(
            r"\d+ of the model's \d+ genes are in the query \(42%\); the model does not use the other \d+ of the",
            result["overlap"],
        )


def test_embed_writes_a_vector_for_each_cell(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    unlabelled = AnnData(X=cells.X, obs=pd.DataFrame(index=cells.obs_names), var=cells.var)
    unlabelled.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "o.h5ad"
    arguments = ["embed", tmp_path / "in.h5ad", "--model", tiny_model_folder, "-o", out, "--json"]
    result = command(*arguments).result
    assert (result["cells"], result["dimensions"], result["key"]) == (240, 32, "X_cytoglot")
    embedding_nd = anndata.read_h5ad(out).obsm["X_cytoglot"]
    assert embedding_nd.dtype == np.float32
    assert np.isfinite(embedding_nd).all()
    assert command(*arguments, "--key-added", "X_other", "--overwrite").result["key"] == "X_other"


def test_generate_writes_valid_cells(command: Command, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.h5ad"
    arguments = ["generate", "--model", tiny_model_folder, "--cell-type", "type B", "-n", "4", "-o", out, "--json"]
    result = command(*arguments, "--seed", "5").result
    assert (result["cells"], result["invalid_genes"], result["repeated_genes"]) == (4, 0, 0)
    first = anndata.read_h5ad(out)
    assert list(first.obs["cell_type"]) == ["type B"] * 4
    for text in first.obs["cell_sentence"]:
        words = text.split()
        assert len(words) == len(set(words))
        assert set(words) <= set(first.var_names)
    command(*arguments, "--seed", "5", "--overwrite")
    assert list(anndata.read_h5ad(out).obs["cell_sentence"]) == list(first.obs["cell_sentence"])
    command(*arguments, "--seed", "6", "--overwrite")
    assert list(anndata.read_h5ad(out).obs["cell_sentence"]) != list(first.obs["cell_sentence"])
    some = command(*arguments[:3], "--number", "2", "--n-genes", "7", "-o", out, "--overwrite", "--json").result
    assert (some["cell_type"], some["mean_genes"]) == ("any", 7.0)


@pytest.mark.slow
def test_train_says_that_a_finished_folder_is_finished(
    command: Command, tiny_cli: list[str], cells_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["train", cells_file, "--label", "cell_type", "-o", tmp_path / "m", *tiny_cli, "--json"]
    first = command(*arguments).result
    assert (first["labels"], first["model"]) == (3, str(tmp_path / "m"))
    written = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert command(*arguments).result == first
    assert "is finished already" in caplog.text
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns == written
    other = command(*arguments, "--seed", "1")
    assert "holds a finished model with other seeds" in other.refusal
    assert command(*arguments, "--seed", "1", "--overwrite").code == 0
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns > written
    refused = command("train", cells_file, "--label", "celltype", "-o", tmp_path / "m", *tiny_cli, "--overwrite")
    assert "obs has no column 'celltype'" in refused.refusal
    assert (tmp_path / "m" / "model.safetensors").is_file(), "a refused command must not delete a model"


def test_labels_unseen_in_training_are_counted_as_errors_and_reported(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    split = json.loads((tiny_model_folder / "split.json").read_text())
    changed = cells.copy()
    changed.obs["cell_type"] = changed.obs["cell_type"].astype(object)
    test_cells = split["parts"]["test"] if "parts" in split else split["test"]
    changed.obs.loc[test_cells[:5], "cell_type"] = "type Z"
    changed.obs.loc[test_cells[5:8], "cell_type"] = np.nan
    changed.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "evaluation"
    skipped = [x for name in ("control", "generation", "maps") for x in ("--set", f"{name}=false")]
    arguments = ["evaluate", tmp_path / "in.h5ad", "--model", tiny_model_folder, "-o", out, *skipped, "--json"]
    rows = command(*arguments).result["results"]
    accuracy = next(row for row in rows if (row["method"], row["metric"]) == ("cytoglot", "accuracy"))
    assert set(accuracy) >= {"task", "method", "metric", "value", "low", "high", "n", "unit"}
    assert accuracy["n"] == len(test_cells) - 3
    assert accuracy["value"] <= 1 - 5 / accuracy["n"] + 1e-9
    card = json.loads((out / "data_card.json").read_text())
    assert card["labels_unseen_in_training"] == ["type Z"]
    assert command(*arguments, "--overwrite").code == 0


@pytest.mark.parametrize("name", LONG)
def test_a_forecast_writes_nothing(
    command: Command, name: str, cells_file: Path, tiny_model_folder: Path, tiny_cli: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments: dict[str, list[Any]] = {
        "encode": [cells_file, "-o", f"{out}.parquet"],
        "reconstruct": [cells_file, "-o", out],
        "train": [cells_file, "--label", "cell_type", "-o", out, *tiny_cli],
        "evaluate": [cells_file, "--model", tiny_model_folder, "-o", out],
        "annotate": [cells_file, "--model", tiny_model_folder, "-o", f"{out}.h5ad"],
        "embed": [cells_file, "--model", tiny_model_folder, "-o", f"{out}.h5ad"],
        "generate": ["--model", tiny_model_folder, "-n", "5", "-o", f"{out}.h5ad"],
    }
    forecast = command(name, *arguments[name], "--dry-run", "--threads", "1", "--device", "cpu", "--json").result
    assert forecast["dry_run"] is True
    assert forecast["seconds"] >= 0
    assert forecast["memory_mb"] > 0
    assert forecast["disk_mb"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_missing_for_what(command: Command) -> None:
    found = command("doctor", "--json").result
    assert {"versions", "extras", "devices", "threads", "data_folder"} <= set(found)
    assert {row["extra"] for row in found["extras"]} >= {"lm", "report"}
    assert {"package": "cytoglot", "version": found["versions"][1]["version"]} in found["versions"]


def test_results_without_json_are_readable(command: Command, cells_file: Path, tmp_path: Path) -> None:
    outcome = command("encode", cells_file, "-o", tmp_path / "o.parquet")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "cells: 240"
