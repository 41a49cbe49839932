"""Cell groups: 2 to 20 cells of one donor and one tissue that are shown together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.assign.cell_keys import draw_below, salted
from cytoglot.corpus.format.shard_file import NO_GROUP


def grouping_fields(within: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the fields by which the cells of a source are grouped; [] if it has no groups.

    `known` are the fields of which at least one cell of the source has a value. The first of `within` (the donor) must
    be known: cells of unknown donors were perhaps never together. Of the others those that are known count, so a
    source that nowhere names its tissue is grouped by donor alone. A source that is known to have a single donor
    says so with a constant in its metadata.
    """
    if not within or within[0] not in known:
        return []
    return [field for field in within if field in known]


def form_groups(
    keys: NDArray[np.uint64],
    part: NDArray[np.integer],
    columns: Sequence[NDArray[np.integer]],
    *,
    min_cells: int,
    max_cells: int,
) -> NDArray[np.int32]:
    """Return (n,) number of the group of each cell, −1 for none.

    Cells of one part that agree in all columns are put in the order of their keys and cut into runs, whose lengths are
    drawn uniformly from `min_cells` to `max_cells`. The last run is what is left; below `min_cells` it stays without
    group. The groups depend on which cells are given together (a span of a source), not on their order.

    Parameters
    ----------
    keys
        (n,) keys of cells, all different.
    part
        (n,) codes into `PARTS`.
    columns
        (n,) codes of donor, tissue, …; a cell with −1 in any of them is in no group. No column: no groups.
    """
    n = len(keys)
    group = np.full(n, NO_GROUP, np.int32)
    known = np.ones(n, bool) if columns else np.zeros(n, bool)
    for column in columns:
        known &= column >= 0
    cells = np.flatnonzero(known)
    shuffled = salted(keys[cells], "groups")
    order = np.lexsort((shuffled, *(column[cells] for column in columns), part[cells]))
    cells = cells[order]
    lengths = min_cells + draw_below(salted(shuffled[order], "group size"), max_cells - min_cells + 1)
    changes = np.zeros(len(cells), bool)
    for column in (part, *columns):
        changes[1:] |= column[cells[1:]] != column[cells[:-1]]
    drawn, number, start = lengths.tolist(), 0, 0
    for block_end in [*np.flatnonzero(changes).tolist(), len(cells)]:
        while block_end - start >= min_cells:
            end = min(start + drawn[start], block_end)  # the length of a run is drawn at its first cell
            group[cells[start:end]] = number
            start, number = end, number + 1
        start = block_end
    return group


def dissolve_small(group: NDArray[np.integer], *, min_cells: int) -> NDArray[np.int32]:
    """Return (n,) groups without those that have fewer than `min_cells` cells left; the others keep their numbers."""
    sizes = np.bincount(group[group >= 0], minlength=1)
    return np.where((group >= 0) & (sizes[group] >= min_cells), group, NO_GROUP).astype(np.int32)
