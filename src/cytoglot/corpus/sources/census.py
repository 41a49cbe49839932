"""Cells of CELLxGENE Census, or of any SOMA experiment of its layout, as a source of a corpus.

Cells come in the order of `soma_joinid`. The ids of the cells that a query finds are kept in a temporary file, so that
memory is bounded by what is asked for, whatever the size of Census.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cytoglot import extras
from cytoglot.corpus.sources.genes import GeneTables, find_file, renamed
from cytoglot.corpus.sources.metadata import cell_fields, naming
from cytoglot.corpus.sources.recipe import CensusRecipe, SourceRecipe
from cytoglot.data.genes.options import read_gene_mapping
from cytoglot.data.genes.vocabulary import ResolvedGenes, collapse_columns, resolve_genes
from cytoglot.data.normalize import check_values, matrix_state
from cytoglot.data.readers.matrix_choice import sample_positions
from cytoglot.data.schema import COMMON_NAMES
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_file, fingerprint_texts

_BUFFER_BYTES = 1 << 26
"""memory of one read of SOMA, whose default is 1 GB"""
_JOINID = "soma_joinid"
_PRIMARY = "is_primary_data"
_TEST_CELLS = 512
_NAMES = ("feature_id", "var_id")


class CensusSource:
    """An open query of a SOMA experiment; see `CorpusSource`.

    The cells are those that the query finds, primary data alone unless the recipe says otherwise.
    """

    def __init__(self, recipe: SourceRecipe, *, tables: GeneTables, base: Path) -> None:
        """Open the experiment, find the cells and read the gene names.

        Raises
        ------
        InputError
            The experiment or release cannot be opened or lacks what the recipe names, the query is not understood,
            finds nothing, or the genes are of another namespace. The message begins with the name of the source.
        MissingExtraError
            tiledbsoma or, for a release of Census, cellxgene-census is not installed.
        """
        assert recipe.census is not None  # the recipe has either a path or census
        self.name, self._census = recipe.label, recipe.census
        self._stack = ExitStack()
        self._span: tuple[tuple[int, int], pd.DataFrame] | None = None
        with naming(self.name):
            try:
                with _soma_errors():
                    self._open(recipe, tables, base)
            except BaseException:
                self._stack.close()
                raise

    def _open(self, recipe: SourceRecipe, tables: GeneTables, base: Path) -> None:
        experiment, self.path, version = _open_experiment(self._census, recipe.organism, base, self._stack)
        self._obs = experiment.obs
        self._columns = tuple(name for name in self._obs.schema.names if name != _JOINID)
        measurement = _member(experiment.ms, self._census.measurement, "measurement")
        self._x = _member(measurement.X, self._census.layer, "X layer")
        is_primary = recipe.primary_only and _PRIMARY in self._columns
        own = (self._census.value_filter or "").strip()
        primary = f"{_PRIMARY} == True"
        query = (f"{primary} and ({own})" if own else primary) if is_primary else own or None
        wanted = [_JOINID, *(["nnz"] if "nnz" in self._columns else [])]
        # row-major is the order of soma_joinid; without it the order may change from read to read
        found = self._obs.read(value_filter=query, column_names=wanted, result_order="row-major")
        self._ids = self._stack.enter_context(_JoinIds(found))
        self.n_cells = len(self._ids)
        if not self.n_cells:
            raise InputError(f"the query {query!r} finds no cell in {self.path}; mend value_filter")
        self.stamp = ""
        self.fingerprint = fingerprint_texts(
            [version, self._census.measurement, self._census.layer, query or "", str(self.n_cells)]
        )
        self._read_genes(measurement.var, recipe, tables, base)
        unfiltered = recipe.model_copy(update={"primary_only": False}) if is_primary else recipe
        self._fields = cell_fields(unfiltered, self._columns, self._column)

    def _read_genes(self, var: Any, recipe: SourceRecipe, tables: GeneTables, base: Path) -> None:
        table = var.read().concat().to_pandas()
        index = next((name for name in _NAMES if name in table.columns), _JOINID)
        joinids = table[_JOINID].to_numpy(dtype=np.int64)
        mapping = None if recipe.gene_mapping is None else read_gene_mapping(find_file(recipe.gene_mapping, base))
        named = table.set_index(index).drop(columns=[_JOINID], errors="ignore")
        self._gene_names = [str(name) for name in named.index]
        self._column_of = np.full(int(joinids.max(initial=-1)) + 1, -1, dtype=np.int64)
        self._column_of[joinids] = np.arange(joinids.size)
        # Up to 512 cells in about eight places.
        cells = sample_positions(self.n_cells)
        runs = np.array_split(cells, max(1, len(cells) // 64))
        wanted = np.concatenate(runs[:: max(1, len(runs) * 64 // _TEST_CELLS)])[:_TEST_CELLS]
        sampled = np.array([int(self._ids.span(int(i), int(i) + 1)[0]) for i in wanted], dtype=np.int64)
        sample = self._raw(sampled, joinids.size)
        # not X.nnz, which may go through all of X
        self.n_values = self._ids.n_values or round(sample.nnz * self.n_cells / sample.shape[0])
        state = matrix_state(sample)
        if state.kind == "signed":
            raise InputError(
                f"expected counts or log1p values, found {state.description}; set census.layer to another X layer"
            )
        policy: Any = "sum" if state.kind == "counts" else "first"
        genes = resolve_genes(named, gene_column=recipe.gene_column, mapping=mapping, duplicates=policy)
        harmonized = tables.harmonized(genes.vocabulary.symbols, organism=recipe.organism)
        self._genes: ResolvedGenes = renamed(genes, harmonized, can_sum=state.kind == "counts")
        self.symbols = self._genes.vocabulary.symbols
        self.is_counts = state.kind == "counts"
        what = f"read X[{self._census.layer!r}] of {self.path}: {state.description}"
        self.messages = (what, *genes.report.messages(), *harmonized.report.messages())

    def metadata(self, first: int, last: int) -> pd.DataFrame:
        """Read the canonical fields of the cells `first:last`."""
        with naming(self.name), _soma_errors():
            return self._fields.metadata(first, min(last, self.n_cells))

    def cell_ids(self, first: int, last: int) -> NDArray[np.object_]:
        """Return the names of the cells `first:last`: `obs_id` where there is one, else the `soma_joinid`."""
        with naming(self.name), _soma_errors():
            joinids = self._ids.span(first, min(last, self.n_cells))
            if "obs_id" not in self._columns:
                return np.array([str(i) for i in joinids.tolist()], dtype=object)
            return np.array([str(i) for i in self._read_obs(joinids, ["obs_id"])["obs_id"]], dtype=object)

    def kept(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return which of the cells `first:last` `keep` wants; others than primary data are not found at all."""
        with naming(self.name), _soma_errors():
            return self._fields.kept(first, min(last, self.n_cells))

    def blocks(self, first: int, last: int, chunk_cells: int) -> Iterator[sparse.csr_matrix]:
        """Yield the values of the cells `first:last`, `chunk_cells` at a time."""
        last = min(last, self.n_cells)
        for start in range(first, last, chunk_cells):
            with naming(self.name), _soma_errors():
                joinids = self._ids.span(start, min(start + chunk_cells, last))
                block = self._raw(joinids, self._genes.column_gene.size)
                names = [str(i) for i in joinids.tolist()]
                check_values(block, cell_names=names, gene_names=self._gene_names, what=self._census.layer)
                collapsed = collapse_columns(block, self._genes.column_gene, len(self.symbols))
                del block
            yield collapsed

    def close(self) -> None:
        """Close the experiment and delete the temporary file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _raw(self, joinids: NDArray[np.int64], n_columns: int) -> sparse.csr_matrix:
        """The cells of these ids (ascending) over the columns of the experiment."""
        rows, columns, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for table in self._x.read((_coordinates(joinids), slice(None))).tables():
            rows.append(np.searchsorted(joinids, table["soma_dim_0"].to_numpy()))
            columns.append(self._column_of[table["soma_dim_1"].to_numpy()])
            values.append(table["soma_data"].to_numpy())
        coordinates = (np.concatenate(rows), np.concatenate(columns))
        data = np.concatenate(values[1:]) if len(values) > 1 else values[0]
        return sparse.csr_matrix((data, coordinates), shape=(joinids.size, n_columns))

    def _column(self, name: str, first: int, last: int) -> pd.Series:
        """A column of a span; the other columns that are asked for with it are read in the same query."""
        if first == last:
            return pd.Series(dtype=object)
        if self._span is None or self._span[0] != (first, last) or name not in self._span[1]:
            fields = [*self._fields.columns.values(), *self._fields.keep, name]
            found = self._read_obs(self._ids.span(first, last), list(dict.fromkeys(fields)))
            self._span = ((first, last), found)
        return self._span[1][name]

    def _read_obs(self, joinids: NDArray[np.int64], columns: list[str]) -> pd.DataFrame:
        wanted = list(dict.fromkeys([_JOINID, *columns]))
        table = self._obs.read(coords=(_coordinates(joinids),), column_names=wanted, result_order="row-major").concat()
        frame = table.to_pandas().reset_index(drop=True)
        if not np.array_equal(frame[_JOINID].to_numpy(), joinids):
            raise InputError(f"{self.path} lacks cells that it had a moment ago; do not change it while it is read")
        return frame


class _JoinIds:
    """The ids of the cells that were found, ascending, in a temporary file."""

    def __init__(self, tables: Iterable[Any]) -> None:
        """Write the ids of the tables; a sum of their column `nnz` is kept too."""
        self._file = tempfile.TemporaryFile(prefix="cytoglot-")  # noqa: SIM115  (open until the context ends)
        self._n_cells, self.n_values, last = 0, 0, -1
        try:
            for table in tables:
                ids = table[_JOINID].to_numpy().astype(np.int64)
                if ids.size and not (ids[0] > last and bool((np.diff(ids) > 0).all())):
                    raise InputError("the experiment gives its cells in no order; open it with a newer tiledbsoma")
                self._file.write(ids.tobytes())
                self._n_cells, last = self._n_cells + ids.size, int(ids[-1]) if ids.size else last
                self.n_values += int(table["nnz"].to_numpy().sum()) if "nnz" in table.column_names else 0
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return self._n_cells

    def span(self, first: int, last: int) -> NDArray[np.int64]:
        """Read the ids of the cells `first:last`."""
        self._file.seek(8 * first)
        return np.frombuffer(self._file.read(8 * (last - first)), dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _open_experiment(recipe: CensusRecipe, organism: str, base: Path, stack: ExitStack) -> tuple[Any, str, str]:
    """Return the experiment, where it lies, and what tells its content apart."""
    soma = extras.require("tiledbsoma", extra="census", purpose="reading a SOMA experiment")
    config = {"soma.init_buffer_bytes": _BUFFER_BYTES}
    if recipe.uri is not None:
        local = find_file(recipe.uri, base)
        uri = str(local) if local.exists() else recipe.uri
        found = stack.enter_context(soma.open(uri, context=soma.SOMATileDBContext(tiledb_config=config)))
        version = fingerprint_file(local) if local.exists() else uri
    else:
        census = extras.require("cellxgene_census", extra="census", purpose="CELLxGENE Census")
        # `stable` is another release next year: the fingerprint goes by the build
        version = str(census.get_census_version_description(recipe.version)["release_build"])
        uri = f"CELLxGENE Census {version}"
        found = stack.enter_context(census.open_soma(census_version=version, tiledb_config=config))
    if isinstance(found, soma.Experiment):
        return found, uri, version
    latin = next((latin for latin, common in COMMON_NAMES.items() if common == organism), organism)
    species = (recipe.organism or latin).lower().replace(" ", "_")
    return _member(_member(found, "census_data", "collection"), species, "organism"), uri, f"{version} {species}"


def _member(collection: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in collection:
        raise UnknownNameError(what, name, list(collection.keys()))
    return collection[name]


def _coordinates(joinids: NDArray[np.int64]) -> Any:
    """Neighboring ids as a range, which is read faster than a list of points."""
    if joinids.size and int(joinids[-1]) - int(joinids[0]) == joinids.size - 1:
        return slice(int(joinids[0]), int(joinids[-1]))  # SOMA's ranges hold their end
    return joinids


@contextmanager
def _soma_errors() -> Iterator[None]:
    """Turn what SOMA raises about a missing release, a faulty query or a damaged folder into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the errors of SOMA have no other base
        soma = extras.require("tiledbsoma", extra="census", purpose="reading a SOMA experiment")
        kinds = (soma.SOMAError, OSError, RuntimeError, ValueError)
        if not isinstance(error, kinds) or isinstance(error, PermissionError):
            raise
        first_line = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"the SOMA experiment cannot be read ({type(error).__name__}: {first_line}); check version, uri and "
            "value_filter, and the network"
        ) from error
