"""embed and gene-embeddings on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow.parquet as pq
from anndata import AnnData

from cytoglot.cell_model.load import CellModel

Command = Callable[..., Any]


def test_the_vectors_alone_in_a_layer_from_the_genes_alone(
    command: Command, tiny_model: CellModel, cells: AnnData, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.parquet"
    options = ["--hidden-layer", "0", "--pooling", "sentence", "--key-added", "X_zero", "--chunk-cells", "50"]
    result = command("embed", cells_file, "--model", tiny_model_folder, "-o", out, *options, "--json").result
    assert (result["cells"], result["dimensions"], result["key"]) == (240, 32, "X_zero")
    sentences, _ = tiny_model.sentences(cells)
    expected = tiny_model.embeddings(sentences, layer=0, pooling="sentence")
    np.testing.assert_allclose(np.stack(pq.read_table(out)["X_zero"].to_pandas()), expected, atol=1e-5)


def test_an_embedding_is_added_to_another(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    assert command("embed", cells_file, "--model", tiny_model_folder, "-o", first).code == 0
    assert command("embed", first, "--model", tiny_model_folder, "-o", second, "--key-added", "X_2").code == 0
    assert set(anndata.read_h5ad(second).obsm) == {"X_cytoglot", "X_2"}


def test_options_that_are_not_there(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    embed = ["embed", cells_file, "--model", tiny_model_folder, "-o", tmp_path / "o.h5ad"]
    assert "'max' is not one of 'mean', 'last', 'sentence'" in command(*embed, "--pooling", "max").refusal
    assert "layer must lie between -2 and 1" in command(*embed, "--hidden-layer", "5").refusal
    assert "'int8' is not one of 'auto', 'float32', 'bfloat16'" in command(*embed, "--dtype", "int8").refusal
    assert list(tmp_path.iterdir()) == []


def test_gene_vectors_static_and_over_cells(
    command: Command, cells_file: Path, tiny_model: CellModel, tiny_model_folder: Path, tmp_path: Path
) -> None:
    n_genes = len(tiny_model.spec.vocabulary)
    out = tmp_path / "static.h5ad"
    result = command("gene-embeddings", "--model", tiny_model_folder, "-o", out, "--json").result
    assert (result["genes"], result["dimensions"], result["kind"]) == (n_genes, 32, "static")
    assert anndata.read_h5ad(out).shape == (n_genes, 32)
    out = tmp_path / "contextual.parquet"
    result = command("gene-embeddings", cells_file, "--model", tiny_model_folder, "-o", out, "--json").result
    assert (result["kind"], result["n_cells"], result["hidden_layer"]) == ("contextual", 240, 1)
    table = pq.read_table(out).to_pandas()
    assert list(table["gene"]) == list(tiny_model.spec.vocabulary.symbols)
    assert result["n_absent"] == int((table["n_occurrences"] == 0).sum())
