"""Votes of the nearest training cells in principal components, or in an embedding."""

from __future__ import annotations

from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import FunctionTransformer

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.errors import InputError
from cytoglot.protocols import CellEmbedder


@CLASSIFIERS.register("nearest_neighbors")
class NearestNeighbors(PipelineClassifier):
    """k nearest neighbors, Euclidean, one vote each, on principal components of ln(1 + counts per 10,000).

    Of an embedding the vectors are taken as they are.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
    n_components
        At most; the components are those of the training cells alone, genes centred and not scaled.
    n_neighbors
        Values of k to try, the first one being taken where there is nothing to choose on.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        embedder: CellEmbedder | None = None,
        n_components: int = 50,
        n_neighbors: tuple[int, ...] = (15, 5, 10, 30, 50),
    ) -> None:
        super().__init__(seed=seed, embedder=embedder)
        self.n_components, self.n_neighbors = n_components, n_neighbors

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the components and the numbers of voters; an InputError with fewer than three cells or genes."""
        if min(n_cells, n_genes) < 3:
            raise InputError(f"nearest neighbors need at least 3 cells and 3 genes, found {(n_cells, n_genes)}")
        settings = {"n_neighbors": [min(k, n_cells) for k in self.n_neighbors]}
        if self.embedder is not None:
            return [FunctionTransformer()], KNeighborsClassifier(), settings
        # arpack centres a sparse matrix without making it dense.
        components = PCA(min(self.n_components, n_cells - 1, n_genes - 1), svd_solver="arpack", random_state=self.seed)
        return [components], KNeighborsClassifier(), settings
