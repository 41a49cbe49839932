"""Files appear whole or not at all, and only files that can be opened again."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cytoglot import atomic
from cytoglot.atomic import atomic_path, open_again
from cytoglot.errors import CytoglotError


def rich_cells() -> ad.AnnData:
    """One of everything that a file of cells may hold."""
    index = [f"c{i}" for i in range(5)]
    cells = ad.AnnData(
        sparse.random(5, 4, 0.5, "csr"), obs=pd.DataFrame({"a": pd.Categorical(list("xyxyx"))}, index=index)
    )
    cells.raw = cells.copy()
    cells.layers["dense"], cells.layers["csc"] = np.ones((5, 4)), sparse.csc_matrix(np.eye(5, 4))
    cells.obsm["table"], cells.obsm["array"] = pd.DataFrame({"T": np.ones(5)}, index=index), np.ones((5, 2))
    cells.obsp["near"], cells.uns["deep"] = sparse.eye(5, format="csr"), {"a": {"b": "c", "n": 1}}
    return cells


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_cells_are_opened_again_and_take_their_name(tmp_path: Path, suffix: str) -> None:
    for _ in range(2):  # over nothing, then over the first
        with atomic_path(tmp_path / f"cells{suffix}") as path:
            rich_cells().write_h5ad(path) if suffix == ".h5ad" else rich_cells().write_zarr(path)
    assert [path.name for path in tmp_path.iterdir()] == [f"cells{suffix}"]
    open_again(tmp_path / f"cells{suffix}")


@pytest.mark.parametrize("columns", [("T", "T/NK"), ("NK/T", "B")])
def test_a_file_that_does_not_open_again_never_gets_its_name(tmp_path: Path, columns: tuple[str, str]) -> None:
    target = tmp_path / "cells.h5ad"
    target.write_bytes(b"an older file")

    def write_with(path: Path) -> None:
        rich_cells().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file["obsm/table"].attrs["column-order"] = list(columns)

    with (
        pytest.raises(CytoglotError, match=r"cells.h5ad was written but cannot be opened again \(.*was deleted"),
        atomic_path(target) as path,
    ):
        write_with(path)
    assert target.read_bytes() == b"an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_key_with_a_slash_is_no_matrix(tmp_path: Path) -> None:
    cells = rich_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        ad.io.write_elem(file.create_group("obsm/X"), "pca", np.ones((5, 2)))
    with pytest.raises(ValueError, match="/obsm/X is a folder of pca, not a matrix"):
        open_again(tmp_path / "cells.h5ad")


def test_a_table_without_its_end_never_gets_its_name_in_a_folder_either(tmp_path: Path) -> None:
    def write_half(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"a": np.arange(1000)}), path)
        os.truncate(path, 500)

    for target in (tmp_path / "t.parquet", tmp_path / "folder"):
        with (
            pytest.raises(CytoglotError, match=r"t.parquet was written but cannot be opened"),
            atomic_path(target) as path,
        ):
            write_half(path if target.suffix else path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    for text in ("first", "second"):
        with atomic_path(tmp_path / "folder") as path:
            path.mkdir()
            (path / text).write_text(text)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "second"]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="names are exchanged in one step on Linux alone")
def test_a_crash_while_a_folder_is_replaced_leaves_the_name_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / folder.name).write_text("")
    assert atomic._exchanged(first, second)
    assert (first / "second").exists()
    assert (second / "first").exists()

    def die(*_: object) -> None:
        raise AssertionError("a folder was renamed away before the new one had its name")

    monkeypatch.setattr(Path, "replace", die)
    atomic.put_in_place(first, second)
    assert (second / "second").exists()


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("")
    (tmp_path / "new").mkdir()
    replace, calls = Path.replace, []

    def fails_once(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == 2:
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    monkeypatch.setattr(Path, "replace", fails_once)
    with pytest.raises(OSError, match="no"):
        atomic.put_in_place(tmp_path / "new", tmp_path / "folder")
    assert (tmp_path / "folder" / "old").exists()
