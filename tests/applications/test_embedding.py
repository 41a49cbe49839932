"""Embeddings: one vector per cell, the same in every company, and nearer to its own type."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from cytoglot.applications.embedding import ModelEmbedder, embed
from cytoglot.cell_model.load import CellModel
from cytoglot.protocols import CellEmbedder


def test_a_vector_is_the_same_in_every_company(tiny_model: CellModel, cells: AnnData) -> None:
    together = embed(cells[:40], tiny_model, copy=True).obsm["X_cytoglot"]
    reordered = embed(cells[:40][::-1], tiny_model, copy=True).obsm["X_cytoglot"]
    np.testing.assert_allclose(reordered[::-1], together, atol=1e-5)
    np.testing.assert_allclose(embed(cells[7:8], tiny_model, copy=True).obsm["X_cytoglot"], together[7:8], atol=1e-5)


def test_labels_change_nothing(tiny_model: CellModel, cells: AnnData) -> None:
    bare = AnnData(X=cells[:9].X, obs=pd.DataFrame(index=cells.obs_names[:9]), var=cells.var)
    np.testing.assert_array_equal(
        embed(bare, tiny_model, copy=True).obsm["X_cytoglot"],
        embed(cells[:9], tiny_model, copy=True).obsm["X_cytoglot"],
    )


def test_types_lie_apart(tiny_model: CellModel, cells: AnnData) -> None:
    embedding_nd = embed(cells, tiny_model, copy=True).obsm["X_cytoglot"].astype(float)
    embedding_nd -= embedding_nd.mean(axis=0)
    embedding_nd /= np.linalg.norm(embedding_nd, axis=1, keepdims=True)
    cosine_nn = embedding_nd @ embedding_nd.T
    types = cells.obs["cell_type"].to_numpy()
    same = types[:, None] == types[None]
    others = ~np.eye(len(types), dtype=bool)
    assert cosine_nn[same & others].mean() > cosine_nn[~same].mean() + 0.1


def test_the_input_is_not_changed_unless_asked(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:4].copy()
    embed(some, tiny_model, key_added="X_mine", copy=True)
    assert not some.obsm
    assert not some.uns
    assert embed(some, tiny_model, key_added="X_mine") is None
    assert some.obsm["X_mine"].dtype == np.float32
    assert some.uns["cytoglot"]["embedding_X_mine"]["key"] == "X_mine"


def test_a_model_is_an_embedder(tiny_model: CellModel, cells: AnnData) -> None:
    embedder = ModelEmbedder(model=tiny_model)
    assert isinstance(embedder, CellEmbedder)
    np.testing.assert_array_equal(embedder.embed(cells[:3]), embed(cells[:3], tiny_model, copy=True).obsm["X_cytoglot"])
