"""The cells of an AnnData as what records are made of, like the cells of a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.relations import Relation
from cytoglot.data.schema import recognize_obs, tidy_values
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.record_source import Draws
from cytoglot.tasks.segments import Genes

GROUP_COLUMN = "cell_group"


class FileCells:
    """What records are made of (see `cytoglot.tasks.record_source.Cells`).

    Parameters
    ----------
    obs
        Columns of recognized names are the metadata; `cell_group`, if it is there, says which neighbors are a group.
    metadata
        What is known of every cell.
    """

    def __init__(
        self,
        sentences: CellSentences,
        obs: pd.DataFrame,
        relations: Mapping[str, Relation],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._sentences, self._relations, self._known = sentences, relations, dict(metadata or {})
        self._cell_ids = [str(cell_id) for cell_id in sentences.cell_ids]
        self._columns = {name: tidy_values(name, obs[column]) for name, column in recognize_obs(obs).items()}
        codes = pd.factorize(obs[GROUP_COLUMN])[0] if GROUP_COLUMN in obs else np.full(len(obs), -1)
        self.group: NDArray[np.integer] = codes
        """(n,) number of the cell group, −1 for none"""

    def __len__(self) -> int:
        return len(self._cell_ids)

    @property
    def n_genes(self) -> NDArray[np.integer]:
        """(n,) genes of each cell."""
        return self._sentences.lengths

    def cell(self, row: int, draws: Draws, *, top_genes: int | None = None) -> CellRecord:
        """Return a cell with what is known of it."""
        found = {name: values[row] for name, values in self._columns.items() if isinstance(values[row], str)}
        return CellRecord(
            genes=Genes(self._sentences.ids(row)[:top_genes], self._sentences.vocabulary.names),
            metadata={**self._known, **found},
            cell_id=self._cell_ids[row],
            variant=draws("variant"),
        )

    def abstract(self, row: int) -> str:
        """Return nothing: a file tells no abstract."""
        return ""

    def rows_with(self, relation: str) -> NDArray[np.int64]:
        """Return the rows of the cells that have related ones."""
        table = self._relations.get(relation)
        return np.empty(0, np.int64) if table is None else np.flatnonzero(np.diff(table.offsets) > 0)

    def related(self, relation: str, row: int, draws: Draws, *, top_genes: int | None = None) -> tuple[CellRecord, ...]:
        """Return the related cells, the heaviest first."""
        table = self._relations[relation]
        others = table.cell_ids[table.offsets[row] : table.offsets[row + 1]].tolist()
        places = (self._rows.get(str(cell_id)) for cell_id in others)
        return tuple(self.cell(place, draws, top_genes=top_genes) for place in places if place is not None)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {cell_id: row for row, cell_id in enumerate(self._cell_ids)}
