"""A text as segments: what is prose stands as text, and genes stand as genes until somebody needs their letters.

A task fills its wordings with segments once, and both uses read the same ones: a text is the segments joined, and a
tokenizer of whole genes looks the genes up in a table instead of reading them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Genes(Sequence[str]):
    """Genes by their ids in a table of names, as a corpus holds them; equal to any other sequence of the same names.

    Parameters
    ----------
    ids
        (n,) places in `names`.
    names
        (g,) the names that the ids stand for.
    in_capitals
        Written in capitals, as `upper` returns them.
    """

    __slots__ = ("ids", "in_capitals", "names")

    def __init__(self, ids: NDArray[np.integer], names: NDArray[np.object_], *, in_capitals: bool = False) -> None:
        self.ids, self.names, self.in_capitals = ids, names, in_capitals

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Genes: ...
    def __getitem__(self, place: int | slice) -> str | Genes:
        if isinstance(place, slice):
            return Genes(self.ids[place], self.names, in_capitals=self.in_capitals)
        name = str(self.names[self.ids[place]])
        return name.upper() if self.in_capitals else name

    def __iter__(self) -> Iterator[str]:
        names: list[str] = self.names[self.ids].tolist()
        return iter([name.upper() for name in names] if self.in_capitals else names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Genes({list(self)!r})"


def upper(genes: Sequence[str]) -> Sequence[str]:
    """Return the genes in capitals; those of a table stay in it."""
    if isinstance(genes, Genes):
        return Genes(genes.ids, genes.names, in_capitals=True)
    return tuple(gene.upper() for gene in genes)


class Segments(tuple["str | Sequence[str]", ...]):
    """Pieces of one text in their order: a text as it is, or genes, which are written with one space between them."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The pieces as one text."""
        return "".join([piece if isinstance(piece, str) else " ".join(piece) for piece in self])


Field = str | Segments | Sequence[str]
"""what a field of a wording is filled with: a text, genes (any sequence of words but a text), or both in turn"""


def join(fields: Iterable[Field]) -> Segments:
    """Return fields one after the other; neighboring texts become one, and nothing stands for no genes."""
    pieces: list[Any] = []
    text = ""
    for field in fields:
        for piece in field if isinstance(field, Segments) else (field,):
            if isinstance(piece, str):
                text += piece
            elif len(piece):
                if text:
                    pieces.append(text)
                    text = ""
                pieces.append(piece)
    if text:
        pieces.append(text)
    return Segments(pieces)
