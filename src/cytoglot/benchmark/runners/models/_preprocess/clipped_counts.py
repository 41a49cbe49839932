"""TranscriptFormer (Pearce 2025): the expressed genes of a cell with their counts, clipped.

Axes: g genes of a cell, t tokens.
"""

from __future__ import annotations

import numpy as np

MAX_GENES, CLIP = 2_047, 30


def clipped_counts(
    counts_g: np.ndarray, tokens_g: np.ndarray, *, max_genes: int = MAX_GENES, clip: float = CLIP
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the expressed genes and their counts, each (t), in the order of the columns.

    Counts above `clip` count as `clip`; of more than `max_genes` expressed genes the first are kept.
    """
    expressed = np.flatnonzero(np.asarray(counts_g) > 0)[:max_genes]
    counts = np.minimum(np.asarray(counts_g, dtype=np.float32)[expressed], np.float32(clip))
    return np.asarray(tokens_g, dtype=np.int64)[expressed], counts
