"""Cells with nearly the same genes on top: copies after another alignment or filter, or in another gene set.

Compared are the sets of the first genes of two cells, of those genes that the sources of both have. Held-out cells, a
random choice of them, are looked up among all cells of the parts before theirs; training cells among training cells,
which is what to expect without any leak between parts. Memory is bounded by that choice: the other cells pass by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.format.shard_file import CellBlock, concat_blocks, make_block
from cytoglot.corpus.inspect.minhash import N_ORDERS, GeneSetIndex, chance_to_find, jaccard, leading_sets, random_orders
from cytoglot.corpus.inspect.scan import ROW_BITS, ScannedBlock, name_cells, scan_corpus

THRESHOLD = 0.9
TOP_GENES = 128
"""genes of a cell that are compared, the highest ones: the low end of a sentence is noise"""
MIN_GENES = 20
"""cells with fewer genes are not compared: a few genes are often the same by coincidence"""
MAX_CELLS = 5000
_SAME_PANEL = 0.7
"""sources whose genes have at least this Jaccard index are compared over the genes of all of them"""
_MIN_SHARED = 300
_MOST_PANEL_PAIRS = 64
_BACKGROUND_PAIRS = 20_000
_ASKED_OF: Mapping[Part, tuple[Part, ...]] = {"train": ("train", "validation", "test"), "validation": ("test",)}
"""part that is gone through → parts whose cells are looked up in it"""


def find_near_duplicates(
    corpus: Corpus,
    used_sg: NDArray[np.bool_],
    *,
    max_cells: int = MAX_CELLS,
    examples: int = 20,
    seed: int = 0,
    skip: Collection[str] = (),
) -> dict[str, Any]:
    """Find pairs of cells with a Jaccard index of at least `THRESHOLD`; return plain JSON values.

    Of them `compared` has a row for each part and the part in which its cells were looked up: `n_of` cells of which
    `n_cells` were, `n_twins` that have a near-duplicate there, their `share`, and `n_pairs`. `examples`: pairs, across
    parts first, then the most similar; `panels` are sources that are compared over the same genes, `not_compared` those
    that share too few, or are too many. `likeness_within_cell_types` is the Jaccard index of random pairs of cells of
    one type in the training part (`above`: the share above the threshold); empty without cell types.

    Parameters
    ----------
    used_sg
        The genes that each source has in the sentence of any cell, as `CorpusCounts` finds them.
    max_cells
        Cells of each part that are looked up, a random choice.
    skip
        Files of shards to leave out.
    """
    panels = GeneUniverseGroups.of(corpus, used_sg)
    places = []
    for part in PARTS:
        shards = [(i, s) for i, s in enumerate(corpus.description.shards) if s.part == part and s.file not in skip]
        ends = np.cumsum([shard.n_cells for _, shard in shards]) if shards else np.zeros(1, np.int64)
        rng = np.random.default_rng([seed, 22, PARTS.index(part)])
        rows = np.sort(rng.choice(ends[-1], size=min(int(ends[-1]), max_cells), replace=False, shuffle=False))
        number = np.searchsorted(ends, rows, side="right")
        shard_of = np.array([i for i, _ in shards] or [0], np.uint64)
        row_of = (rows - np.concatenate([[0], ends[:-1]])[number]).astype(np.uint64)
        places.append((shard_of[number] << np.uint64(ROW_BITS)) + row_of)
    chosen = _ChosenCells(np.sort(np.concatenate(places)))
    scan_corpus(corpus, [chosen], skip=skip, description="near-duplicates, cells to look up")
    chosen.finish(corpus, panels)
    search = _Search(chosen, panels, random_orders(len(corpus.vocabulary), seed=seed))
    passed = [shard.file for shard in corpus.shards("test")]
    scan_corpus(corpus, [search], skip={*skip, *passed}, description="near-duplicates, cells to compare")
    found = search.result(corpus, examples=examples, skip=skip)
    return found | {"likeness_within_cell_types": _likeness(chosen, panels, seed)}


@dataclass(frozen=True)
class GeneUniverseGroups:
    """Which sources are compared over which genes. Axes: s sources, p panels, g genes."""

    sources: tuple[tuple[str, ...], ...]
    """of each panel"""
    genes_pg: NDArray[np.bool_]
    """genes that all sources of a panel have"""
    of_source: Mapping[str, int]
    pairs: frozenset[tuple[int, int]]
    """panels that are compared, the first not after the second"""

    @classmethod
    def of(cls, corpus: Corpus, used_sg: NDArray[np.bool_]) -> GeneUniverseGroups:
        """Sort sources into panels, the largest first: a source joins the first panel of nearly the same genes."""
        infos = corpus.description.sources
        members: list[list[int]] = []
        genes: list[NDArray[np.bool_]] = []
        for i in sorted(range(len(infos)), key=lambda i: (-infos[i].n_kept, infos[i].name)):
            own = used_sg[i]
            for number, panel in enumerate(genes):
                if (own & panel).sum() >= max(_SAME_PANEL * (own | panel).sum(), 1):
                    members[number].append(i)
                    genes[number] = own & panel
                    break
            else:
                members.append([i])
                genes.append(own)
        genes_pg = np.array(genes).reshape(len(genes), used_sg.shape[1])
        weight = [sum(infos[i].n_kept for i in panel) for panel in members]
        apart = [(a, b) for a, b in combinations(range(len(members)), 2) if (genes_pg[a] & genes_pg[b]).sum()
                 >= _MIN_SHARED]  # fmt: skip
        apart.sort(key=lambda pair: (-weight[pair[0]] * weight[pair[1]], pair))
        return cls(
            sources=tuple(tuple(infos[i].name for i in panel) for panel in members),
            genes_pg=genes_pg,
            of_source={infos[i].name: number for number, panel in enumerate(members) for i in panel},
            pairs=frozenset(apart[:_MOST_PANEL_PAIRS]) | {(i, i) for i in range(len(members))},
        )

    def shared(self, a: int, b: int) -> NDArray[np.bool_]:
        """Return (g,) the genes that both panels have."""
        return np.asarray(self.genes_pg[a] & self.genes_pg[b])

    def are_compared(self, a: int, b: int) -> bool:
        """Tell whether cells of two panels are compared."""
        return (min(a, b), max(a, b)) in self.pairs


class _ChosenCells:
    """A visitor that keeps the chosen cells. Axis: q of them, in the order of the corpus."""

    def __init__(self, places: NDArray[np.uint64]) -> None:
        self.places = places
        self._blocks: list[CellBlock] = []

    def update(self, seen: ScannedBlock) -> None:
        """Keep those of a row group."""
        rows = np.flatnonzero(np.isin(seen.places, self.places, assume_unique=True))
        if len(rows):
            self._blocks.append(seen.block.take(rows))

    def finish(self, corpus: Corpus, panels: GeneUniverseGroups) -> None:
        """Put the pieces together."""
        nothing = make_block(
            cell_ids=[], offsets=np.zeros(1, int), gene_ids=np.zeros(0, int), n_genes=1, source=[], metadata={}
        )
        self.block = concat_blocks(self._blocks or [nothing])
        part_of_shard = np.array([PARTS.index(shard.part) for shard in corpus.description.shards], np.int8)
        self.part = part_of_shard[(self.places >> np.uint64(ROW_BITS)).astype(np.int64)]
        codes, sources = self.block.values("source")
        self.panel = np.array([panels.of_source[name] for name in sources], np.int32)[codes]
        self.cell_type = np.full(len(self.places), None, object)
        if "cell_type" in self.block.metadata_columns:
            texts = self.block.table["cell_type"].cast(pa.string()).to_pylist()
            self.cell_type[:] = [text if text and text.strip() else None for text in texts]

    def sets(self, cells: NDArray[np.int64], genes: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the leading sets of some chosen cells."""
        some = self.block.take(cells)
        return leading_sets(some.offsets, some.gene_ids, genes, n_genes=TOP_GENES)


class _Search:
    """A visitor that compares every cell with the chosen ones."""

    def __init__(self, chosen: _ChosenCells, panels: GeneUniverseGroups, orders: NDArray[np.uint32]) -> None:
        self._chosen, self._panels = chosen, panels
        n = len(chosen.places)
        self._found = {part: (np.zeros(n, np.int64), np.zeros(n), np.zeros(n, np.uint64)) for part in _ASKED_OF}
        """part → (q,) the pairs of each chosen cell within it, the Jaccard index of the best one, and its place"""
        self._can_be_compared = np.zeros(n, bool)
        self._n_exact = 0
        self._indices: dict[tuple[int, int], tuple[NDArray[np.int64], GeneSetIndex]] = {}
        for of_chosen, of_others in product(np.unique(chosen.panel).tolist(), range(len(panels.sources))):
            if panels.are_compared(of_chosen, of_others):
                cells = np.flatnonzero(chosen.panel == of_chosen)
                sets, sizes = chosen.sets(cells, panels.shared(of_chosen, of_others))
                enough = sizes >= MIN_GENES
                self._can_be_compared[cells[enough]] = True
                if enough.any():
                    cells = cells[enough]
                    index = GeneSetIndex(sets[enough], sizes[enough], chosen.places[cells], orders)
                    self._indices[of_chosen, of_others] = cells, index

    def update(self, seen: ScannedBlock) -> None:
        """Compare the cells of a row group."""
        codes, sources = seen.codes("source")
        panel = np.array([self._panels.of_source[name] for name in sources], np.int32)[codes]
        asked = np.isin(self._chosen.part, [PARTS.index(part) for part in _ASKED_OF[seen.part]])
        n_q, best_q, place_q = self._found[seen.part]
        block = seen.block
        for (of_chosen, of_others), (cells, index) in self._indices.items():
            rows = np.flatnonzero(panel == of_others)
            if not len(rows):
                continue
            some = block if len(rows) == len(block) else block.take(rows)
            genes = self._panels.shared(of_chosen, of_others)
            sets, sizes = leading_sets(some.offsets, some.gene_ids, genes, n_genes=TOP_GENES)
            enough = sizes >= MIN_GENES
            n, best, place = n_q[cells], best_q[cells], place_q[cells]
            self._n_exact += index.look_up(
                sets[enough], sizes[enough], seen.places[rows][enough], threshold=THRESHOLD, asked=asked[cells],
                n_found=n, best=best, best_place=place,
            )  # fmt: skip
            n_q[cells], best_q[cells], place_q[cells] = n, best, place

    def result(self, corpus: Corpus, *, examples: int, skip: Collection[str]) -> dict[str, Any]:
        """Sum up."""
        part_q, compared = self._chosen.part, []
        pairs: list[tuple[bool, float, int, int]] = []
        for among, parts in _ASKED_OF.items():
            n_q, best_q, place_q = self._found[among]
            for part in parts:
                of_part = (part_q == PARTS.index(part)) & self._can_be_compared
                n_cells, n_twins = int(of_part.sum()), int((n_q[of_part] > 0).sum())
                compared.append(
                    {
                        "part": part,
                        "among": among,
                        "n_cells": n_cells,
                        "n_of": sum(shard.n_cells for shard in corpus.shards(part) if shard.file not in skip),
                        "n_twins": n_twins,
                        "n_pairs": int(n_q[of_part].sum()),
                        "share": round(n_twins / max(n_cells, 1), 6),
                    }
                )
                for q in np.flatnonzero(of_part & (n_q > 0)).tolist():
                    own, other = int(self._chosen.places[q]), int(place_q[q])
                    pairs.append((part == among, -float(best_q[q]), own, other))
        shown = sorted(pairs)[:examples]
        cells = name_cells(corpus, [place for *_, a, b in shown for place in (a, b)])
        names, panels = self._panels.sources, range(len(self._panels.sources))
        return {
            "threshold": THRESHOLD,
            "top_genes": TOP_GENES,
            "min_genes": MIN_GENES,
            "orders": N_ORDERS,
            "chance_to_find": round(chance_to_find(THRESHOLD), 4),
            "compared": compared,
            "likeness_within_cell_types": {},
            "examples": [
                vars(cells[a])
                | {f"other_{name}": value for name, value in vars(cells[b]).items()}
                | {"jaccard": round(-minus, 4), "same_id": cells[a].cell_id == cells[b].cell_id}
                for _, minus, a, b in shown
            ],
            "panels": [{"sources": list(names[i]), "genes": int(self._panels.genes_pg[i].sum())} for i in panels],
            "not_compared": [
                [list(names[a]), list(names[b])]
                for a, b in combinations(panels, 2)
                if not self._panels.are_compared(a, b)
            ],
            "compared_gene_by_gene": self._n_exact,
        }


def _likeness(chosen: _ChosenCells, panels: GeneUniverseGroups, seed: int) -> dict[str, float]:
    """Return how alike random cells of one type in the training part are."""
    rng = np.random.default_rng([seed, 23])
    found = []
    in_train = (chosen.part == PARTS.index("train")) & np.array([name is not None for name in chosen.cell_type], bool)
    for panel in np.unique(chosen.panel[in_train]).tolist():
        cells = np.flatnonzero(in_train & (chosen.panel == panel))
        sets, sizes = chosen.sets(cells, panels.shared(panel, panel))
        cells, sets = cells[sizes >= MIN_GENES], sets[sizes >= MIN_GENES]
        _, type_of = np.unique(chosen.cell_type[cells].astype(str), return_inverse=True)
        order = np.argsort(type_of, kind="stable")
        starts = np.searchsorted(type_of[order], np.arange(type_of.max() + 1 if len(cells) else 0))
        n_of = np.bincount(type_of, minlength=len(starts)) if len(cells) else np.zeros(0, np.int64)
        n_pairs = int(_BACKGROUND_PAIRS * len(cells) / max(in_train.sum(), 1))
        first = rng.integers(0, max(len(cells), 1), n_pairs if len(cells) else 0)
        second = order[starts[type_of[first]] + (rng.random(len(first)) * n_of[type_of[first]]).astype(np.int64)]
        apart = first != second
        found.append(jaccard(sets[first[apart]], sets[second[apart]]))
    similarity = np.concatenate([np.zeros(0), *found])
    if not len(similarity):
        return {}
    middle, high = np.quantile(similarity, (0.5, 0.99)).tolist()
    above = float((similarity >= THRESHOLD).mean())
    return {"pairs": len(similarity), "median": middle, "q99": high, "max": float(similarity.max()), "above": above}
