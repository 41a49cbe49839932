"""The Plackett–Luce model of cell sentences: genes are drawn one after another, by fixed weights, without replacement.

It is what a sentence would be if nothing but the abundance of each gene decided its place: no gene says anything of
another one. So it is both the profile that a language model starts from and the baseline that it has to beat.

Axes: c cells, r ranks, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError

Ids = NDArray[np.integer]

_TOLERANCE = 1e-3
"""largest change of a log weight in a round of a fit that has converged; a nat of a word moves by less"""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlackettLuce:
    """Weights of genes, and the sums over cells that they were fitted from."""

    weights_g: NDArray[np.float64]
    """(g,) above 0, with sum 1"""
    wins_g: NDArray[np.float64]
    """(g,) share of the cells that have the gene in their sentence, pseudo-cells included"""
    exposure_g: NDArray[np.float64]
    """(g,) per cell, the sum over the draws that the gene took part in of 1 / weight still undrawn"""

    @classmethod
    def uniform(cls, n_genes: int, *, length: float) -> PlackettLuce:
        """Return equal weights, as cells of this many genes would have them."""
        return cls(
            weights_g=np.full(n_genes, 1 / n_genes),
            wins_g=np.full(n_genes, length / n_genes),
            exposure_g=np.full(n_genes, length),
        )


def fit_plackett_luce(
    sentences: Sequence[Ids],
    n_genes: int,
    *,
    parent: PlackettLuce | None = None,
    shrink: float | None = None,
    rounds: int = 200,
) -> PlackettLuce:
    """Fit the weights by maximum likelihood, with pseudo-cells that keep rare types near their parent.

    Parameters
    ----------
    sentences
        Gene ids of each cell, highest first, none twice; empty ones say nothing.
    n_genes
        Genes of the vocabulary.
    parent
        What the weights are shrunk towards, such as those of all cells; equal weights by default.
    shrink
        Number of pseudo-cells of the parent; by default 20, and 1 of equal weights.
    rounds
        Most rounds of minorize-maximize; it ends before where no log weight moves by more than 0.001.

    Raises
    ------
    InputError
        No sentence has a gene, and there is no parent to fall back to.

    Notes
    -----
    Hunter (2004), for rankings that end early: what comes after the last rank only lost. A gene that no cell has gets
    its weight from the pseudo-cells alone, so no weight is 0.
    """
    filled = [np.asarray(ids, dtype=np.int64) for ids in sentences if len(ids)]
    if not filled:
        if parent is None:
            raise InputError("a profile of cells needs at least one cell with a gene, found none")
        return parent
    lengths = np.array([len(ids) for ids in filled])
    if parent is None:
        parent, shrink = PlackettLuce.uniform(n_genes, length=float(lengths.mean())), 1.0 if shrink is None else shrink
    shrink = 20.0 if shrink is None else shrink
    ids_cr = np.zeros((len(filled), int(lengths.max())), dtype=np.int64)
    there_cr = np.arange(ids_cr.shape[1]) < lengths[:, None]
    ids_cr[there_cr] = np.concatenate(filled)
    drawn = ids_cr[there_cr]
    n = len(filled) + shrink
    wins_g = (np.bincount(drawn, minlength=n_genes) + shrink * parent.wins_g) / n
    weights_g, exposure_g = parent.weights_g, parent.exposure_g
    for _ in range(rounds):
        weight_cr = np.where(there_cr, weights_g[ids_cr], 0.0)
        undrawn_cr = 1 - np.cumsum(weight_cr, axis=1) + weight_cr
        # Rounding may leave nothing where a sentence holds nearly all of the weight.
        met_cr = np.cumsum(np.where(there_cr, 1 / np.maximum(undrawn_cr, 1e-9), 0.0), axis=1)
        last_c = met_cr[:, -1]
        less = np.bincount(drawn, weights=(last_c[:, None] - met_cr)[there_cr], minlength=n_genes)
        exposure_g = (last_c.sum() - less + shrink * parent.exposure_g) / n
        before_g, weights_g = weights_g, wins_g / exposure_g
        weights_g = weights_g / weights_g.sum()
        if np.abs(np.log(weights_g / before_g)).max() < _TOLERANCE:
            break
    return PlackettLuce(weights_g=weights_g, wins_g=wins_g, exposure_g=exposure_g)


def plackett_luce_nats(weights_g: NDArray[np.floating], ids: Ids) -> float:
    """Return −log p of a sentence, in nats: the sum over its words of −log(weight / weight of what is not yet drawn).

    Weights need no particular sum. 0 for an empty sentence.
    """
    weight_r = np.asarray(weights_g, dtype=np.float64)[np.asarray(ids, dtype=np.int64)]
    # From the end, so that no difference of nearly equal numbers is taken.
    rest = max(float(np.sum(weights_g, dtype=np.float64)) - float(weight_r.sum()), 0.0)
    undrawn_r = rest + np.cumsum(weight_r[::-1])[::-1]
    return float(np.sum(np.log(undrawn_r) - np.log(weight_r)))


def plackett_luce_draw(weights_g: NDArray[np.floating], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a sentence of `length` genes: the largest of log weight + Gumbel noise, which is the same distribution."""
    keys_g = np.log(weights_g) + rng.gumbel(size=len(weights_g))
    chosen = np.argpartition(-keys_g, length - 1)[:length] if length < len(keys_g) else np.arange(len(keys_g))
    return chosen[np.argsort(-keys_g[chosen])].astype(np.int64)
