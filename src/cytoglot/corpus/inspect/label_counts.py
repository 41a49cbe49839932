"""How many cells of each source and part carry which labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cytoglot.corpus.format.folder import PARTS, Part
from cytoglot.corpus.inspect.scan import ScannedBlock


@dataclass
class LabelCounts:
    """Counts of the metadata."""

    n_cells: Counter[tuple[str, Part]] = field(default_factory=Counter)
    """(source, part) → cells"""
    values: dict[tuple[str, Part, str], Counter[str]] = field(default_factory=dict)
    """(source, part, column) → value → cells"""

    def update(self, seen: ScannedBlock) -> None:
        """Count the values of a row group."""
        source_n, sources = seen.codes("source")
        for code, n in zip(*np.unique(source_n, return_counts=True), strict=True):
            self.n_cells[sources[code], seen.part] += int(n)
        for column in seen.block.metadata_columns:
            codes, texts = seen.codes(column)
            known = codes >= 0
            pairs, counts = np.unique(
                source_n[known].astype(np.int64) * max(len(texts), 1) + codes[known], return_counts=True
            )
            for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True):
                source, text = divmod(pair, max(len(texts), 1))
                self.values.setdefault((sources[source], seen.part, column), Counter())[texts[text]] += n

    def of_part(self, column: str, part: Part) -> Counter[str]:
        """Return value → cells of a part."""
        return self._sum(values for (_, p, c), values in self.values.items() if p == part and c == column)

    def of_study(self, column: str, part: Part, sources: Sequence[str]) -> Counter[str]:
        """Return value → cells of some sources in a part."""
        return self._sum(self.values.get((source, part, column), Counter()) for source in sources)

    def cells(self, part: Part, source: str | None = None) -> int:
        """Return the cells of a part, of one source or of all."""
        return sum(n for (s, p), n in self.n_cells.items() if p == part and source in (None, s))

    def coverage(self, columns: Iterable[str]) -> list[dict[str, object]]:
        """Return for each source and part that has cells the share of them of which each column is known."""
        rows: list[dict[str, object]] = []
        for part in PARTS:
            for source in sorted({s for s, p in self.n_cells if p == part}):
                n = self.n_cells[source, part]
                shares = {c: self.values.get((source, part, c), Counter()).total() / n for c in columns}
                rows.append({"part": part, "source": source, "cells": n, **shares})
        return rows

    @staticmethod
    def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
        total = Counter[str]()
        for counter in counters:
            total.update(counter)
        return total
