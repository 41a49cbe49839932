"""One full record of each unit, for the contracts that every task keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cytoglot.cell_model.file_cells import FileCells
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.relations import relation_of_lists
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.tasks import (
    CellGroup,
    CellRecord,
    CellsSource,
    CellTypeTerm,
    GeneSet,
    Record,
    Task,
    record_sources,
)
from cytoglot.tasks.record_source import Draws

GENES = ("MALAT1", "HLA-DRA", "AC093323.3", "NKX2-1", "Actb")
ORTHOLOGS = ("Malat1", "H2-Ea", "", "Nkx2-7", "ACTB")
MARKERS = ("CD3D", "CD3E", "TRAC")
SYMBOLS = (*GENES, *filter(None, ORTHOLOGS), *MARKERS)
METADATA = {
    "cell_type": "CD4 T",
    "organism": "Homo sapiens",
    "tissue": "pancreas",
    "disease": "normal",
    "sex": "female",
    "development_stage": "adult stage",
    "assay": "10x 3' v3",
    "condition": "stimulated",
    "donor_id": "d1",
}
SHARED = {**{k: v for k, v in METADATA.items() if k != "cell_type"}, "abstract": "We profiled cells of an organ."}
RECORDS: dict[str, Record] = {
    "cell": CellRecord(genes=GENES, metadata=METADATA, cell_id="AAAC-1", ortholog_genes=ORTHOLOGS),
    "cell_group": CellGroup(
        cells=tuple(
            CellRecord(genes=GENES[i:], metadata={**METADATA, "cell_type": kind}, cell_id=f"AAAC-{i}")
            for i, kind in enumerate(("CD4 T", "B", "CD4 T"))
        ),
        metadata=SHARED,
        group_id="d1-pancreas-0",
    ),
    "gene_set": GeneSet(name="interferon gamma response", genes=GENES, collection="hallmark"),
    "cell_type_term": CellTypeTerm(
        label="alpha-beta T cell",
        definition="A T cell that expresses an alpha-beta T cell receptor complex.",
        term_id="CL:0000789",
        synonyms=("alpha-beta T lymphocyte",),
        markers=MARKERS,
    ),
}


def record_for(task: Task[Any, Any]) -> Any:
    """Return the full record of the task's unit; one of another unit is made of three cells that know each other."""
    return RECORDS[task.unit] if task.unit in RECORDS else _made_of_cells(task.unit)


def _made_of_cells(unit: str) -> Any:
    vocabulary, n = GeneVocabulary(SYMBOLS), 3
    genes = [(0, 1, 2, 3), (4, 5, 6), (8, 9, 10)]
    sentences = CellSentences(
        cell_ids=np.array([f"AAAC-{i}" for i in range(n)], dtype=object),
        offsets=np.cumsum([0, *map(len, genes)]),
        gene_ids=np.concatenate(genes).astype(np.uint16),
        n_expressed=np.array([*map(len, genes)]),
        vocabulary=vocabulary,
        settings=RankSettings(),
    )
    obs = pd.DataFrame([METADATA | {"dose": "10 uM", "time": "6 h"}] * n, index=sentences.cell_ids)
    source = record_sources[unit]
    assert isinstance(source, CellsSource)
    others = [[str(cell) for j, cell in enumerate(sentences.cell_ids) if j != i] for i in range(n)]
    relations = {} if source.relation is None else {source.relation: relation_of_lists(others)}
    cells = FileCells(sentences, obs, relations)
    return source.record(cells, int(source.rows(cells)[0]), Draws(0)).with_variant(0)
