"""Gene ids → Arrow strings: the bytes of all sentences are laid down by one compiled loop."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: Arrow's `string` counts bytes in int32.
_LARGEST_STRING_ARRAY = (1 << 31) - 1


def join_words(
    offsets: NDArray[np.int64],
    gene_ids: NDArray[np.uint16] | NDArray[np.uint32],
    words: Sequence[str],
    delimiter: str = " ",
) -> pa.StringArray | pa.LargeStringArray:
    """Return the words of each run of `gene_ids`, joined by `delimiter`; an empty run gives "".

    Memory: the text itself and 8 bytes a cell.
    """
    word_bytes, word_starts = _word_table(words, delimiter)
    delimiter_bytes = len(delimiter.encode())
    text_offsets = _text_offsets(offsets, gene_ids, word_starts, delimiter_bytes)
    text = np.empty(int(text_offsets[-1]), np.uint8)
    _write_text(offsets, gene_ids, word_bytes, word_starts, delimiter_bytes, text_offsets, text)
    if len(text) <= _LARGEST_STRING_ARRAY:
        kind, text_offsets = pa.string(), text_offsets.astype(np.int32)
    else:
        kind = pa.large_string()
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(text_offsets), pa.py_buffer(text)])


def _word_table(words: Sequence[str], delimiter: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of every word with the delimiter before it, and where each starts."""
    table = [(delimiter + word).encode() for word in words]
    starts = np.zeros(len(table) + 1, np.int64)
    np.cumsum([len(word) for word in table], out=starts[1:])
    return np.frombuffer(b"".join(table), np.uint8), starts


@numba.njit(cache=True, nogil=True)
def _text_offsets(offsets, gene_ids, word_starts, delimiter_bytes):  # type: ignore[no-untyped-def]
    text_offsets = np.zeros(len(offsets), np.int64)
    for cell in range(len(offsets) - 1):
        n_bytes = 0
        for position in range(offsets[cell], offsets[cell + 1]):
            gene = gene_ids[position]
            n_bytes += word_starts[gene + 1] - word_starts[gene]
        if offsets[cell + 1] > offsets[cell]:
            n_bytes -= delimiter_bytes  # none before the first word
        text_offsets[cell + 1] = text_offsets[cell] + n_bytes
    return text_offsets


@numba.njit(cache=True, nogil=True)
def _write_text(offsets, gene_ids, word_bytes, word_starts, delimiter_bytes, text_offsets, text):  # type: ignore[no-untyped-def]
    for cell in range(len(offsets) - 1):
        end = text_offsets[cell]
        skipped = delimiter_bytes
        for position in range(offsets[cell], offsets[cell + 1]):
            gene = gene_ids[position]
            for byte in range(word_starts[gene] + skipped, word_starts[gene + 1]):
                text[end] = word_bytes[byte]
                end += 1
            skipped = 0
