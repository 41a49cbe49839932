"""Sets of genes to be found again among many others by MinHash, without comparing all pairs.

Under a random order of all genes the first gene of two sets is the same with a probability that is their Jaccard index
|a ∩ b| / |a ∪ b| :cite:p:`broder1997resemblance`. With k orders, the share of agreements estimates it with a standard
error of √(J (1 − J) / k). In bands of r orders, two sets agree on a whole band with probability Jʳ, which finds the
pairs worth comparing.

Axes: n cells, m genes of a set at most, k orders, b bands, g genes of the vocabulary, q sets of an index.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from cytoglot.hashing import STEP, mixed

N_ORDERS, N_BANDS = 256, 16
NOTHING = np.uint32(0xFFFFFFFF)
"""fills up sets that have fewer genes than others, and signatures of empty sets"""

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


def random_orders(n_genes: int, *, n_orders: int = N_ORDERS, seed: int = 0) -> NDArray[np.uint32]:
    """Return (g, k) random numbers: column by column an order of all genes. 1 KB per gene."""
    rng = np.random.default_rng([seed, 21])
    return rng.integers(0, int(NOTHING), size=(n_genes, n_orders), dtype=np.uint32)


@numba.njit(**_options)
def leading_sets(
    offsets: NDArray[np.int64], gene_ids: NDArray[np.integer], is_counted: NDArray[np.bool_], n_genes: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return (n, m) the first `n_genes` genes of each cell, rising and filled up with `NOTHING`, and their number (n,).

    `offsets` (n + 1,) and `gene_ids` (w,) are those of a `CellBlock`; only genes counted by `is_counted` (g,) are seen.
    """
    n = len(offsets) - 1
    sets = np.full((n, n_genes), NOTHING, np.uint32)
    sizes = np.zeros(n, np.int64)
    for cell in range(n):
        size = 0
        for word in range(offsets[cell], offsets[cell + 1]):
            if size == n_genes:
                break
            if is_counted[gene_ids[word]]:
                sets[cell, size] = gene_ids[word]
                size += 1
        sets[cell, :size].sort()
        sizes[cell] = size
    return sets, sizes


@numba.njit(**_options)
def signatures(sets: NDArray[np.uint32], sizes: NDArray[np.int64], orders: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return (n, k) the smallest number of each set in every order."""
    n, n_orders = len(sets), orders.shape[1]
    found = np.full((n, n_orders), NOTHING, np.uint32)
    for cell in range(n):
        row = found[cell]
        for place in range(sizes[cell]):
            numbers = orders[sets[cell, place]]
            for order in range(n_orders):
                row[order] = min(row[order], numbers[order])
    return found


def band_keys(signature_nk: NDArray[np.uint32], *, n_bands: int = N_BANDS) -> NDArray[np.uint64]:
    """Return (n, b) hashes of the bands of each signature; k must be a multiple of `n_bands`."""
    if signature_nk.shape[1] % n_bands:
        raise ValueError(f"{signature_nk.shape[1]} orders cannot be dealt to {n_bands} bands evenly")
    return _band_keys(signature_nk, n_bands)


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return (n,) the Jaccard index of each pair of sets of `leading_sets`; 0 where both are empty."""
    return _jaccards(np.ascontiguousarray(first), np.ascontiguousarray(second))


def chance_to_find(similarity: float, *, n_orders: int = N_ORDERS, n_bands: int = N_BANDS) -> float:
    """Return the probability that two sets of this Jaccard index agree on a band."""
    return float(1 - (1 - similarity ** (n_orders // n_bands)) ** n_bands)


class GeneSetIndex:
    """Sets to be found again among many others.

    Parameters
    ----------
    sets, sizes
        As `leading_sets` gives them.
    places
        (q,) where the cells stand, so that a cell is not found as its own neighbor.
    """

    def __init__(
        self,
        sets: NDArray[np.uint32],
        sizes: NDArray[np.int64],
        places: NDArray[np.uint64],
        orders: NDArray[np.uint32],
        *,
        n_bands: int = N_BANDS,
    ) -> None:
        self._sets, self._places, self._orders, self._n_bands = sets, places, orders, n_bands
        self._signature_qk = signatures(sets, sizes, orders)
        self._key_qb = band_keys(self._signature_qk, n_bands=n_bands)
        self._order_bq = np.ascontiguousarray(np.argsort(self._key_qb, axis=0, kind="stable").T)
        self._sorted_bq = np.ascontiguousarray(np.sort(self._key_qb, axis=0).T)

    def look_up(
        self,
        sets: NDArray[np.uint32],
        sizes: NDArray[np.int64],
        places: NDArray[np.uint64],
        *,
        threshold: float,
        asked: NDArray[np.bool_],
        n_found: NDArray[np.int64],
        best: NDArray[np.float64],
        best_place: NDArray[np.uint64],
    ) -> int:
        """Compare (n,) further cells, and note the pairs with a Jaccard index of at least `threshold`.

        For each of the `asked` (q,) sets, `n_found` (q,) counts its pairs and `best` (q,) and `best_place` (q,) hold
        the most similar cell so far. Candidates agree on a band; they are estimated, and those not far below the
        threshold are compared gene by gene. Returns how many that were.
        """
        signature_nk = signatures(sets, sizes, self._orders)
        key_nb = band_keys(signature_nk, n_bands=self._n_bands)
        n_orders = signature_nk.shape[1]
        slack = 5 * np.sqrt(max(threshold * (1 - threshold), 0.01) / n_orders)
        return int(
            _look_up(
                self._sorted_bq,
                self._order_bq,
                self._key_qb,
                self._signature_qk,
                self._sets,
                self._places,
                asked,
                key_nb,
                signature_nk,
                sets,
                places,
                threshold,
                (threshold - slack) * n_orders,
                n_found,
                best,
                best_place,
            )
        )


@numba.njit(**_options)
def _band_keys(signature_nk, n_bands):
    n, n_orders = signature_nk.shape
    rows = n_orders // n_bands
    keys = np.empty((n, n_bands), np.uint64)
    for cell in range(n):
        for band in range(n_bands):
            value = mixed(np.uint64(band + 1))
            for order in range(band * rows, (band + 1) * rows):
                value = mixed(value ^ np.uint64(signature_nk[cell, order])) + STEP
            keys[cell, band] = value
    return keys


@numba.njit(**_options)
def _one_jaccard(first, second):
    a, b, shared = 0, 0, 0
    n = len(first)
    while a < n and b < n and first[a] != NOTHING and second[b] != NOTHING:
        if first[a] == second[b]:
            shared += 1
            a += 1
            b += 1
        elif first[a] < second[b]:
            a += 1
        else:
            b += 1
    while a < n and first[a] != NOTHING:
        a += 1
    while b < n and second[b] != NOTHING:
        b += 1
    either = a + b - shared
    return shared / either if either else 0.0


@numba.njit(**_options)
def _jaccards(first, second):
    found = np.empty(len(first))
    for i in range(len(first)):
        found[i] = _one_jaccard(first[i], second[i])
    return found


@numba.njit(**_options)
def _look_up(
    sorted_bq,
    order_bq,
    key_qb,
    signature_qk,
    set_qm,
    place_q,
    asked_q,
    key_nb,
    signature_nk,
    set_nm,
    place_n,
    threshold,
    least_agreements,
    n_found,
    best,
    best_place,
):
    n_compared = 0
    n_bands, n_orders = key_nb.shape[1], signature_nk.shape[1]
    for cell in range(len(key_nb)):
        if signature_nk[cell, 0] == NOTHING:
            continue
        for band in range(n_bands):
            key = key_nb[cell, band]
            at = np.searchsorted(sorted_bq[band], key)
            while at < sorted_bq.shape[1] and sorted_bq[band, at] == key:
                query = order_bq[band, at]
                at += 1
                if not asked_q[query] or place_q[query] == place_n[cell]:
                    continue
                is_known = False
                for earlier in range(band):
                    is_known |= key_qb[query, earlier] == key_nb[cell, earlier]
                if is_known:
                    continue
                agreements = 0
                for order in range(n_orders):
                    agreements += signature_qk[query, order] == signature_nk[cell, order]
                if agreements < least_agreements:
                    continue
                n_compared += 1
                similarity = _one_jaccard(set_qm[query], set_nm[cell])
                if similarity >= threshold:
                    n_found[query] += 1
                    if similarity > best[query]:
                        best[query], best_place[query] = similarity, place_n[cell]
    return n_compared
