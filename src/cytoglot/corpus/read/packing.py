"""Examples of many lengths → batches of one shape: packed into rows of a fixed length, or padded with others like them.

Axes: b rows, t tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError

MAX_GAP = 1 / 128
"""share of a row that may stay empty without waiting for something to put there"""


@dataclass(frozen=True, slots=True)
class TokenExample:
    """An example as token ids, and what predicting them weighs in the loss."""

    input_ids: NDArray[np.int32]
    """(t,)"""
    n_prompt: int
    answer_weight: float
    """of each token of the answer"""
    prompt_weight: float = 0.0
    n_distinct: int = 0
    """tokens at the start of the answer that choose words of which none is written twice"""
    n_words: int = 0
    """words that these tokens spell"""
    condition: int = 0
    """row of the profile that the words are learned with"""
    word_weights: NDArray[np.float32] | None = None
    """(n_distinct,) what each of these tokens weighs, where that is not `answer_weight`"""

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
    n_words: NDArray[np.int32]
    """(b, t) words of the answer that a token belongs to, none of which is written twice; 0 for any other token"""
    conditions: NDArray[np.int32]
    """(b, t) row of the profile that those words are learned with"""
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


def pack(examples: Sequence[TokenExample], size: int, *, finish: bool = True) -> tuple[list[Row], list[TokenExample]]:
    """Lay examples into rows of `size` tokens, none split; return the rows, fullest first, and examples that wait.

    Without `finish` the emptiest rows are undone and their examples given back in their order, to be packed with
    others; a quarter of the rows at most, so that nothing waits for ever.
    """
    lengths = [len(example) for example in examples]
    places = sorted(best_fit(lengths, size), key=lambda row: -sum(lengths[i] for i in row))
    first_undone = len(places) - (0 if finish else max(len(places) // 4, 1))
    undone = [row for row in places[first_undone:] if size - sum(lengths[i] for i in row) > size * MAX_GAP]
    done = places[: len(places) - len(undone)]
    return [[examples[i] for i in row] for row in done], [examples[i] for i in sorted(chain.from_iterable(undone))]


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
    n_words_bt, conditions_bt = np.zeros((2, len(rows), width), np.int32)
    for b, row in enumerate(rows):
        begin = 0
        for number, example in enumerate(row, start=1):
            end, answer = begin + len(example), begin + example.n_prompt
            ids_bt[b, begin:end] = example.input_ids
            weights_bt[b, begin + 1 : answer] = example.prompt_weight
            weights_bt[b, max(answer, begin + 1) : end] = example.answer_weight
            positions_bt[b, begin:end] = _COUNT[: end - begin] if end - begin <= len(_COUNT) else np.arange(end - begin)
            segments_bt[b, begin:end] = number
            if example.n_distinct:
                words = slice(answer, answer + example.n_distinct)
                n_words_bt[b, words], conditions_bt[b, words] = example.n_words, example.condition
                if example.word_weights is not None:
                    weights_bt[b, words] = example.word_weights
            begin = end
    return TokenBatch(
        input_ids=ids_bt,
        weights=weights_bt,
        position_ids=positions_bt,
        segment_ids=segments_bt,
        n_words=n_words_bt,
        conditions=conditions_bt,
        n_examples=sum(map(len, rows)),
    )


_COUNT = np.arange(1 << 14)
