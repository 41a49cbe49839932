"""One contract per socket that takes cells, run over what fills it: shape, type, order, seed, and untouched inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from cytoglot.applications.embedding import ModelEmbedder
from cytoglot.cell_model.load import CellModel
from cytoglot.protocols import CellEmbedder, PerturbationPredictor


class SvdEmbedder:
    """Components fitted once, as a reference that is no language model."""

    def __init__(self, cells: AnnData) -> None:
        self._svd = TruncatedSVD(4, random_state=0).fit(cells.X)

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        return np.asarray(self._svd.transform(adata.X), dtype=np.float32)


class ControlsAgain:
    """Predicts that nothing changes: control cells drawn anew. The floor of every predictor."""

    def predict(self, control: AnnData, perturbations: Sequence[str], *, seed: int) -> AnnData:
        rng = np.random.default_rng(seed)
        rows = rng.integers(control.n_obs, size=len(perturbations) * control.n_obs)
        names = [f"predicted {i}" for i in range(len(rows))]
        obs = pd.DataFrame({"perturbation": np.repeat(list(perturbations), control.n_obs)}, index=names)
        return AnnData(X=control.X[rows], obs=obs, var=control.var.copy())


EMBEDDERS: dict[str, Callable[[AnnData, CellModel], CellEmbedder]] = {
    "cell model": lambda cells, model: ModelEmbedder(model=model),
    "svd": lambda cells, model: SvdEmbedder(cells),
}
PREDICTORS: dict[str, Callable[[], PerturbationPredictor]] = {"controls again": ControlsAgain}


def same_cells(first: AnnData, second: AnnData) -> bool:
    return bool(
        (first.X != second.X).nnz == 0
        and first.obs.equals(second.obs)
        and first.var.equals(second.var)
        and first.uns.keys() == second.uns.keys()
        and first.obsm.keys() == second.obsm.keys()
    )


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_gives_a_vector_for_each_cell_in_their_order(
    name: str, cells: AnnData, tiny_model: CellModel
) -> None:
    embedder, some = EMBEDDERS[name](cells, tiny_model), cells[:24].copy()
    before = some.copy()
    assert isinstance(embedder, CellEmbedder)
    vectors_nd = embedder.embed(some)
    assert isinstance(vectors_nd, np.ndarray)
    assert (vectors_nd.dtype, vectors_nd.ndim, len(vectors_nd)) == (np.float32, 2, 24)
    assert np.isfinite(vectors_nd).all()
    assert vectors_nd.std(axis=0).max() > 0
    assert same_cells(some, before)
    np.testing.assert_array_equal(embedder.embed(some), vectors_nd)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(embedder.embed(some[order].copy()), vectors_nd[order], atol=1e-4)
    np.testing.assert_allclose(embedder.embed(some[:5].copy()), vectors_nd[:5], atol=1e-4)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_gives_cells_of_every_perturbation_and_the_same_for_a_seed(name: str, cells: AnnData) -> None:
    predictor, control = PREDICTORS[name](), cells[:20].copy()
    before, asked = control.copy(), ["STAT1", "IRF1"]
    assert isinstance(predictor, PerturbationPredictor)
    predicted = predictor.predict(control, asked, seed=3)
    assert isinstance(predicted, AnnData)
    assert set(predicted.obs["perturbation"]) == set(asked)
    assert predicted.var_names.equals(control.var_names)
    assert predicted.obs_names.is_unique
    assert np.isfinite(predicted.X.data).all()
    assert same_cells(control, before)
    assert same_cells(predictor.predict(control, asked, seed=3), predicted)
    assert not same_cells(predictor.predict(control, asked, seed=4), predicted)
