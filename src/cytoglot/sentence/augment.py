"""Augmented views of a cell sentence: genes dropped, ranks jittered, the end cut off.

A view is what the same cell might have read like with other sampling noise. Training shows one view at a time;
annotation may average the answers over several.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from cytoglot.config import Settings


class AugmentSettings(Settings):
    """How far a view may stray from the sentence."""

    max_gene_dropout: float = 0.4
    """each view drops a share of its genes, uniform between 0 and this"""
    rank_jitter: float = 0.15
    """standard deviation of the normal noise added to log(rank + 2) before the genes are put in order again"""
    truncate_share: float = 0.3
    """share of training views that end at a random place"""
    unchanged_share: float = 0.2
    """share of training views that are the sentence itself"""
    min_genes: int = 5
    """no view is cut below this many genes (or below the sentence, if that is shorter)"""


def training_view(
    gene_ids: NDArray[np.integer], rng: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.integer]:
    """Return one random training view of a sentence's gene ids; an empty sentence stays empty."""
    if len(gene_ids) == 0 or rng.random() < settings.unchanged_share:
        return gene_ids
    view = _jitter_and_drop(gene_ids, rng, settings)
    if len(view) > settings.min_genes and rng.random() < settings.truncate_share:
        view = view[: rng.integers(max(settings.min_genes, len(view) // 6), len(view) + 1)]
    return view


def tie_order(tied: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return places (w,) that put genes of equal expression in a new random order and leave all others.

    Parameters
    ----------
    tied
        (w,) whether each gene is expressed as much as the gene before it in its cell; of one cell, or of several one
        after another.
    """
    return np.argsort(np.cumsum(~tied) + rng.random(len(tied)), kind="stable")


def answering_view(
    gene_ids: NDArray[np.integer], *, cell_id: str, view: int, settings: AugmentSettings
) -> NDArray[np.integer]:
    """Return view number `view` of a cell; view 0 is the sentence itself.

    The noise depends on the cell's id and the number of the view alone, never on its place in the file.
    """
    if view == 0 or len(gene_ids) == 0:
        return gene_ids
    rng = np.random.default_rng([zlib.crc32(cell_id.encode()), view])
    return _jitter_and_drop(gene_ids, rng, settings)


def _jitter_and_drop(
    gene_ids: NDArray[np.integer], rng: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.integer]:
    n = len(gene_ids)
    key_w = np.log(np.arange(n) + 3.0) + settings.rank_jitter * rng.standard_normal(n)
    view = gene_ids[np.argsort(key_w, kind="stable")]
    kept_w = rng.random(n) >= rng.random() * settings.max_gene_dropout
    return view[kept_w] if kept_w.sum() >= min(settings.min_genes, n) else view
