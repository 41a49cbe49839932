"""The classifier of the cell-sentence study of variable genes: two hidden layers on a frozen embedding.

512 – BatchNorm – GELU – dropout 0.1, 256 – BatchNorm – GELU – dropout 0.1, then the labels; cross-entropy, Adam at
1e-3, at most 150 epochs, stopped after 30 without a better validation loss. Not stated there, and chosen here: batches
of 256, a stratified tenth of the training cells for validation, the best epoch restored, inputs standardized.
Axes: n cells, d features, l labels.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cytoglot import extras
from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.errors import InputError
from cytoglot.protocols import CellEmbedder


class MlpClassifier(ClassifierMixin, BaseEstimator):
    """The network as a scikit-learn classifier (torch, extra `lm`).

    Parameters
    ----------
    hidden, dropout, learning_rate, batch_size
        Of the network and its training.
    epochs, patience
        Most epochs, and how many without a better validation loss end it.
    seed
        Of weights, batches, dropout and validation cells.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.1,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        epochs: int = 150,
        patience: int = 30,
        seed: int = 0,
    ) -> None:
        self.hidden, self.dropout, self.learning_rate = hidden, dropout, learning_rate
        self.batch_size, self.epochs, self.patience, self.seed = batch_size, epochs, patience, seed

    def fit(self, x_nd: NDArray[np.floating], y: ArrayLike) -> Self:
        """Train on nine tenths of the cells until the loss on the last tenth no longer falls."""
        torch: Any = extras.require("torch", extra="lm", purpose="the MLP classifier")
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        rng = np.random.default_rng(self.seed)
        # A tenth of each label, of a label with fewer than ten cells none.
        of_label = (rng.permutation(np.flatnonzero(codes == label)) for label in range(len(self.classes_)))
        held = np.sort(np.concatenate([rows[: len(rows) // 10] for rows in of_label]))
        kept = np.setdiff1d(np.arange(len(codes)), held)
        x, target = torch.tensor(np.asarray(x_nd), dtype=torch.float32), torch.tensor(codes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sizes = (x.shape[1], *self.hidden)
            layers: list[Any] = []
            for n_in, n_out in itertools.pairwise(sizes):
                layers += [torch.nn.Linear(n_in, n_out), torch.nn.BatchNorm1d(n_out), torch.nn.GELU()]
                layers.append(torch.nn.Dropout(self.dropout))
            self._network = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], len(self.classes_)))
            optimizer = torch.optim.Adam(self._network.parameters(), lr=self.learning_rate)
            loss_of = torch.nn.CrossEntropyLoss()
            best_loss, best, waited = float("inf"), None, 0
            for _ in range(self.epochs):
                self._network.train()
                order = rng.permutation(kept)
                for start in range(0, len(order), self.batch_size):
                    rows = order[start : start + self.batch_size]
                    if len(rows) < 2:  # BatchNorm has no variance of one cell
                        continue
                    optimizer.zero_grad(set_to_none=True)
                    loss_of(self._network(x[rows]), target[rows]).backward()
                    optimizer.step()
                if not len(held):
                    continue
                self._network.eval()
                with torch.inference_mode():
                    loss = float(loss_of(self._network(x[held]), target[held]))
                if loss < best_loss:
                    best_loss, best, waited = loss, copy.deepcopy(self._network.state_dict()), 0
                else:
                    waited += 1
                if waited >= self.patience:
                    break
            if best is not None:
                self._network.load_state_dict(best)
        self._network.eval()
        return self

    def predict_proba(self, x_nd: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return shape (n, l), rows summing to 1."""
        import torch

        with torch.inference_mode():
            logits = self._network(torch.tensor(np.asarray(x_nd), dtype=torch.float32)).double()
            return np.asarray(torch.softmax(logits, dim=1).numpy(), dtype=np.float64)


@CLASSIFIERS.register("mlp")
class Mlp(PipelineClassifier):
    """The network on a standardized embedding; without one, on 50 principal components of all genes.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
    epochs, patience
        See `MlpClassifier`.
    """

    def __init__(
        self, *, seed: int = 0, embedder: CellEmbedder | None = None, epochs: int = 150, patience: int = 30
    ) -> None:
        super().__init__(seed=seed, embedder=embedder)
        self.epochs, self.patience = epochs, patience

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the one network; an InputError with fewer than two labels or three cells."""
        if len(self.labels) < 2 or min(n_cells, n_genes) < 3:
            raise InputError(
                f"the MLP needs two labels, 3 cells and 3 features, found {len(self.labels)} labels and "
                f"{(n_cells, n_genes)}"
            )
        scaled = StandardScaler()
        if self.embedder is None:
            pca = PCA(min(50, n_cells - 1, n_genes - 1), svd_solver="arpack", random_state=self.seed)
            scaled = make_pipeline(pca, scaled)
        return [scaled], MlpClassifier(epochs=self.epochs, patience=self.patience, seed=self.seed), {}
