"""Examples of many lengths → batches of one shape: packed into rows of a fixed length, or padded with others like them.

Axes: b rows, t tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError

MAX_GAP = 1 / 128
"""share of a row that may stay empty without looking for something to put there"""
_ROUNDS = 3  # of filling: what is left of the rows that gave examples away is packed again
_LEAST_ROOM = 16  # tokens: no prompt is shorter
_SPARE = 12  # examples to choose a filler from
LEAST_KEPT = 1 / 8
"""an example that is shortened to fill a row keeps at least this share of its tokens"""


@dataclass(frozen=True, slots=True)
class TokenExample:
    """An example as token ids, and what predicting them weighs in the loss."""

    input_ids: NDArray[np.int32]
    """(t,)"""
    n_prompt: int
    answer_weight: float
    """of each token of the answer"""
    prompt_weight: float = 0.0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Rows of examples. Padding has weight 0, position 0 and segment 0."""

    input_ids: NDArray[np.int64]
    """(b, t)"""
    weights: NDArray[np.float32]
    """(b, t) what predicting this token from those before it weighs in the loss; 0 at the start of an example"""
    position_ids: NDArray[np.int64]
    """(b, t) place within the example"""
    segment_ids: NDArray[np.int32]
    """(b, t) number of the example within its row, from 1: a token may look at tokens of its own segment only"""
    n_examples: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(np.count_nonzero(self.segment_ids))


Row = list[TokenExample]


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put things of these lengths into as few rows of `size` as best-fit decreasing finds; return the things per row.

    The longest comes first, each into the fullest row that has room for it. Equal lengths keep their order, so the
    result is a function of the lengths. A thing longer than a row is an InputError.
    """
    if lengths and max(lengths) > size:
        raise InputError(f"expected examples of at most {size} tokens, found one of {max(lengths)}; cut it before")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free places and the row, sorted
    for thing in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[thing], -1))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row = size, len(rows)
            rows.append([])
        rows[row].append(thing)
        if free > lengths[thing]:
            insort(room, (free - lengths[thing], row))
    return rows


Shorten = Callable[[Sequence[int], Sequence[int]], Sequence["TokenExample | None"]]
"""(which examples, tokens that there is room for) → each example with fewer genes, None where that cannot be"""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows that are done, the fullest first, and the examples that wait for better company."""

    rows: list[Row]
    waiting: list[int]
    """places of the examples among those that were given, ascending"""


@dataclass(slots=True)
class _OpenRow:
    free: int
    places: list[int]
    """of whole examples"""
    filler: TokenExample | None = None
    """a shortened one"""

    def examples(self, given: Sequence[TokenExample]) -> Row:
        return [given[i] for i in self.places] + ([self.filler] if self.filler else [])


def pack(examples: Sequence[TokenExample], size: int, *, shorten: Shorten | None = None, finish: bool = True) -> Packed:
    """Lay examples into rows of `size` tokens; none is split.

    Examples of nearly one length leave a gap in every row however they are placed: `shorten` is then asked for one with
    fewer genes that fills it. Without `finish` the emptiest rows are undone and their examples given back, to be packed
    with others; a quarter of the rows at most, so that nothing waits for ever.
    """
    rows = _fit(range(len(examples)), examples, size)
    for _ in range(_ROUNDS if shorten is not None else 0):
        assert shorten is not None
        if not _fill(rows, examples, size, shorten):
            break
        loose = [i for row in rows if row.filler is None and row.free > size * MAX_GAP for i in row.places]
        rows = [row for row in rows if row.filler is not None or row.free <= size * MAX_GAP]
        rows = sorted(rows + _fit(loose, examples, size), key=lambda row: row.free)
    most = 0 if finish else max(len(rows) // 4, 1)
    undone = [row for row in rows[len(rows) - most :] if row.free > size * MAX_GAP and row.filler is None]
    done = [row.examples(examples) for row in rows if not any(row is other for other in undone)]
    return Packed(done, sorted(i for row in undone for i in row.places))


def _fit(places: Sequence[int], examples: Sequence[TokenExample], size: int) -> list[_OpenRow]:
    """Return rows of whole examples, the fullest first."""
    fitted = [[places[i] for i in row] for row in best_fit([len(examples[i]) for i in places], size)]
    rows = [_OpenRow(size - sum(len(examples[i]) for i in row), row) for row in fitted]
    return sorted(rows, key=lambda row: row.free)


def _fill(rows: list[_OpenRow], examples: Sequence[TokenExample], size: int, shorten: Shorten) -> bool:
    """Fill the gaps of the fuller rows with shortened examples of the emptiest ones, which may end up empty.

    Returns whether any was filled.
    """
    plan: list[tuple[_OpenRow, _OpenRow, int]] = []
    donor, spare = len(rows), list[tuple[int, _OpenRow, int]]()  # length, row and place of an example
    for place, row in enumerate(rows):
        if donor <= place:
            break
        if row.free <= max(size * MAX_GAP, _LEAST_ROOM) or row.filler is not None:
            continue
        while len(spare) < _SPARE and donor > place + 1:
            donor -= 1
            if rows[donor].filler is None and rows[donor].free > size * MAX_GAP:
                spare += [(len(examples[i]), rows[donor], i) for i in rows[donor].places]
        fitting = [one for one in spare if LEAST_KEPT * one[0] <= row.free < one[0]]
        if fitting:
            chosen = min(fitting, key=lambda one: one[0])
            spare = [one for one in spare if one is not chosen]
            plan.append((row, *chosen[1:]))
    shortened = shorten([i for *_, i in plan], [row.free for row, *_ in plan]) if plan else []
    for (row, giver, i), filler in zip(plan, shortened, strict=True):
        if filler is not None:
            row.filler, row.free = filler, row.free - len(filler)
            giver.places.remove(i)
            giver.free += len(examples[i])
    return any(filler is not None for filler in shortened)


def bucket(
    lengths: Sequence[int], *, batch_size: int | None = None, batch_tokens: int | None = None
) -> list[list[int]]:
    """Put examples of similar lengths into batches, from the shortest to the longest.

    Exactly one is given: `batch_size` examples at most, in batches whose sizes differ by one at most; or as many as fit
    into `batch_tokens` tokens, padding included, but at least one.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if batch_size is not None:
        n_batches = -(-len(order) // batch_size)
        edges = [len(order) * i // n_batches for i in range(n_batches + 1)] if n_batches else []
        return [order[first:last] for first, last in pairwise(edges)]
    assert batch_tokens is not None
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * lengths[i] > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def lay_out(rows: Sequence[Row], width: int, *, pad_id: int = 0) -> TokenBatch:
    """Return rows of examples as arrays of `width` tokens, the rest padding on the right."""
    ids_bt = np.full((len(rows), width), pad_id, np.int64)
    weights_bt = np.zeros((len(rows), width), np.float32)
    positions_bt = np.zeros((len(rows), width), np.int64)
    segments_bt = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        begin = 0
        for number, example in enumerate(row, start=1):
            end, answer = begin + len(example), begin + example.n_prompt
            ids_bt[b, begin:end] = example.input_ids
            weights_bt[b, begin + 1 : answer] = example.prompt_weight
            weights_bt[b, max(answer, begin + 1) : end] = example.answer_weight
            positions_bt[b, begin:end] = _COUNT[: end - begin] if end - begin <= len(_COUNT) else np.arange(end - begin)
            segments_bt[b, begin:end] = number
            begin = end
    return TokenBatch(
        input_ids=ids_bt,
        weights=weights_bt,
        position_ids=positions_bt,
        segment_ids=segments_bt,
        n_examples=sum(map(len, rows)),
    )


_COUNT = np.arange(1 << 14)
