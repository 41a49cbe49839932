"""Compiled loops that put the genes of a cell in order. Nothing here is dense and nothing is normalized.

Expression arrives as unsigned integers of the same order ("keys"): counts as they are, floats by their bits, which for
positive floats rise with the value. One road serves every type and every tie rule:

1. one pass over a row finds its smallest and largest key, the bits that differ, and whether the columns rise;
2. where only `top_genes` are wanted, a bisection over the keys (a vectorized count each) finds a threshold that a
   few more genes than wanted reach, and only those go on;
3. a stable radix sort, least significant digit first: by tie (skipped where the columns are in tie order already), then
   by key. Bits that do not differ cost nothing, so counts below a few thousand, even stored as floats, take one pass.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np

from cytoglot.hashing import mixed

TIES_BY_ORDER, TIES_BY_RANK, TIES_BY_HASH = 0, 1, 2
#: Written in place of a sentence's length: the row holds a NaN, an infinity or a value below 0 (or -0.0) ...
BAD_VALUE = -1
#: ... or the same column twice.
REPEATED_COLUMN = -2

_MAX_DIGIT_BITS = 11
_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@numba.njit(**_options)
def rank_rows(
    indptr,
    columns,
    keys,
    largest_key,
    gene_of_column,
    n_genes,
    tie_rule,
    tie_rank,
    cell_hash,
    gene_hash,
    top_genes,
    starts,
    ranked,
    lengths,
    n_expressed,
):
    """Rank rows of a CSR block into `ranked[starts[row]:]`; fill `lengths` (or a fault) and `n_expressed`.

    `columns` and `keys` are the slices of the block, `indptr` its rows' ends counted from anywhere. An empty
    `gene_of_column` means that columns are genes; -1 in it drops a column. `tie_rank` is used by TIES_BY_RANK,
    `cell_hash` and `gene_hash` by TIES_BY_HASH; `top_genes` 0 keeps all.
    """
    longest = 1
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    row_keys, row_genes = np.empty(longest, keys.dtype), np.empty(longest, columns.dtype)
    kept_keys, kept = np.empty(longest, keys.dtype), np.empty(longest, np.uint64)
    spare_keys, spare = np.empty(longest, keys.dtype), np.empty(longest, np.uint64)
    places = np.empty(longest, np.uint32)
    bins = np.zeros(1 << _MAX_DIGIT_BITS, np.int64)
    last_seen = np.empty(0, np.int64)
    gene_bits = _bit_length(np.uint64(max(n_genes - 1, 1)))
    for row in range(len(indptr) - 1):
        begin, end = indptr[row] - indptr[0], indptr[row + 1] - indptr[0]
        n_expressed[row] = 0
        lengths[row] = 0
        if begin == end:
            continue
        low, high, union, common = _key_range(keys[begin:end])
        if high > largest_key:
            lengths[row] = BAD_VALUE
            continue
        if low == 0 or len(gene_of_column) > 0:
            n = _gather_expressed(columns[begin:end], keys[begin:end], gene_of_column, row_genes, row_keys)
            if n == 0:
                continue
            genes_of_row, keys_of_row = row_genes[:n], row_keys[:n]
            low, high, union, common = _key_range(keys_of_row)
        else:
            n = end - begin
            genes_of_row, keys_of_row = columns[begin:end], keys[begin:end]
        n_expressed[row] = n
        rising = _is_rising(genes_of_row)
        if not rising:
            if len(last_seen) == 0:
                last_seen = np.full(n_genes, -1, np.int64)
            if _has_repeat(genes_of_row, last_seen, row):
                lengths[row] = REPEATED_COLUMN
                continue

        shift = _lowest_bit(np.uint64(union & ~common))
        n_wanted = n
        if 0 < top_genes < n:
            n_wanted = top_genes
            low = _threshold(keys_of_row, low, high, shift, n_wanted)
        if tie_rule == TIES_BY_ORDER:
            n_kept = _keep_by_order(genes_of_row, keys_of_row, low, kept, kept_keys, places)
        elif tie_rule == TIES_BY_RANK:
            n_kept = _keep_by_rank(genes_of_row, keys_of_row, low, tie_rank, kept, kept_keys, places)
        else:
            n_kept = _keep_by_hash(genes_of_row, keys_of_row, low, cell_hash[row], gene_hash, kept, kept_keys, places)

        if not rising and tie_rule != TIES_BY_RANK:
            kept_keys, kept, spare_keys, spare = _sort_by_tie(
                kept_keys, kept, spare_keys, spare, n_kept, 0, gene_bits, bins
            )
        if tie_rule != TIES_BY_ORDER:
            tie_bits = gene_bits if tie_rule == TIES_BY_RANK else 32
            kept_keys, kept, spare_keys, spare = _sort_by_tie(
                kept_keys, kept, spare_keys, spare, n_kept, 32, tie_bits, bins
            )
        start, end = starts[row], starts[row] + n_wanted
        kept_keys, kept, spare_keys, spare = _sort_by_key(
            kept_keys, kept, spare_keys, spare, n_kept, low, high, shift, bins, ranked[start:end]
        )
        lengths[row] = n_wanted


@numba.njit(**_options)
def _key_range(keys):
    """Return the smallest and largest key, the bits set in any and the bits set in all; `keys` is not empty."""
    low = high = union = common = keys[0]
    for position in range(len(keys)):
        key = keys[position]
        low = low if low < key else key
        high = high if high > key else key
        union |= key
        common &= key
    return low, high, union, common


@numba.njit(**_options)
def _is_rising(genes):
    falls = np.uint32(0)
    for position in range(1, len(genes)):
        falls = np.uint32(falls + np.uint32(genes[position] <= genes[position - 1]))
    return falls == 0


@numba.njit(**_options)
def _has_repeat(genes, last_seen, row):
    for gene in genes:
        if last_seen[gene] == row:
            return True
        last_seen[gene] = row
    return False


@numba.njit(**_options)
def _gather_expressed(columns, keys, gene_of_column, genes_out, keys_out):
    n = 0
    for position in range(len(keys)):
        gene = columns[position]
        if len(gene_of_column) > 0:
            gene = gene_of_column[gene]
        genes_out[n] = gene
        keys_out[n] = keys[position]
        n += (keys[position] > 0) & (gene >= 0)
    return n


@numba.njit(**_options)
def _threshold(keys, low, high, shift, n_wanted):
    """Return a key that at least `n_wanted` keys reach, and few more unless they are tied."""
    n_enough = n_wanted + n_wanted // 4 + 16
    below, above = np.uint64(low) >> shift, np.uint64(high) >> shift
    one = np.uint64(1)
    if _count_from(keys, keys.dtype.type(above << shift)) >= n_wanted:
        return keys.dtype.type(above << shift)
    while above - below > one:
        middle = below + ((above - below) >> one)
        n_reached = _count_from(keys, keys.dtype.type(middle << shift))
        if n_reached >= n_wanted:
            below = middle
            if n_reached <= n_enough:
                break
        else:
            above = middle
    return max(low, keys.dtype.type(below << shift))


@numba.njit(**_options)
def _count_from(keys, limit):
    n = np.uint32(0)  # as wide as a key, or the loop would not fill the vector registers
    for position in range(len(keys)):
        n = np.uint32(n + np.uint32(keys[position] >= limit))
    return np.int64(n)


@numba.njit(**_options)
def _keep_by_order(genes, keys, limit, kept, kept_keys, places):
    n = 0
    for position in range(len(keys)):  # no branch: where a key is kept cannot be foreseen
        places[n] = position
        n += keys[position] >= limit
    for number in range(n):
        kept[number] = np.uint64(genes[places[number]])
        kept_keys[number] = keys[places[number]]
    return n


@numba.njit(**_options)
def _keep_by_rank(genes, keys, limit, tie_rank, kept, kept_keys, places):
    n = _keep_by_order(genes, keys, limit, kept, kept_keys, places)
    for position in range(n):
        gene = kept[position]
        kept[position] = (np.uint64(tie_rank[gene]) << np.uint64(32)) | gene
    return n


@numba.njit(**_options)
def _keep_by_hash(genes, keys, limit, cell, gene_hash, kept, kept_keys, places):
    n = _keep_by_order(genes, keys, limit, kept, kept_keys, places)
    for position in range(n):
        gene = kept[position]
        tie = mixed(cell ^ gene_hash[gene]) >> np.uint64(32)
        kept[position] = (tie << np.uint64(32)) | gene
    return n


@numba.njit(**_options)
def _sort_by_tie(keys, words, spare_keys, spare, n, first_bit, n_bits, bins):
    """Sort by `n_bits` of the words from `first_bit` on, rising and stable; return the arrays, sorted ones first."""
    n_passes = (n_bits + 7) // 8 if n < 512 else (n_bits + _MAX_DIGIT_BITS - 1) // _MAX_DIGIT_BITS
    width = (n_bits + n_passes - 1) // n_passes
    mask = np.uint64((1 << width) - 1)
    for number in range(n_passes):
        shift = np.uint64(first_bit + number * width)
        bins[: 1 << width] = 0
        for position in range(n):
            bins[np.int64((words[position] >> shift) & mask)] += 1
        _to_starts(bins, 1 << width)
        for position in range(n):
            digit = np.int64((words[position] >> shift) & mask)
            place = bins[digit]
            bins[digit] = place + 1
            spare_keys[place] = keys[position]
            spare[place] = words[position]
        keys, spare_keys = spare_keys, keys
        words, spare = spare, words
    return keys, words, spare_keys, spare


@numba.njit(**_options)
def _sort_by_key(keys, words, spare_keys, spare, n, low, high, shift, bins, genes):
    """Write the genes of the words by key, falling and stable, as many as fit into `genes`.

    Bits of keys below `shift` are all alike. Returns the arrays, which it uses up.
    """
    top = np.uint64(high) >> shift
    span = top - (np.uint64(low) >> shift)
    n_bits = _bit_length(span)
    n_passes = max((n_bits + _MAX_DIGIT_BITS - 1) // _MAX_DIGIT_BITS, 1)
    width = (n_bits + n_passes - 1) // n_passes
    mask = np.uint64((1 << width) - 1)
    for number in range(n_passes):
        digit_shift = np.uint64(number * width)
        n_bins = np.int64(span) + 1 if n_passes == 1 else 1 << width
        bins[:n_bins] = 0
        for position in range(n):
            bins[np.int64(((top - (np.uint64(keys[position]) >> shift)) >> digit_shift) & mask)] += 1
        _to_starts(bins, n_bins)
        is_last = number == n_passes - 1
        for position in range(n):
            digit = np.int64(((top - (np.uint64(keys[position]) >> shift)) >> digit_shift) & mask)
            place = bins[digit]
            bins[digit] = place + 1
            if not is_last:
                spare_keys[place] = keys[position]
                spare[place] = words[position]
            elif place < len(genes):
                genes[place] = words[position] & np.uint64(0xFFFFFFFF)
        keys, spare_keys = spare_keys, keys
        words, spare = spare, words
    return keys, words, spare_keys, spare


@numba.njit(**_options)
def _to_starts(bins, n):
    total = 0
    for position in range(n):
        n_here = bins[position]
        bins[position] = total
        total += n_here


@numba.njit(**_options)
def _bit_length(value):
    n = 0
    while value:
        value >>= np.uint64(1)
        n += 1
    return n


@numba.njit(**_options)
def _lowest_bit(value):
    n = np.uint64(0)
    while value and not value & np.uint64(1):
        value >>= np.uint64(1)
        n += np.uint64(1)
    return n


@numba.njit(**_options)
def count_expressed(columns, keys, largest_key, cells_of_column):
    """Add 1 to `cells_of_column[column]` for each key above 0; return whether a key is above `largest_key`."""
    n_bad = 0
    for position in range(len(keys)):
        n_bad += keys[position] > largest_key
        cells_of_column[columns[position]] += keys[position] > 0
    return n_bad > 0


@numba.njit(**_options)
def close_gaps(ranked, starts, lengths):
    """Move each row's words down to where the row before ends."""
    end = 0
    for row in range(len(lengths)):
        for position in range(starts[row], starts[row] + lengths[row]):
            ranked[end] = ranked[position]
            end += 1
