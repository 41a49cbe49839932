"""The genes of a source under the names of the corpus: which column of a file is which gene."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytoglot.corpus.sources.recipe import GeneRecipe
from cytoglot.data.datasets import knowledge_table
from cytoglot.data.genes.columns import strip_version
from cytoglot.data.genes.harmonize import (
    BUILT_IN,
    HarmoniseReport,
    Harmonized,
    HgncTable,
    check_namespace,
    check_overlap,
    harmonize,
    read_gene_list,
    read_hgnc,
    read_orthologs,
)
from cytoglot.data.genes.vocabulary import GeneVocabulary, ResolvedGenes
from cytoglot.errors import InputError

logger = logging.getLogger(__name__)

_HGNC = "hgnc_symbols_aliases.tsv.gz"
_ORTHOLOGS = "human_mouse_orthologs_mgi.tsv.gz"


@dataclass(frozen=True, kw_only=True)
class GeneTables:
    """What a recipe says about genes, read."""

    recipe: GeneRecipe
    hgnc: HgncTable
    orthologs: Mapping[str, str] | None
    """mouse → human; None where mouse genes stay"""
    vocabulary: tuple[str, ...] | None
    """the given vocabulary; None: the genes of all sources"""

    def harmonized(self, names: tuple[str, ...], *, organism: str) -> Harmonized:
        """Return the names of the corpus for the names of a file, and refuse a file of another namespace.

        Raises
        ------
        InputError
            Too few of the names are in the given vocabulary, or without one, they are plainly of another namespace.
        """
        if self.recipe.repair or (organism == "mouse" and self.orthologs is not None):
            found = harmonize(names, organism=organism, hgnc=self.hgnc, orthologs=self.orthologs)
        else:
            report = HarmoniseReport(organism=organism, n_columns=len(names))
            found = Harmonized(symbols=tuple(strip_version(name) for name in names), report=report)
        kept = [symbol for symbol in found.symbols if symbol is not None]
        if not kept:
            raise InputError(
                f"expected {organism} genes, found none of {len(names)} names among the orthologs, such as "
                f"{', '.join(repr(n) for n in names[:3])}; set organism, or genes.mouse: keep"
            )
        if self.vocabulary is not None:
            check_overlap(kept, self.vocabulary, min_overlap=self.recipe.min_overlap)
        elif self.recipe.repair and self.recipe.min_overlap > 0:
            check_namespace(kept, organism="human" if self.orthologs is not None else organism)
        return found


def gene_tables(recipe: GeneRecipe, base: Path) -> GeneTables:
    """Read the tables that a recipe names, else those of the knowledge folder; paths are relative to `base`.

    Raises
    ------
    InputError
        A table is missing or cannot be read, or mouse genes are to become human ones and there is no table for it.
    """
    orthologs: Mapping[str, str] | None = None
    if recipe.mouse == "to_human":
        orthologs = read_orthologs(ortholog_path(recipe, base))
    hgnc_path = find_file(recipe.hgnc, base) if recipe.hgnc is not None else knowledge_table(_HGNC)
    vocabulary = None if recipe.vocabulary is None else read_gene_list(find_file(recipe.vocabulary, base))
    return GeneTables(
        recipe=recipe,
        hgnc=BUILT_IN if hgnc_path is None or not recipe.repair else read_hgnc(hgnc_path),
        orthologs=orthologs,
        vocabulary=vocabulary,
    )


def find_file(path: str, base: Path) -> Path:
    """Return a file that a recipe names: relative to the recipe, to the working folder, or in the knowledge folder.

    A path that is nowhere comes back relative to the recipe, for the reader to say that it is missing.
    """
    for candidate in (base / path, Path(path), knowledge_table(path)):
        if candidate is not None and candidate.exists():
            return candidate
    return base / path


def ortholog_path(recipe: GeneRecipe, base: Path) -> Path:
    """Return the table of orthologs that a recipe names, or that of the knowledge folder; an InputError if neither."""
    path = find_file(recipe.orthologs, base) if recipe.orthologs is not None else knowledge_table(_ORTHOLOGS)
    if path is None:
        raise InputError(
            f"genes.mouse: to_human needs a table of orthologs, found none in the knowledge folder ({_ORTHOLOGS}); "
            "set genes.orthologs to a TSV with the columns human_symbol and mouse_symbol"
        )
    return path


def renamed(genes: ResolvedGenes, harmonized: Harmonized, *, can_sum: bool) -> ResolvedGenes:
    """Return the genes of a matrix under new names: genes that get one name become one gene.

    Genes are in the order of their first column, or of the column that is kept where they cannot be summed (logs):
    the one that had the name already, else the first.
    """
    old = genes.vocabulary.symbols
    symbols = tuple(dict.fromkeys(symbol for symbol in harmonized.symbols if symbol is not None))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    new_of = np.array([-1 if symbol is None else number[symbol] for symbol in harmonized.symbols], dtype=np.int32)
    if not can_sum:  # all but one of the genes that share a new name are dropped
        had_the_name = np.array([a == b for a, b in zip(old, harmonized.symbols, strict=True)], dtype=bool)
        order = np.lexsort((np.arange(new_of.size), ~had_the_name))
        first = order[np.unique(new_of[order], return_index=True)[1]]
        new_of = np.where(np.isin(np.arange(new_of.size), first), new_of, np.int32(-1))
    dropped = genes.column_gene < 0
    column_gene = np.where(dropped, -1, new_of[np.where(dropped, 0, genes.column_gene)]).astype(np.int32)
    return ResolvedGenes(vocabulary=GeneVocabulary(symbols), column_gene=column_gene, report=genes.report)
