"""A cytoglot model that is trained on the training cells of each fold: what the other methods are compared with.

A trained model is kept under the fingerprint of its cells, labels, recipe and seed, so that it is trained once for all
the ways to ask it, and an interrupted training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cytoglot import __version__
from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Probabilities, checked_labels
from cytoglot.download import cache_folder
from cytoglot.errors import InputError
from cytoglot.hashing import cell_hashes
from cytoglot.manifest import fingerprint_bytes

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.protocols import CellEmbedder

logger = logging.getLogger(__name__)


@CLASSIFIERS.register("cytoglot")
class TrainedCellModel:
    """A language model trained by a recipe on the cells of the fold, then asked for labels.

    Parameters
    ----------
    recipe
        A file, or the name of a recipe that comes with cytoglot; None: the default one.
    settings
        Changes of it, such as {"optim.steps": 100}.
    method
        How it is asked: by the likelihood of the labels ("score"), its linear head ("head"), both ("hybrid"), or what
        was best on validation cells ("auto").
    folder
        Where trained models are kept; None: in the user's cache.
    device
        Where it is trained.
    seed, embedder
        The seed of the training; no embedder is taken.
    """

    def __init__(
        self,
        *,
        recipe: str | None = None,
        settings: Mapping[str, Any] | None = None,
        method: Literal["auto", "score", "head", "hybrid"] = "auto",
        folder: str | Path | None = None,
        device: str = "auto",
        seed: int = 0,
        embedder: CellEmbedder | None = None,
    ) -> None:
        if embedder is not None:
            raise InputError("a cytoglot model reads expression; leave the embedder out")
        self.recipe, self.settings, self.method, self.device, self.seed = recipe, settings or {}, method, device, seed
        self.folder = cache_folder() / "benchmark" if folder is None else Path(folder)
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Any] = {}

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Train, or load the model that was trained on the same cells; validation cells calibrate it."""
        # Torch is loaded here, so that the names of classifiers are known without it.
        import anndata

        from cytoglot.config import load_recipe, recipes
        from cytoglot.data.splits.split import Split
        from cytoglot.training.recipe import TrainRecipe
        from cytoglot.training.run import train as train_model

        parts = [(train, checked_labels(train, train_labels))]
        if validation is not None and validation.n_obs:
            parts.append((validation, checked_labels(validation, validation_labels)))
        labels_n = np.concatenate([labels for _, labels in parts])
        cells = anndata.concat([part for part, _ in parts])
        cells.obs = pd.DataFrame({"label": labels_n.astype(str)}, index=cells.obs_names)
        named = recipes().get(self.recipe) if self.recipe is not None else None
        recipe = load_recipe(TrainRecipe, named or self.recipe, self.settings)
        facts = (
            __version__,
            recipe.model_dump_json(),
            str(self.seed),
            str(train.n_obs),
            *map(str, labels_n),
            *cells.var_names,
        )
        name = fingerprint_bytes([cell_hashes(cells.X).tobytes(), *(fact.encode() for fact in facts)])
        names = cells.obs_names.astype(str)
        split = Split(
            train=tuple(names[: train.n_obs]),
            validation=tuple(names[train.n_obs :]),
            by="cell",
            seed=self.seed,
            fractions=(train.n_obs / cells.n_obs, 1 - train.n_obs / cells.n_obs, 0.0),
        )
        self._model = train_model(
            cells,
            label="label",
            out=self.folder / name,
            recipe=recipe,
            split=split,
            seed=self.seed,
            device=self.device,
        )
        self.labels = tuple(sorted(self._model.labels))
        self.chosen = {"method": self._model.annotation_method() if self.method == "auto" else self.method}
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return calibrated p(label | cell), shape (n, l)."""
        from cytoglot.applications.annotation import label_probabilities

        if adata.n_obs == 0:
            return np.zeros((0, len(self.labels)))
        sentences, _ = self._model.sentences(adata)
        found = label_probabilities(self._model, sentences, method=self.method)
        columns = [found.labels.index(label) for label in self.labels]
        return np.asarray(found.probability_nk[:, columns], dtype=np.float64)
