"""Compiled loops over pairs of cells: which are nearest, how far the groups are, and how neighborhoods are weighted.

Inner products come from BLAS, in tiles; these loops turn them into distances and reduce them at once, so that no array
of all pairs is ever held. Axes: n cells, d dimensions, l groups, k neighbors, r rows and c columns of a tile.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numba
import numpy as np

_options = {"cache": True, "nogil": True, "error_model": "numpy"}
# The order of a sum may change, so that sums are vectorized; NaN and infinity keep their meaning.
_reordered = {**_options, "fastmath": {"reassoc", "contract", "nsz"}}
_ENTROPY_TOLERANCE = 1e-5
_MAX_STEPS = 50


@numba.njit(**_options)
def choose_neighbors(products_rn, first, exact_nd, squared_n, error_n, indices_rk, distances_rk):
    """Fill the k nearest others of rows `first`, `first + 1`, … and their distances, ties by index.

    `products_rn` are inner products in single precision of vectors whose squared lengths are `squared_n`; squared
    distances from them are wrong by at most the sum of both cells' `error_n`. So every cell that can be among the k
    nearest is known, and for these alone distances are computed from `exact_nd`.
    """
    n, k = products_rn.shape[1], indices_rk.shape[1]
    candidates = np.empty(n, np.int64)
    upper_k = np.empty(k)
    for row in range(products_rn.shape[0]):
        cell = first + row
        upper_k[:] = np.inf
        for other in range(n):
            upper = squared_n[other] - 2.0 * products_rn[row, other] + error_n[other]
            if upper < upper_k[k - 1] and other != cell:
                place = k - 1
                while place > 0 and upper_k[place - 1] > upper:
                    upper_k[place] = upper_k[place - 1]
                    place -= 1
                upper_k[place] = upper
        limit = upper_k[k - 1] + 2.0 * error_n[cell]
        n_candidates = 0
        for other in range(n):
            if squared_n[other] - 2.0 * products_rn[row, other] - error_n[other] <= limit and other != cell:
                candidates[n_candidates] = other
                n_candidates += 1
        exact = np.empty(n_candidates)
        for place in range(n_candidates):
            total = 0.0
            for axis in range(exact_nd.shape[1]):
                total += (exact_nd[cell, axis] - exact_nd[candidates[place], axis]) ** 2
            exact[place] = math.sqrt(total)
        order = np.argsort(exact, kind="mergesort")  # stable, and candidates rise
        for place in range(k):
            indices_rk[row, place] = candidates[order[place]]
            distances_rk[row, place] = exact[order[place]]


@numba.njit(**_reordered)
def add_group_distances(products_rc, rows, columns, squared_n, codes_n, is_diagonal, sums_nl):
    """Add the distances between cells from `rows` on and cells from `columns` on to their sums by group.

    Cells are sorted by group, so the runs of one group are long. Each pair counts for both of its cells; on a diagonal
    tile all pairs are there twice, so for the cell of the row alone.
    """
    n_rows, n_columns = products_rc.shape
    of_column_c = np.empty(n_columns)
    row = 0
    while row < n_rows:
        row_group = codes_n[rows + row]
        of_column_c[:] = 0.0
        while row < n_rows and codes_n[rows + row] == row_group:
            length = squared_n[rows + row]
            column = 0
            while column < n_columns:
                group = codes_n[columns + column]
                end = column + 1
                while end < n_columns and codes_n[columns + end] == group:
                    end += 1
                total = 0.0
                for c in range(column, end):
                    distance = math.sqrt(max(length + squared_n[columns + c] - 2.0 * products_rc[row, c], 0.0))
                    total += distance
                    of_column_c[c] += distance
                sums_nl[rows + row, group] += total
                column = end
            row += 1
        if not is_diagonal:
            for c in range(n_columns):
                sums_nl[columns + c, row_group] += of_column_c[c]


@numba.njit(**_options)
def inverse_simpson(codes_nk, distances_nk, n_groups, perplexity, lisi_n):
    """Fill the inverse Simpson index of the groups of each cell's neighbors, weighted to the perplexity.

    Weights are exp(−β·distance). β is found by Newton's method on the entropy, whose derivative is −β times the
    variance of the distances, within the bounds of a bisection; the published code bisects to the same tolerance.
    """
    n, k = codes_nk.shape
    weight_k, share_l = np.empty(k), np.empty(n_groups)
    wanted = math.log(perplexity)
    for cell in range(n):
        nearest = distances_nk[cell].min()
        mean = distances_nk[cell].mean() - nearest
        beta, low, high = (1.0 / mean if mean > 0 else 1.0), 0.0, np.inf
        for step in range(_MAX_STEPS + 1):
            total, first, second = 0.0, 0.0, 0.0
            for j in range(k):
                distance = distances_nk[cell, j] - nearest  # a common factor of the weights, which cannot underflow
                weight_k[j] = math.exp(-beta * distance)
                total += weight_k[j]
                first += weight_k[j] * distance
                second += weight_k[j] * distance * distance
            first /= total
            excess = math.log(total) + beta * first - wanted
            if abs(excess) < _ENTROPY_TOLERANCE or step == _MAX_STEPS:
                break
            if excess > 0:
                low = beta
            else:
                high = beta
            slope = beta * (second / total - first * first)
            beta = beta + excess / slope if slope > 0 else np.inf
            if not low < beta < high:
                beta = 2 * low if high == np.inf else (low + high) / 2
        share_l[:] = 0.0
        for j in range(k):
            share_l[codes_nk[cell, j]] += weight_k[j] / total
        lisi_n[cell] = 1.0 / (share_l**2).sum()


@numba.njit(**_options)
def count_nearer(products_rc, row, column, x_nd, y_nd, match_n, tolerance, nearer_x_n, nearer_y_n):
    """Count, for cells of rows and of columns, the others that are more similar to them than their match.

    `products_rc` are in single precision. Two thresholds are compared in one pass without branches; where one lies
    between them, it is looked for and computed anew in double precision. The match itself is not counted.
    """
    n_rows, n_columns = products_rc.shape
    above_c, near_c = np.zeros(n_columns, np.int32), np.zeros(n_columns, np.int32)
    high_c, low_c = np.empty(n_columns, np.float32), np.empty(n_columns, np.float32)
    for c in range(n_columns):
        high_c[c], low_c[c] = match_n[column + c] + tolerance, match_n[column + c] - tolerance
    for r in range(n_rows):
        match = match_n[row + r]
        high, low = np.float32(match + tolerance), np.float32(match - tolerance)
        above, near = np.int32(0), np.int32(0)
        for c in range(n_columns):
            product = products_rc[r, c]
            above += np.int32(product > high)
            near += np.int32(product >= low)
            above_c[c] += np.int32(product > high_c[c])
            near_c[c] += np.int32(product >= low_c[c])
        nearer_x_n[row + r] += above
        has_match = column <= row + r < column + n_columns
        if near - above > has_match:
            for c in range(n_columns):
                if low <= products_rc[r, c] <= high and row + r != column + c:
                    nearer_x_n[row + r] += exact_product(x_nd[row + r], y_nd[column + c]) > match
    for c in range(n_columns):
        nearer_y_n[column + c] += above_c[c]
        has_match = row <= column + c < row + n_rows
        if near_c[c] - above_c[c] > has_match:
            match = match_n[column + c]
            for r in range(n_rows):
                if low_c[c] <= products_rc[r, c] <= high_c[c] and row + r != column + c:
                    nearer_y_n[column + c] += exact_product(x_nd[row + r], y_nd[column + c]) > match


@numba.njit(**_options)
def exact_product(x_d, y_d):
    """Return the inner product in double precision, always in the same order, so equal vectors give equal products."""
    total = 0.0
    for axis in range(len(x_d)):
        total += np.float64(x_d[axis]) * np.float64(y_d[axis])
    return total
