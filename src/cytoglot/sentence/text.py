"""Gene ids → Arrow strings: compiled loops lay down the bytes of all sentences, in parallel over cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from cytoglot.sentence.threads import for_each_run

#: Arrow's `string` counts bytes in int32.
_LARGEST_STRING_ARRAY = (1 << 31) - 1
#: Bytes copied at once, one vector register; longer words are copied byte by byte.
_WIDTH = 16


def join_words(
    offsets: NDArray[np.int64],
    gene_ids: NDArray[np.uint16] | NDArray[np.uint32],
    words: Sequence[str],
    delimiter: str = " ",
) -> pa.StringArray | pa.LargeStringArray:
    """Return the words of each run of `gene_ids`, joined by `delimiter`; an empty run gives "".

    Memory: the text itself and 8 bytes a cell.
    """
    # the bytes of every word with the delimiter after it, and where each starts
    table = [(word + delimiter).encode() for word in words]
    word_starts = np.zeros(len(table) + 1, np.int64)
    np.cumsum([len(word) for word in table], out=word_starts[1:])
    word_bytes = np.frombuffer(bytearray(b"".join(table) + bytes(_WIDTH)), np.uint8)
    delimiter_bytes = len(delimiter.encode())
    text_offsets = np.zeros(len(offsets), np.int64)

    def measure(begin: int, end: int) -> None:
        _measure_text(
            offsets[begin : end + 1], gene_ids, word_starts, delimiter_bytes, text_offsets[begin + 1 : end + 1]
        )

    for_each_run(offsets, measure)
    np.cumsum(text_offsets, out=text_offsets)
    text = np.empty(int(text_offsets[-1]), np.uint8)

    def write(begin: int, end: int) -> None:
        _write_text(offsets[begin : end + 1], gene_ids, word_bytes, word_starts, text_offsets[begin : end + 1], text)

    for_each_run(offsets, write)
    is_large = len(text) > _LARGEST_STRING_ARRAY
    buffers = [None, pa.py_buffer(text_offsets if is_large else text_offsets.astype(np.int32)), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string() if is_large else pa.string(), len(offsets) - 1, buffers)


@intrinsic
def _copy_width(context, to, place, source, start):  # type: ignore[no-untyped-def]
    """Copy 16 bytes by one load and one store: a loop over bytes, which may overlap as far as LLVM knows, takes 4 ×."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        register = ir.VectorType(ir.IntType(8), _WIDTH).as_pointer()

        def pointer(number: int) -> Any:
            array = context.make_array(signature.args[number])(context, builder, arguments[number])
            return builder.bitcast(builder.gep(array.data, [arguments[number + 1]]), register)

        builder.store(builder.load(pointer(2), align=1), pointer(0), align=1)
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64), generate


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _measure_text(offsets, gene_ids, word_starts, delimiter_bytes, text_lengths):  # type: ignore[no-untyped-def]
    for cell in range(len(offsets) - 1):
        n_bytes = 0
        for position in range(offsets[cell], offsets[cell + 1]):
            gene = gene_ids[position]
            n_bytes += word_starts[gene + 1] - word_starts[gene]
        text_lengths[cell] = max(n_bytes - delimiter_bytes, 0)  # none after the last word


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_text(offsets, gene_ids, word_bytes, word_starts, text_offsets, text):  # type: ignore[no-untyped-def]
    """Write every word with a delimiter; the next word, or the next cell, overwrites what was written too much."""
    limit = text_offsets[len(text_offsets) - 1]  # beyond it another thread writes
    for cell in range(len(offsets) - 1):
        place = text_offsets[cell]
        for position in range(offsets[cell], offsets[cell + 1]):
            start = word_starts[gene_ids[position]]
            n_bytes = word_starts[gene_ids[position] + 1] - start
            if n_bytes <= _WIDTH and place + _WIDTH <= limit:
                _copy_width(text, place, word_bytes, start)
            else:
                for byte in range(min(n_bytes, limit - place)):
                    text[place + byte] = word_bytes[start + byte]
            place += n_bytes
