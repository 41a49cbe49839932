"""What a protocol is: splits of a data set, and what one method does on one of them.

Every fit (genes, scaling, components, classifier, threshold) sees training cells alone; labels of test cells reach no
method. Whether a method that should embed or label each cell by itself does so is tested in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from cytoglot.benchmark.cells import BenchmarkCells
from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Classifier, Labels, Probabilities
from cytoglot.benchmark.embedders.base import EMBEDDERS, fit_embedder, needs_fit, sees_all_cells
from cytoglot.benchmark.embedders.precomputed import Precomputed
from cytoglot.benchmark.recipe import MethodSettings
from cytoglot.config import Settings
from cytoglot.errors import CytoglotError, InputError
from cytoglot.protocols import CellEmbedder
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

PROTOCOLS: Registry[type[Protocol]] = Registry(
    "protocol",
    tuple(
        f"cytoglot.benchmark.protocols.{module}"
        for module in ("annotation", "open_set", "label_fractions", "damage", "embedding", "bulk_matching")
    ),
)
_PROBED = 16
"""test cells that are asked again alone"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one method did on one split."""

    cells: pd.DataFrame | None = None
    """a row for each judged cell, as `judged_cells` makes it; intervals and paired differences come from these"""
    values: Mapping[str, float] = field(default_factory=dict)
    """metric → value, of what has no per-cell form"""
    notes: tuple[str, ...] = ()


class Maker:
    """Makes the classifier or embedder of a method anew for each fold, and remembers vectors that no fold changes."""

    def __init__(self, method: MethodSettings, cells: BenchmarkCells) -> None:
        self.method, self._cells = method, cells
        self._fixed: dict[int, CellEmbedder] = {}
        """seed → vectors that are the same in every fold"""
        self.sees_all_cells = False
        """whether the method, as far as it was used, saw the test cells while it learned"""

    def embedder(self, seed: int, *, new_cells: bool = False) -> CellEmbedder | None:
        """Return the embedder, not fitted; None where the method reads expression.

        Parameters
        ----------
        seed
            Of the embedder.
        new_cells
            Whether it will be asked about other values than those of the data set, so that nothing may be remembered.
        """
        name = self.method.embedder
        if name is None:
            return None
        if seed in self._fixed and not new_cells:
            return self._fixed[seed]
        made = EMBEDDERS[name](seed=seed, **self.method.embedder_options)
        self.sees_all_cells = sees_all_cells(made)
        if needs_fit(made):
            return made
        if new_cells:
            if sees_all_cells(made):
                raise InputError(f"{self.method.name} sees all cells, so it cannot embed changed ones")
            return made
        vectors_nd = made.embed(self._cells.adata.copy())
        if not sees_all_cells(made):
            check_alone(vectors_nd, made.embed, self._cells.adata)
        names = self._cells.adata.obs_names
        found = Precomputed(names, vectors_nd, source=self.method.name, sees_all_cells=sees_all_cells(made))
        self._fixed[seed] = found
        return found

    def classifier(self, seed: int, *, new_cells: bool = False) -> Classifier:
        """Return the classifier, not fitted; parameters as in `embedder`."""
        if self.method.classifier is None:
            raise InputError(f"{self.method.name} is an embedder alone and gives no labels")
        make = CLASSIFIERS[self.method.classifier]
        return make(seed=seed, embedder=self.embedder(seed, new_cells=new_cells), **self.method.options)

    def fitted_embedder(self, train: AnnData, seed: int, *, new_cells: bool = False) -> CellEmbedder:
        """Return the embedder fitted on training cells."""
        made = self.embedder(seed, new_cells=new_cells)
        if made is None:
            raise InputError(f"{self.method.name} has no embedder")
        return fit_embedder(made, train)


class Protocol(Settings):
    """Base of all protocols; a field is a setting that a recipe can give."""

    judges: ClassVar[Literal["labels", "embedding"]] = "labels"
    """what a method must give: labels of cells, or vectors"""
    has_ceiling: ClassVar[bool] = False
    """whether it knows what a replicate is"""

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the names of the splits; an InputError where the data set has not what is needed."""
        raise NotImplementedError

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Return what a method does on one split."""
        raise NotImplementedError


def predict(classifier: Classifier, test: AnnData) -> Probabilities:
    """Return p(label) of the test cells, and make sure that a cell's answer does not depend on the cells beside it.

    Raises
    ------
    CytoglotError
        It does, though the method does not say so: it learns from the test cells.
    """
    found = classifier.predict_proba(test)
    if len(found) > 1 and not sees_all_cells(getattr(classifier, "embedder", None) or classifier):  # type: ignore[arg-type]
        check_alone(found, classifier.predict_proba, test)
    return found


def check_alone(found: Any, function: Any, test: AnnData) -> None:
    """Raise a `CytoglotError` if a few of the cells, asked alone, are answered otherwise than among all."""
    rows = np.unique(np.linspace(0, test.n_obs - 1, min(_PROBED, max(1, test.n_obs // 2))).astype(np.int64))
    alone = function(test[rows].copy())
    scale = max(1.0, float(np.abs(found[rows]).max()))
    worst = float(np.abs(alone - found[rows]).max()) / scale
    if worst > 1e-3:
        raise CytoglotError(
            f"answers about test cells depend on the other test cells (by {worst:.2g} of their size), so the method "
            "learns from what it is tested on; if it must, it has to say so with sees_all_cells = True"
        )


def judged_cells(
    cells: BenchmarkCells,
    rows: np.ndarray,
    probability_nl: Probabilities,
    labels: tuple[str, ...],
    *,
    training_labels: Labels,
    condition: str = "",
    **columns: Any,
) -> pd.DataFrame:
    """Return the table of judged cells.

    Columns: cell, group ("" without groups), truth, predicted, confidence, brier (squared distance to the truth, 0 to
    2), in_training (whether training had the true label) and condition; more are given by name.
    """
    names = np.array(labels, dtype=object)
    best_n = probability_nl.argmax(axis=1)
    truth = cells.labels[rows]
    is_true_nl = truth[:, None] == names[None, :]
    missing_n = ~is_true_nl.any(axis=1)
    return pd.DataFrame(
        {
            "cell": cells.adata.obs_names[rows].astype(str),
            "group": "" if cells.groups is None else cells.groups[rows],
            "truth": truth,
            "predicted": names[best_n],
            "confidence": probability_nl[np.arange(len(rows)), best_n],
            "brier": ((probability_nl - is_true_nl) ** 2).sum(axis=1) + missing_n,
            "in_training": np.isin(truth, list(set(training_labels))),
            "condition": condition,
            **columns,
        }
    )
