"""Into which shard a cell goes, and where in it: a shuffle of all cells that needs none of the others to be known.

Cells of one cell group share the key of the group and so stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.assign.cell_keys import draw_below, salted
from cytoglot.errors import InputError


def group_keys(keys: NDArray[np.uint64], group: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return (n,) the smallest key of the cell's group, for a cell without group (−1) its own."""
    if not (group >= 0).any():
        return keys
    smallest = np.full(int(group.max()) + 1, np.iinfo(np.uint64).max)
    grouped = group >= 0
    np.minimum.at(smallest, group[grouped], keys[grouped])
    return np.where(grouped, smallest[group], keys)


def shard_of(
    keys: NDArray[np.uint64],
    group: NDArray[np.integer],
    part: NDArray[np.integer],
    shards_of_part: Sequence[int],
) -> NDArray[np.int32]:
    """Return (n,) number of the shard within its part, every shard as likely as any other.

    Parameters
    ----------
    keys
        (n,) keys of cells.
    group
        (n,) number of the cell group, −1 for none. All cells of a group must be among these.
    part
        (n,) codes into `PARTS`.
    shards_of_part
        Number of shards of each part; 0 is for a part without cells.

    Raises
    ------
    InputError
        A cell is in a part without shards.
    """
    shards = np.asarray(shards_of_part, np.int64)
    found = np.unique(part)
    if len(found) and (shards[found] < 1).any():
        raise InputError(f"every part with cells needs a shard, found {list(shards_of_part)} for cells in {found}")
    return draw_below(salted(group_keys(keys, group), "shard"), shards[part]).astype(np.int32)


def shuffle_order(keys: NDArray[np.uint64], group: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return (n,) the order of the cells of a shard: groups and single cells shuffled, a group's cells side by side.

    `group` (n,) must tell all groups of the shard apart, whichever span they were formed in. The order is the same
    however the cells come in, and a group's cells are in the order of their keys.
    """
    return np.lexsort((keys, group, salted(group_keys(keys, group), "shuffle")))


def number_groups(group: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return (n,) the groups numbered 0, 1, … in the order in which they first appear; −1 stays."""
    numbers, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    is_group = numbers >= 0
    place = np.full(len(numbers), -1, np.int32)
    place[np.flatnonzero(is_group)[np.argsort(first[is_group])]] = np.arange(is_group.sum(), dtype=np.int32)
    return place[inverse]
