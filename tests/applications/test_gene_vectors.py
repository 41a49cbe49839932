"""Genes as vectors: every gene of the model has a row, and those that no cell expresses say so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from anndata import AnnData

from cytoglot.applications.gene_vectors import gene_embeddings, write_gene_table
from cytoglot.cell_model.load import CellModel
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.lm.embedding.embed import pooled_states
from cytoglot.lm.model.tokenizer import encode_prompts, word_token_ids


def test_static_vectors_are_the_models_table(tiny_model: CellModel) -> None:
    found = gene_embeddings(tiny_model)
    symbols = tiny_model.spec.vocabulary.symbols
    assert list(found.obs_names) == list(symbols)
    table = tiny_model.lm.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(found.X, table[word_token_ids(tiny_model.lm.tokenizer, symbols)])
    assert found.uns["cytoglot"]["gene_vectors"] == {"kind": "static"}


def test_contextual_vectors_are_means_over_the_cells(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:30]
    found = gene_embeddings(tiny_model, "contextual", cells=some, hidden_layer=1, chunk_cells=7)
    prompts = [one.text for one in tiny_model.cell_prompts(tiny_model.sentences(some)[0])]
    rows = encode_prompts(tiny_model.lm.tokenizer, prompts)
    every_token = [np.stack([np.arange(len(row)), np.arange(1, len(row) + 1)], axis=1) for row in rows]
    hidden = dict(pooled_states(tiny_model.lm, rows, every_token, layer=1))
    tokens = word_token_ids(tiny_model.lm.tokenizer, tiny_model.spec.vocabulary.symbols)
    n_seen = 0
    for number, token in enumerate(tokens):
        occurrences = np.concatenate([hidden[i][row == token] for i, row in enumerate(rows)])
        assert found.obs["n_occurrences"].iloc[number] == len(occurrences)
        if len(occurrences):
            n_seen += 1
            np.testing.assert_allclose(found.X[number], occurrences.mean(axis=0), atol=1e-5)
    assert n_seen > 50


def test_the_file_gives_what_the_cells_in_memory_give(tiny_model: CellModel, cells: AnnData, cells_file: Path) -> None:
    in_memory = gene_embeddings(tiny_model, "contextual", cells=cells, chunk_cells=1000)
    streamed = gene_embeddings(tiny_model, "contextual", cells=cells_file, chunk_cells=31)
    np.testing.assert_allclose(streamed.X, in_memory.X, atol=1e-5)
    np.testing.assert_array_equal(streamed.obs["n_occurrences"], in_memory.obs["n_occurrences"])


def test_genes_that_no_cell_expresses_are_nan_and_counted(
    tiny_model: CellModel, cells: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = cells[:20].copy()
    silent = list(tiny_model.spec.vocabulary.symbols[:3])
    dense = some.X.toarray()
    dense[:, some.var_names.get_indexer(silent)] = 0
    some.X = dense
    with caplog.at_level(logging.WARNING, logger="cytoglot"):
        found = gene_embeddings(tiny_model, "contextual", cells=some, genes=[*silent, "GENE30"])
    assert list(found.obs_names) == [*silent, "GENE30"]
    assert np.isnan(found.X[:3]).all()
    assert found.uns["cytoglot"]["gene_vectors"]["n_absent"] == int((found.obs["n_occurrences"] == 0).sum()) >= 3
    assert "genes are in no cell: their vectors are NaN" in caplog.text
    write_gene_table(found, tmp_path / "genes.parquet")
    table = pq.read_table(tmp_path / "genes.parquet")
    assert table.column_names == ["gene", "n_occurrences", "vector"]
    assert table["vector"].to_pylist()[:3] == [None, None, None]
    assert json.loads(table.schema.metadata[b"cytoglot"])["n_cells"] == 20


def test_faults_are_told(tiny_model: CellModel) -> None:
    with pytest.raises(InputError, match="kind must be static or contextual, found 'mean'"):
        gene_embeddings(tiny_model, "mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="contextual vectors are means over cells; pass cells="):
        gene_embeddings(tiny_model, "contextual")
    with pytest.raises(VocabularyMismatchError, match="found 1 of 2 that it does not know, such as 'NOPE'"):
        gene_embeddings(tiny_model, genes=["GENE30", "NOPE"])
