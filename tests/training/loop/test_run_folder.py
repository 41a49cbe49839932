"""A folder of a run is taken up by the run that it is of: by what its inputs hold, not by how they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from cytoglot.data.readers.read import read
from cytoglot.data.splits.splitting import split_cells
from cytoglot.errors import InputError
from cytoglot.lm.model.fingerprint import folder_fingerprint
from cytoglot.manifest import Manifest
from cytoglot.training.cells import begin_run
from cytoglot.training.job import TrainJob
from cytoglot.training.loop.run_folder import check_folder, open_work
from cytoglot.training.recipe import TrainRecipe


def manifest(
    adata: AnnData, *, source: str = "cells.h5ad", recipe: TrainRecipe | None = None, **options: Any
) -> Manifest:
    job = TrainJob(source=source, label="cell_type", recipe=recipe or TrainRecipe(), **options)
    return begin_run(job, read(adata)).manifest


@pytest.fixture
def begun(cells: AnnData, tmp_path: Path) -> Path:
    """The folder of a run that was broken off."""
    open_work(tmp_path / "m", manifest(cells), overwrite=False)
    return tmp_path / "m"


def _labels(adata: AnnData) -> None:
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(lambda name: f"{name} corrected")


def _donors(adata: AnnData) -> None:
    adata.obs["donor"] = adata.obs["donor"].to_numpy()[::-1]


def _rows(adata: AnnData) -> None:
    adata.X = adata.X[np.random.default_rng(0).permutation(adata.n_obs)]


def _count(adata: AnnData) -> None:
    counts_ng = adata.X.toarray()
    counts_ng[3, 7], counts_ng[4, 7] = counts_ng[3, 7] + 1, counts_ng[4, 7] + 2
    adata.X = csr_matrix(counts_ng)


@pytest.mark.parametrize(
    ("change", "what"),
    [(_labels, "obs column cell_type"), (_donors, "obs column donor"), (_rows, "values"), (_count, "values")],
)
def test_a_run_on_inputs_that_were_corrected_is_refused_with_what_has_changed(
    change: Callable[[AnnData], None], what: str, cells: AnnData, begun: Path
) -> None:
    corrected = cells.copy()
    change(corrected)
    with pytest.raises(
        InputError, match=rf"an unfinished run with other inputs \({what}\); .* --overwrite .* or another folder$"
    ):
        check_folder(begun, manifest(corrected), overwrite=False)


def test_the_same_content_under_another_path_and_in_another_format_is_the_same_run(cells: AnnData, begun: Path) -> None:
    dense = cells.copy()
    dense.X = cells.X.toarray().astype(np.float32)
    dense.obs["cell_type"] = dense.obs["cell_type"].astype(object)
    dense.obs["something else"] = 1
    check_folder(begun, manifest(dense, source="elsewhere/renamed.h5ad"), overwrite=False)
    check_folder(begun, manifest(cells[:, ::-1]), overwrite=False)


def test_columns_that_nothing_reads_are_no_inputs(cells: AnnData, tmp_path: Path) -> None:
    open_work(tmp_path / "m", manifest(cells, split_by="cell"), overwrite=False)
    swapped = cells.copy()
    _donors(swapped)
    check_folder(tmp_path / "m", manifest(swapped, split_by="cell"), overwrite=False)
    by_batch = TrainRecipe.model_validate({"sentence": {"hvg": 20, "hvg_batch_key": "donor"}})
    open_work(tmp_path / "n", manifest(cells, split_by="cell", recipe=by_batch), overwrite=False)
    with pytest.raises(InputError, match=r"inputs \(obs column donor\)"):
        check_folder(tmp_path / "n", manifest(swapped, split_by="cell", recipe=by_batch), overwrite=False)


def test_settings_that_differ_are_named(cells: AnnData, begun: Path) -> None:
    other = TrainRecipe.model_validate({"optim": {"steps": 7}})
    with pytest.raises(InputError, match=r"config \(recipe.optim.steps: \d+ → 7\) and seeds \(seed: 0 → 1\); "):
        check_folder(begun, manifest(cells, recipe=other, seed=1), overwrite=False)


def test_the_content_of_a_split_is_no_setting_and_its_parts_are(cells: AnnData, tmp_path: Path) -> None:
    from cytoglot.data.genes.vocabulary import GeneVocabulary
    from cytoglot.data.splits.content import content_of_cells

    split = split_cells(cells.obs, by="cell")
    open_work(tmp_path / "m", manifest(cells, split=split), overwrite=False)
    content = content_of_cells(read(cells), GeneVocabulary(tuple(cells.var_names)))
    check_folder(tmp_path / "m", manifest(cells, split=split.with_content(cells.obs_names, content)), overwrite=False)
    with pytest.raises(InputError, match=r"other config \(split: "):
        check_folder(tmp_path / "m", manifest(cells, split=split_cells(cells.obs, by="cell", seed=1)), overwrite=False)


def test_a_run_of_an_earlier_version_is_refused_and_told_so(cells: AnnData, begun: Path) -> None:
    earlier = manifest(cells)
    inputs = {"cells": "0123456789abcdef", "source": "cells.h5ad"}
    open_work(begun.parent / "old", Manifest.from_dict({**earlier.to_dict(), "inputs": inputs}), overwrite=False)
    with pytest.raises(InputError, match="an earlier version wrote it, which did not keep what is in them"):
        check_folder(begun.parent / "old", earlier, overwrite=False)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_the_fingerprint_of_a_base_sees_every_byte_of_its_weights(name: str, tmp_path: Path) -> None:
    content = bytearray(20_000_000)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    seen = {folder_fingerprint(tmp_path)}
    for place in np.random.default_rng(0).integers(0, len(content), 3):
        content[place] ^= 1
        (tmp_path / name).write_bytes(content)
        seen.add(folder_fingerprint(tmp_path))
    assert len(seen) == 4
    (tmp_path / "training.json").write_text('{"seconds": 3}')
    (tmp_path / "README.md").write_text("a card")
    assert folder_fingerprint(tmp_path) in seen
