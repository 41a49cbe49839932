"""The is-a relations of the Cell Ontology: how far two cell types are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

from cytoglot.data.knowledge.tables import read_table
from cytoglot.errors import InputError


class OntologyGraph:
    """Terms and their direct parents.

    Parameters
    ----------
    parents
        Term id → ids of its direct parents. A parent without a line of its own has no parents.

    Raises
    ------
    InputError
        A term is its own ancestor.
    """

    def __init__(self, parents: Mapping[str, Sequence[str]]) -> None:
        self._parents = {term: tuple(above) for term, above in parents.items()}
        self._known = frozenset(self._parents) | {p for above in self._parents.values() for p in above}
        self.ancestors = lru_cache(maxsize=8192)(self._climb)
        for term, above in self._parents.items():
            if any(term in self.ancestors(parent) for parent in above):
                raise InputError(
                    f"the ontology has a circle: {term} is an ancestor of itself; mend the table's parents"
                )

    def __contains__(self, term: object) -> bool:
        return term in self._known

    def __len__(self) -> int:
        return len(self._known)

    def lowest_common_ancestors(self, first: str, second: str) -> frozenset[str]:
        """Return the common ancestors of two terms that have no common ancestor below them.

        A term is an ancestor of itself. There may be several, and none between separate trees.
        """
        common = self.ancestors(first).keys() & self.ancestors(second).keys()
        above = {higher for term in common for higher in self.ancestors(term) if higher != term}
        return frozenset(common - above)

    def path_length(self, first: str, second: str) -> int | None:
        """Return the number of is-a steps from one term up to a common ancestor and down to the other, at least.

        The shortest way over all common ancestors; 0 for a term and itself, None without a common ancestor.
        """
        up, down = self.ancestors(first), self.ancestors(second)
        return min((up[term] + down[term] for term in up.keys() & down.keys()), default=None)

    def _climb(self, term: str) -> Mapping[str, int]:
        """Return each ancestor of a term, itself included, with the least number of steps up to it."""
        steps, frontier = {term: 0}, [term]
        while frontier:
            above = [parent for child in frontier for parent in self._parents.get(child, ()) if parent not in steps]
            n_steps = steps[frontier[0]] + 1
            frontier = list(dict.fromkeys(above))
            steps |= dict.fromkeys(frontier, n_steps)
        return steps


def read_ontology(path: str | Path) -> OntologyGraph:
    """Read a table with the columns id and parents (`|` between them), plain or `.gz`; further columns may be there.

    Raises
    ------
    InputError
        The file is missing or damaged, lacks a column, or holds a circle.
    """
    table = read_table(path, ["id", "parents"])
    return OntologyGraph({term: [p for p in above.split("|") if p] for term, above in table.itertuples(index=False)})


@cache
def package_ontology() -> OntologyGraph:
    """Return the part of the Cell Ontology that ships with the package.

    It holds the terms that `map_labels` knows without a further table, and all that stands above them.
    """
    with resources.as_file(resources.files("cytoglot.data.knowledge").joinpath("cell_ontology_parents.tsv")) as path:
        return read_ontology(path)
