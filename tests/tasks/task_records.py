"""One full record of each unit, for the contracts that every task keeps."""

from __future__ import annotations

from typing import Any

from cytoglot.tasks import CellGroup, CellRecord, CellTypeTerm, GeneSet, Record, Task

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
    """Return the full record of the task's unit."""
    return RECORDS[task.unit]
