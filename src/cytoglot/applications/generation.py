"""Write new cells: every word a gene of the vocabulary, none twice, and back to expression through the rank curve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.applications.outputs import add_record, made_in_parts, model_settings, parts_of
from cytoglot.cell_model.load import CellModel, as_cell_model
from cytoglot.data.write import fill_h5ad
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.sentence.decode import decode
from cytoglot.tasks.task import check_context
from cytoglot.tasks.template import TERMINATOR

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

CHUNK_CELLS = 256
"""cells between two saved parts of a file"""


def generate(
    model: CellModel | LanguageModel | str | Path,
    cell_type: str | None = None,
    *,
    n: int,
    n_genes: int | None = None,
    temperature: float | None = None,
    top_p: float = 1.0,
    context: Mapping[str, str] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    chunk_cells: int = CHUNK_CELLS,
) -> AnnData:
    """Return `n` new cells as an AnnData over the model's genes.

    `X` holds reconstructed expression, log10(1 + counts per 10,000), CSR float32; `layers["rank"]` the rank of each
    gene in its sentence (1 = first, 0 = absent), CSR int32; `obs` the cell type asked for and the sentence.

    Parameters
    ----------
    model
        A cell model, or its folder or name on the hub.
    cell_type
        One of the model's labels; None writes cells of any type.
    n
        Cells to write.
    n_genes
        Words of each sentence. By default drawn for each cell from the lengths of the type's training cells.
    context
        Metadata for the prompts, such as {"organism": "human", "tissue": "blood"}.
    temperature, top_p
        Of the sampling: genes are drawn from the `top_p` most likely share of probability, and temperature 0 always
        takes the likeliest one (then all cells of one length are equal). By default the
        temperature at which cells of a type were as diverse as real validation cells of it.
    seed
        Cell i depends on the seed and on i, not on `n` or on batches.
    output
        An h5ad to write the cells to as well. It is made in parts of `chunk_cells` cells: the same call after a kill
        goes on with the parts that are missing and ends with the same bytes.
    overwrite
        Begin anew where an interrupted run of other settings has left parts.
    chunk_cells
        Cells between two saved parts of `output`.

    Raises
    ------
    UnknownNameError
        The model has no such label (the nearest ones are listed).
    InputError
        `n` or `n_genes` is not positive, or asks for more genes than the vocabulary has; or an interrupted run for
        `output` was given something else (the message says what).

    Examples
    --------
    >>> import cytoglot as cg
    >>> cells = cg.generate("model", "type A", n=3, n_genes=20)
    >>> cells.n_obs, cells.obs["cell_type"].unique().tolist()
    (3, ['type A'])
    """
    model = as_cell_model(model)
    check_generation(model, cell_type, n, n_genes)
    check_context(context)
    curve = model.rank_curve  # refuses a model without one before anything is written
    lengths = np.full(n, n_genes) if n_genes is not None else draw_lengths(model, cell_type, n, seed=seed)
    used = model.spec.calibration.generation_temperature if temperature is None else temperature

    def settings() -> dict[str, Any]:
        return {
            **model_settings(model, "unconditional_generation" if cell_type is None else "cell_generation"),
            "cell_type": cell_type,
            "n": n,
            "n_genes": n_genes,
            "temperature": used,
            "top_p": top_p,
            "context": dict(context or {}),
            "seed": seed,
            "chunk_cells": chunk_cells,
        }

    def make(first: int, last: int) -> pa.Table:
        some = lengths[first:last]
        texts = model.write(cell_type, some, temperature=used, top_p=top_p, context=context, seed=seed, first=first)
        return pa.table({"text": texts})

    with parts_of(output, settings, overwrite=overwrite) as parts:
        texts = made_in_parts(make, n, chunk_cells, parts)["text"].to_pylist()
        adata = decode(
            texts,
            vocabulary=model.spec.vocabulary,
            rank_curve=curve,
            cell_ids=[f"generated_{i}" for i in range(n)],
            n_expressed=np.maximum(1, np.round(lengths * model.spec.expressed_per_word)).astype(np.int32),
        )
        if adata.obs[["n_unknown", "n_duplicates"]].to_numpy().any():
            raise AssertionError("constrained generation wrote an invalid or repeated gene")
        adata.obs["cell_type"] = pd.Categorical([cell_type or "any"] * n)
        adata.obs["cell_sentence"] = [text.strip().removesuffix(TERMINATOR).strip() for text in texts]
        add_record(adata, "generation", {"cell_type": cell_type or "", "temperature": used, "top_p": top_p})
        logger.info("generated %d cells of %s", n, cell_type or "any type")
        if parts is not None:
            with parts.whole() as path:
                fill_h5ad(adata, path)
    return adata


def draw_lengths(model: CellModel, cell_type: str | None, n: int, *, seed: int) -> NDArray[np.int64]:
    """Draw sentence lengths from the quantiles of the training cells of a type (of all types, by their frequency)."""
    rng = np.random.default_rng([seed, 5])
    if not model.spec.words_per_label:
        raise InputError("this model does not know the lengths of its training sentences; pass n_genes")
    names = list(model.spec.words_per_label)
    counts = dict(zip(model.spec.labels, model.spec.label_counts, strict=True))
    weights = np.array([counts.get(name, 0) for name in names], dtype=float)
    drawn = [cell_type] * n if cell_type is not None else rng.choice(names, size=n, p=weights / weights.sum()).tolist()
    quantiles = np.array([model.spec.words_per_label[name] for name in drawn], dtype=float)
    places = rng.uniform(0.05, 0.95, size=n)
    lengths = [
        np.interp(place, [0.05, 0.25, 0.5, 0.75, 0.95], row) for place, row in zip(places, quantiles, strict=True)
    ]
    return np.clip(np.round(lengths), 1, len(model.spec.vocabulary)).astype(np.int64)


def check_generation(model: CellModel, cell_type: str | None, n: int, n_genes: int | None) -> None:
    """Refuse a cell type that the model does not know, and numbers that are not positive or too large."""
    if cell_type is not None and cell_type not in model.spec.labels:
        raise UnknownNameError("cell type of this model", cell_type, model.spec.labels)
    if n < 1:
        raise InputError(f"the number of cells to generate must be at least 1, found {n}")
    if n_genes is not None and not 1 <= n_genes <= len(model.spec.vocabulary):
        raise InputError(
            f"n_genes must be between 1 and {len(model.spec.vocabulary)} (the vocabulary), found {n_genes}"
        )
