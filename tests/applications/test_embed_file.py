"""Vectors from file to file: those of memory, the rest of the file untouched, and no work lost to a kill."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot import resume
from cytoglot.applications import embed_file as module
from cytoglot.applications.embed_file import embed_file, takes_vectors
from cytoglot.applications.embedding import embed
from cytoglot.cell_model.load import CellModel
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.resume import Parts


@pytest.fixture
def rich_file(cells: AnnData, tmp_path: Path) -> Path:
    """A file with one of everything that has to survive."""
    rich = cells.copy()
    rich.layers["log"] = sparse.csr_matrix(rich.X).log1p()
    rich.raw = cells.copy()
    rich.obsm["X_pca"] = np.arange(480, dtype=np.float32).reshape(240, 2)
    rich.obsp["near"] = sparse.eye(240, format="csr")
    rich.uns["cytoglot"] = {"annotation": {"key": "kept"}}
    rich.write_h5ad(tmp_path / "rich.h5ad")
    return tmp_path / "rich.h5ad"


def _datasets(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype, item.shape, dict(item.attrs), np.asarray(item[()]).tolist())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("chunk_cells", [7, 100, 1000])
def test_vectors_are_those_of_memory_and_the_rest_of_the_file_is_the_same(
    tiny_model: CellModel, cells: AnnData, rich_file: Path, tmp_path: Path, chunk_cells: int
) -> None:
    out = tmp_path / "out.h5ad"
    summary = embed_file(rich_file, out, tiny_model, chunk_cells=chunk_cells)
    expected = embed(cells, tiny_model, copy=True)
    assert (summary.cells, summary.dimensions, summary.resumed_cells) == (240, 32, 0)
    found = anndata.read_h5ad(out)
    assert found.obsm["X_cytoglot"].dtype == np.float32
    np.testing.assert_allclose(found.obsm["X_cytoglot"], expected.obsm["X_cytoglot"], atol=1e-5)
    assert found.uns["cytoglot"]["embedding"] == expected.uns["cytoglot"]["embedding"]
    before, after = _datasets(rich_file), _datasets(out)
    added = {name for name in after if name not in before}
    assert added == {"obsm/X_cytoglot", *(f"uns/cytoglot/embedding/{k}" for k in found.uns["cytoglot"]["embedding"])}
    assert {name: after[name] for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "rich.h5ad"]


def test_parquet_holds_the_vectors_alone(
    tiny_model: CellModel, cells: AnnData, cells_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    options: dict[str, Any] = {"hidden_layer": 0, "pooling": "sentence"}
    embed_file(cells_file, out, tiny_model, key_added="X_mine", chunk_cells=50, **options)
    table = pq.read_table(out)
    assert table.column_names == ["cell_id", "X_mine"]
    assert table["cell_id"].to_pylist() == list(cells.obs_names)
    expected = embed(cells, tiny_model, **options, copy=True).obsm["X_cytoglot"]
    np.testing.assert_allclose(np.stack(table["X_mine"].to_pandas()), expected, atol=1e-5)
    record = json.loads(table.schema.metadata[b"cytoglot"])
    assert record["pooling"] == "mean over the tokens of the genes, hidden state 0 of 1"
    assert record["hidden_layer"] == 0


class KilledError(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("suffix", [".h5ad", ".parquet"])
@pytest.mark.parametrize("where", ["in a chunk", "in the last step"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tiny_model: CellModel, cells_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, where: str
) -> None:
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    embed_file(cells_file, whole, tiny_model, chunk_cells=50)

    def die_at_part_3(self: Parts, number: int, table: Any, write: Callable[..., None] = Parts.write) -> None:
        if number == 3:
            raise KilledError
        write(self, number, table)

    def die(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        if where == "in a chunk":
            patched.setattr(Parts, "write", die_at_part_3)
        else:
            patched.setattr(resume, "put_in_place", die)
        with pytest.raises(KilledError):
            embed_file(cells_file, broken, tiny_model, chunk_cells=50)
    assert not broken.exists()
    embedded: list[int] = []
    embed_tokens = module.embed_tokens

    def counted(lm: Any, tokens: Any, **options: Any) -> Any:
        embedded.append(len(tokens.rows))
        return embed_tokens(lm, tokens, **options)

    monkeypatch.setattr(module, "embed_tokens", counted)
    summary = embed_file(cells_file, broken, tiny_model, chunk_cells=50)
    kept = 150 if where == "in a chunk" else 240
    assert summary.resumed_cells == kept
    assert sum(embedded) == 240 - kept, "no cell is embedded twice"
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [broken.name, whole.name]


@pytest.mark.parametrize("change", ["layer", "pooling", "context", "weights", "cells"])
def test_what_other_settings_have_left_is_refused_and_told(
    tiny_model: CellModel, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    import copy

    import torch

    out, source = tmp_path / "out.parquet", tmp_path / "in.h5ad"
    cells.write_h5ad(source)

    def die(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(resume, "put_in_place", die)
        with pytest.raises(KilledError):
            embed_file(source, out, tiny_model, chunk_cells=100)
    model, options = tiny_model, {}
    if change == "layer":
        options = {"hidden_layer": 0}
    elif change == "pooling":
        options = {"pooling": "sentence"}
    elif change == "context":
        options = {"context": {"tissue": "blood"}}
    elif change == "weights":
        lm = replace(model.lm, model=copy.deepcopy(model.lm.model))
        with torch.no_grad():
            lm.model.get_decoder().layers[0].self_attn.q_proj.weight.mul_(1.01)
        model = replace(model, lm=lm)
    else:
        changed = cells.copy()
        changed.X.data[:3] += 5
        changed.write_h5ad(source)
    told = {"layer": r"hidden_layer 1 \(now 0\)", "pooling": r'pooling "mean" \(now "sentence"\)'}
    told |= {"context": "context", "weights": "another model", "cells": "another data"}
    with pytest.raises(InputError, match=f"made with .*{told[change]}.*; repeat the command"):
        embed_file(source, out, model, chunk_cells=100, **options)
    assert embed_file(source, out, model, chunk_cells=100, overwrite=True, **options).resumed_cells == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_no_cells_give_no_vectors(tiny_model: CellModel, cells: AnnData, tmp_path: Path) -> None:
    cells[:0].copy().write_h5ad(tmp_path / "in.h5ad")
    for name in ("out.h5ad", "out.parquet"):
        assert embed_file(tmp_path / "in.h5ad", tmp_path / name, tiny_model).cells == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_cytoglot"].shape == (0, 32)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_an_older_result_is_replaced(tiny_model: CellModel, cells_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    embed_file(cells_file, first, tiny_model)
    embed_file(first, second, tiny_model, pooling="last")
    found = anndata.read_h5ad(second)
    assert list(found.obsm) == ["X_cytoglot"]
    np.testing.assert_allclose(
        found.obsm["X_cytoglot"], embed(found, tiny_model, pooling="last", copy=True).obsm["X_cytoglot"], atol=1e-5
    )
    assert found.uns["cytoglot"]["embedding"]["pooling"] == "last token, last hidden state"


def test_memory_does_not_grow_with_the_file(
    tiny_model: CellModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of arrays and Python objects, without the model: three times the cells are three times the chunks, no more."""
    monkeypatch.setattr(module, "embed_tokens", lambda _lm, read, **_: np.zeros((len(read.rows), 32), np.float32))
    peaks, matrix_bytes = [], []
    for n in (3000, 9000):  # both beyond the sample of 2,048 cells that a matrix is judged by
        source = tmp_path / f"{n}.h5ad"
        adata = make_cells(n_cells=n, n_genes=400, expressed=200, seed=4)
        adata.obs = adata.obs[[]]
        matrix_bytes.append(adata.X.nnz * 8)
        adata.write_h5ad(source)
        del adata
        tracemalloc.start()
        embed_file(source, tmp_path / f"{n}.parquet", tiny_model, chunk_cells=250)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < (matrix_bytes[1] - matrix_bytes[0]) / 5


def test_files_that_cannot_be_copied_are_told_apart(cells: AnnData, cells_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.zarr").mkdir()
    (tmp_path / "text.h5ad").write_text("no")
    assert takes_vectors(cells_file)
    assert not takes_vectors(tmp_path / "cells.zarr")
    assert not takes_vectors(tmp_path / "text.h5ad")
    assert not takes_vectors(tmp_path / "nowhere.h5ad")


def test_faults_are_told_and_nothing_is_left(
    tiny_model: CellModel, cells: AnnData, cells_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the output must end in .h5ad or .parquet, found 'o.csv'"):
        embed_file(cells_file, tmp_path / "o.csv", tiny_model)
    with pytest.raises(InputError, match=r"expected an h5ad of anndata 0\.7 or later to copy"):
        embed_file(tmp_path / "cells.zarr", tmp_path / "o.h5ad", tiny_model)
    with pytest.raises(InputError, match="pooling must be one of mean, last, sentence, found 'max'"):
        embed_file(cells_file, tmp_path / "o.h5ad", tiny_model, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layer must lie between -2 and 1 in this model, found 7"):
        embed_file(cells_file, tmp_path / "o.h5ad", tiny_model, hidden_layer=7)
    with pytest.raises(InputError, match="expected chunk_cells of at least 1, found 0"):
        embed_file(cells_file, tmp_path / "o.h5ad", tiny_model, chunk_cells=0)
    for key in ("a/b", ".", "_index", ""):
        with pytest.raises(InputError, match="key_added must give names without '/'"):
            embed_file(cells_file, tmp_path / "o.h5ad", tiny_model, key_added=key)
    with pytest.raises(InputError, match="key_added cannot be 'cell_id'"):
        embed_file(cells_file, tmp_path / "o.parquet", tiny_model, key_added="cell_id")
    with pytest.raises(InputError, match="unknown field of the context 'tisue'; did you mean 'tissue'"):
        embed_file(cells_file, tmp_path / "o.parquet", tiny_model, context={"tisue": "lung"})
    foreign = cells.copy()
    foreign.var_names = [f"OTHER{i}" for i in range(foreign.n_vars)]
    foreign.write_h5ad(tmp_path / "foreign.h5ad")
    with pytest.raises(VocabularyMismatchError, match="0 of the model's"):
        embed_file(tmp_path / "foreign.h5ad", tmp_path / "o.h5ad", tiny_model)
    named = cells.copy()
    named.uns["cytoglot"] = "a word"
    named.write_h5ad(tmp_path / "named.h5ad")
    with pytest.raises(InputError, match=r"expected a mapping in uns\['cytoglot'\]"):
        embed_file(tmp_path / "named.h5ad", tmp_path / "o.h5ad", tiny_model)
    foreign = cells.copy()
    foreign.obsm["X_cytoglot"] = np.zeros((240, 2))
    foreign.write_h5ad(tmp_path / "foreign.h5ad")
    with pytest.raises(InputError, match=r"obsm\['X_cytoglot'\] is there already and cytoglot did not write it"):
        embed_file(tmp_path / "foreign.h5ad", tmp_path / "o.h5ad", tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.h5ad", "named.h5ad"]
