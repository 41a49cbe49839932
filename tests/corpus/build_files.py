"""Small files of cells for tests of the build, and how two corpora are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cytoglot.corpus.format.folder import PARTS, Corpus
from cytoglot.corpus.sources.recipe import CorpusRecipe

N_GENES = 60


def some_cells(n_cells: int, *, seed: int, n_donors: int = 5, genes: str = "G", tissue: str = "lung") -> AnnData:
    """Cells of about thirty expressed genes; counts differ enough that no two cells are the same."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 3.0, (n_cells, N_GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": rng.choice(["B cell", "T cell", "unknown"], n_cells),
            "donor_id": [f"d{i % n_donors}" for i in range(n_cells)],
            "tissue": tissue,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return AnnData(X=csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"{genes}{i}" for i in range(N_GENES)]))


def two_sources(folder: Path) -> CorpusRecipe:
    """Write two files, the second with a repeated cell of the first, and return a recipe of small spans and shards."""
    first, second = some_cells(90, seed=1), some_cells(70, seed=2, genes="G", tissue="blood")
    second.X = vstack([second.X[:3], first.X[10], second.X[4:]], format="csr")
    first.write_h5ad(folder / "first.h5ad")
    second.write_h5ad(folder / "second.h5ad")
    return recipe_of("first.h5ad", "second.h5ad")


def recipe_of(*paths: str, **parts: Any) -> CorpusRecipe:
    """Return a recipe of these files without repair of gene names, in spans and shards of about thirty cells."""
    return CorpusRecipe.model_validate(
        {"sources": [{"path": path} for path in paths], "genes": {"repair": False}, "shard_ids": 1000, **parts}
    )


def sentences_of(corpus: Corpus) -> dict[tuple[str, str], list[str]]:
    """Return source and cell id → words; a cell that is there twice fails."""
    found: dict[tuple[str, str], list[str]] = {}
    for part in PARTS:
        for block in corpus.blocks(part):
            codes, sources = block.values("source")
            for cell, name in enumerate(block.cell_ids.to_pylist()):
                key = sources[codes[cell]], name
                assert key not in found
                found[key] = [corpus.vocabulary.symbols[gene] for gene in block.ids(cell)]
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
