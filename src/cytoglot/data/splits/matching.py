"""Find the cells of a split in a file, by name and content, and tell them from new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.splits.assignment import PARTS
from cytoglot.data.splits.content import CellContent
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.hashing import NO_HASH

KNOWN_BY_NAME_ONLY = (
    "the model was written by an earlier version, which did not keep the content of its cells: training cells are "
    "known by name only, and not found under other names; train it again to have them found"
)


@dataclass(frozen=True, kw_only=True)
class MatchedCells:
    """What a split knows of the cells of a file."""

    part: NDArray[np.object_]
    """(n,) part of each cell, "" for a new one"""
    counts: dict[str, int]
    """"cells"; "train", "validation" and "test", of any name; "new"; "renamed": of the split under another name;
    "other_content": named as a cell of the split, which they are not; "equal_content": another cell of the file holds
    the same; "test_like_training": test cells that hold the same as a training or validation cell"""
    messages: tuple[str, ...]

    def split_of(self, obs_names: Sequence[str] | pd.Index, split: Split) -> Split:
        """Return the split of the cells of the file alone, by their names there.

        Raises
        ------
        InputError
            None of them is a training cell.
        """
        names = pd.Index(obs_names).astype(str)
        train, validation, test = (tuple(names[self.part == part]) for part in PARTS)
        return replace(split, train=train, validation=validation, test=test, content=None)


def match_cells(
    split: Split, obs_names: Sequence[str] | pd.Index, content: CellContent, *, new_cells: bool = False
) -> MatchedCells:
    """Return the part of each cell of a file, by its name and content, and how many there are of each kind.

    A cell with name and content of a cell of the split is that cell. Any other cell is known by its content alone;
    where cells of several parts hold the same, it counts as a training cell before validation before test. Cells
    without any content are known by name only. A split that holds no content (of a model of an earlier version) knows
    all of its cells by name, and a message says so.

    Parameters
    ----------
    content
        That of the cells `obs_names`, over the genes that the split's own content is of.
    new_cells
        Cells named as cells of the split, with other content, are others.

    Raises
    ------
    InputError
        There are such cells and `new_cells` is False, or it is True and the split holds no content to tell by.
    """
    if split.content is None and new_cells:
        raise InputError(
            "the model keeps no content of its cells (an earlier version wrote it), so --new-cells (new_cells=True) "
            "cannot tell training cells from others; give the cells other names, or train the model again"
        )
    names = pd.Index(obs_names).astype(str)
    place = pd.Index(split.ids).get_indexer(names)  # −1: no such name
    part_of_id = np.repeat(np.arange(len(PARTS)), [len(split.cells(part)) for part in PARTS])
    if split.content is None:
        stored, found = np.full(len(split.ids), NO_HASH, np.uint64), content.values
    else:
        stored, found = split.content.comparable(content)
    is_same = (place >= 0) & ((stored[place] == found) | (stored[place] == NO_HASH))
    is_other = (place >= 0) & ~is_same
    if is_other.any() and not new_cells:
        raise InputError(
            f"{int(is_other.sum())} of {len(names)} cells are named as cells of the model's training file but hold "
            f"other values (first {names[int(np.argmax(is_other))]!r}): this is another file with the same names, or "
            "the file has changed, or is read with another layer or gene options; pass the file as it was, or "
            "--new-cells (new_cells=True) to have all cells told by their content"
        )
    part_of_content = pd.Series(part_of_id, index=stored)[stored != NO_HASH].groupby(level=0).min()
    by_content = part_of_content.reindex(found).fillna(-1).astype(int).to_numpy()  # index into PARTS
    code = np.where(is_same, part_of_id[place], by_content)
    is_test = code == PARTS.index("test")
    renamed = (code >= 0) & (place < 0)
    counts: dict[str, int] = {
        "cells": len(names),
        **{str(part): int((code == i).sum()) for i, part in enumerate(PARTS)},
        "new": int((code < 0).sum()),
        "renamed": int(renamed.sum()),
        "other_content": int(is_other.sum()),
        "equal_content": int(pd.Series(found[found != NO_HASH]).duplicated(keep=False).sum()),
        "test_like_training": int((is_test & (by_content >= 0) & (by_content < code)).sum()),
    }
    of_part = ", ".join(f"{int((renamed & (code == i)).sum())} {part}" for i, part in enumerate(PARTS))
    told = {
        "new": "{n} of {cells} cells are not of the model's training file and are judged as new",
        "renamed": f"{{n}} cells of the model's training file have other names and were found by content ({of_part})",
        "other_content": "{n} cells are named as cells of the model's training file but hold other values; their "
        f"content tells {int((is_other & (code >= 0)).sum())} of them to be cells of that file, the rest are new",
        "equal_content": "{n} cells hold the same as another cell of the file; all are kept",
        "test_like_training": "{n} test cells hold the same as a training or validation cell",
    }
    messages = [text.format(n=counts[name], cells=len(names)) for name, text in told.items() if counts[name]]
    if split.content is None:
        messages.insert(0, KNOWN_BY_NAME_ONLY)
    elif split.content.kind != content.kind:
        messages.append(
            f"the model was trained on {split.content.kind} and this file holds {content.kind} values: cells are "
            "compared by the order of their genes"
        )
    return MatchedCells(part=np.array([*PARTS, ""], dtype=object)[code], counts=counts, messages=tuple(messages))
