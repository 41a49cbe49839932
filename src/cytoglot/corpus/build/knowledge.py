"""What a corpus holds beside cells: gene sets, cell types, orthologs, and the curve from rank to expression."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cytoglot.corpus.build.plan import BuildPlan
from cytoglot.corpus.build.rank import curve_cells, spill_of
from cytoglot.corpus.format.folder import (
    PARTS,
    CorpusDescription,
    Part,
    write_orthologs,
    write_table,
)
from cytoglot.corpus.sources.genes import GeneTables, find_file, gene_tables, ortholog_path
from cytoglot.data.genes.harmonize import harmonize, read_orthologs
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.knowledge.tables import read_cell_types, read_gmt, read_markers, readable_set_name
from cytoglot.errors import InputError
from cytoglot.hashing import hash_text
from cytoglot.sentence.fit_curves import CurveFitter
from cytoglot.sentence.rank_curve import DEFAULT_CURVE
from cytoglot.tasks.record import CellTypeTerm, GeneSet

logger = logging.getLogger(__name__)

#: Gene sets of which fewer genes are in the vocabulary say too little of what the set is.
MIN_SET_GENES = 5
_TRAIN_SHARE, _VALIDATION_SHARE = 0.8, 0.1

Entry = TypeVar("Entry", GeneSet, CellTypeTerm)


def write_knowledge(plan: BuildPlan, description: CorpusDescription, out: Path) -> None:
    """Write the tables that the recipe asks for, in genes of the corpus.

    A gene set or term is in the part that the seed and its name draw: 80 % train, 10 % validation, 10 % test.
    Orthologs are written where the recipe names a table, or the corpus has cells of human and mouse.

    Raises
    ------
    InputError
        A table is missing or damaged.
    """
    base = Path(plan.base)
    tables = gene_tables(plan.recipe.genes, base)
    sets = gene_sets_of(plan, tables)
    if sets:
        write_table(out, "gene_set", _by_part(sets, plan.seed))
    terms = cell_types_of(plan, tables, description.counts.get("cell_type", {}))
    if terms:
        write_table(out, "cell_type_term", _by_part(terms, plan.seed))
    species = {source.recipe.organism for source in plan.sources}
    if plan.recipe.genes.orthologs is not None or {"human", "mouse"} <= species:
        _write_orthologs(plan, tables, out)


def gene_sets_of(plan: BuildPlan, tables: GeneTables) -> list[GeneSet]:
    """Return the gene sets of the recipe, with the genes that the vocabulary has; small ones are left out."""
    found = []
    for entry in plan.recipe.gene_sets:
        path = find_file(entry.path, Path(plan.base))
        collection = entry.collection or path.name.split(".")[0]
        read = read_gmt(path)
        sets = [
            GeneSet(
                name=readable_set_name(each.name),
                genes=_known(each.genes, plan, tables),
                collection=collection,
            )
            for each in read
        ]
        kept = [each for each in sets if len(each.genes) >= MIN_SET_GENES]
        n_genes, n_known = sum(len(each.genes) for each in read), sum(len(each.genes) for each in sets)
        logger.info(
            "%s: %d of %d gene sets have %d genes of the vocabulary or more; %.0f %% of their genes are in it",
            collection, len(kept), len(sets), MIN_SET_GENES, 100 * n_known / max(n_genes, 1),
        )  # fmt: skip
        found += kept
    return found


def cell_types_of(plan: BuildPlan, tables: GeneTables, labels: Iterable[str]) -> list[CellTypeTerm]:
    """Return the terms of the ontology that have a definition or markers.

    A label of the corpus that names a term is one of its synonyms.
    """
    recipe, base = plan.recipe.cell_types, Path(plan.base)
    if recipe.ontology is None:
        return []
    ontology = find_file(recipe.ontology, base)
    markers: dict[str, tuple[str, ...]] = {}
    if recipe.markers is not None:
        species = {source.recipe.organism for source in plan.sources}
        which = "mouse" if species == {"mouse"} and plan.recipe.genes.mouse == "keep" else "human"
        markers = read_markers(find_file(recipe.markers, base), species=which)
    labels_of: dict[str, list[str]] = {}
    for label, term in map_labels(labels, terms=ontology).ids.items():
        if term is not None:
            labels_of.setdefault(term, []).append(label)
    terms = [
        CellTypeTerm(
            label=entry.label,
            definition=entry.definition,
            term_id=entry.term_id,
            synonyms=tuple(
                name
                for name in dict.fromkeys([*entry.synonyms, *sorted(labels_of.get(entry.term_id, ()))])
                if name != entry.label
            ),
            markers=_known(markers.get(entry.term_id, ()), plan, tables),
        )
        for entry in read_cell_types(ontology)
    ]
    return [term for term in terms if term.definition or term.markers]


def fit_curve_of_sample(plan: BuildPlan, work: Path) -> dict[str, Any] | None:
    """Return the curve from rank to expression, fitted on the sampled training cells; None where no source has counts.

    Spans are read in order, twice, so the curve does not depend on who ranked them.
    """
    fitter = CurveFitter([DEFAULT_CURVE], plan.vocabulary, seed=plan.seed)
    for reading in range(2 if fitter.needs_second_reading else 1):
        if reading == 1:
            fitter.start_second_reading()
        for number in range(len(plan.spans)):
            found = curve_cells(spill_of(work, number), plan, number)
            if found is not None and len(found[0].gene_ids):
                fitter.add(*found)
        if fitter.n_words == 0:
            return None
    return fitter.curves()[DEFAULT_CURVE].to_dict()


def _known(genes: Sequence[str], plan: BuildPlan, tables: GeneTables) -> tuple[str, ...]:
    """Return those of these genes that the vocabulary has, under today's symbols, each once."""
    named: Iterable[str | None] = genes
    if plan.recipe.genes.repair and genes:
        named = (name if name in plan.vocabulary else new
                 for name, new in zip(genes, harmonize(genes, hgnc=tables.hgnc).symbols, strict=True))  # fmt: skip
    return tuple(dict.fromkeys(name for name in named if name is not None and name in plan.vocabulary))


def _by_part(entries: Sequence[Entry], seed: int) -> dict[Part, list[Entry]]:
    parts: dict[Part, list[Entry]] = {part: [] for part in PARTS}
    for entry in entries:
        drawn = hash_text(f"{seed}\0{entry.key}") / 2**64
        place = 0 if drawn < _TRAIN_SHARE else 1 if drawn < _TRAIN_SHARE + _VALIDATION_SHARE else 2
        parts[PARTS[place]].append(entry)
    return parts


def _write_orthologs(plan: BuildPlan, tables: GeneTables, out: Path) -> None:
    try:
        path = ortholog_path(plan.recipe.genes, Path(plan.base))
    except InputError:
        if plan.recipe.genes.orthologs is not None:
            raise
        logger.warning("the corpus has cells of human and mouse, and no table of orthologs was found for them")
        return
    pairs = read_orthologs(path)
    human = harmonize(list(pairs.values()), hgnc=tables.hgnc).symbols
    mouse_id, human_id = (plan.vocabulary.index_of([str(name) for name in names]) for names in (pairs, human))
    both = (mouse_id >= 0) & (human_id >= 0) & (mouse_id != human_id)
    if not both.any():
        logger.info("no pair of orthologs is in the vocabulary")
        return
    ortholog_g = np.full(len(plan.vocabulary), -1, np.int32)
    ortholog_g[mouse_id[both]], ortholog_g[human_id[both]] = human_id[both], mouse_id[both]
    write_orthologs(out, ortholog_g)
    logger.info("%d pairs of human and mouse orthologs", int(both.sum()))
