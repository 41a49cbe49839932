"""Which matrix of a data set is read: a stated order, each candidate's state decided by test.

Order: the layers that are named for counts, then `raw.X`, then `X`; the first that holds integer counts wins, else the
first that holds log1p or other non-negative values. A matrix in which no cell has two different values (zeros that
fill a slot, a mask) comes after all that rank genes. A layer asked for by name is never replaced by another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cytoglot.data.genes.options import GeneOptions
from cytoglot.data.genes.vocabulary import ResolvedGenes, resolve_genes
from cytoglot.data.normalize import EXPECTED, MatrixState, Names, matrix_state
from cytoglot.data.readers.cell_rows import cell_rows
from cytoglot.errors import InputError, UnknownNameError

logger = logging.getLogger(__name__)

#: names of layers that hold counts, best first, compared in lower case.
COUNT_LAYERS = ("counts", "count", "raw_counts", "raw_count", "counts_raw", "umi", "umis", "umi_counts", "umi_count")

_SAMPLE_RUNS, _SAMPLE_RUN = 32, 64


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A matrix that may be read, and the genes of its columns."""

    source: str
    """`X`, `raw.X` or `layers['counts']`"""
    matrix: Any
    var: pd.DataFrame
    is_read: bool = False
    """whether `read` made `var`, whose index then holds the names of genes that were chosen there"""

    @property
    def option(self) -> str:
        """What to pass as `layer=` to get it."""
        return {"X": "X", "raw.X": "raw"}.get(self.source, self.source[len("layers['") : -len("']")])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the test of one candidate found: a state, or the fault that keeps it from being read."""

    state: MatrixState | None
    fault: str = ""

    @property
    def words(self) -> str:
        """State or fault in words."""
        return self.fault if self.state is None else self.state.description

    @property
    def usable(self) -> bool:
        """Whether the matrix can be ranked."""
        return self.state is not None and self.state.kind != "signed"

    @property
    def is_counts(self) -> bool:
        """Whether the matrix holds integer counts."""
        return self.state is not None and self.state.kind == "counts"

    @property
    def ranks(self) -> bool:
        """Whether the matrix can be ranked and puts genes in an order: some cell has two different values."""
        return self.state is not None and self.usable and not self.state.is_flat


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The matrix to be read and the gene of each of its columns."""

    candidate: Candidate
    state: MatrixState
    genes: ResolvedGenes
    message: str


def select(
    candidates: Sequence[Candidate],
    cell_names: Names,
    *,
    layer: str | None,
    genes: GeneOptions,
    known: dict[str, Verdict] | None = None,
) -> Selection:
    """Choose the matrix and resolve its genes; `known` holds verdicts that were made already.

    A matrix is tested on up to 2,048 cells in 32 evenly spaced runs; nothing is changed or copied. `layer` is "X",
    "raw" or the name of a layer; a layer that is itself called "X" or "raw" can only be had by another name. Values
    that are not counts cannot be summed over duplicated columns (the sum of logs is no log of a sum), so `sum` becomes
    `first` for them, which the message says. Names of cells need not be unique; they are looked at in messages alone.

    Raises
    ------
    InputError
        No matrix can be used (all are signed, or hold NaN or infinite values): the message says what each was found to
        be. The same for the one asked for with `layer`.
    UnknownNameError
        There is no such layer, or no such column of var.
    """
    chosen, verdict, message = choose(candidates, layer=layer, cell_names=cell_names, known=known)
    assert verdict.state is not None  # choose() returns usable ones only
    policy = "first" if genes.duplicates == "sum" and verdict.state.kind != "counts" else genes.duplicates
    # A second search could take another column than the one that the user named to `read`.
    column = "var_names" if genes.column is None and chosen.is_read else genes.column
    resolved = resolve_genes(chosen.var, gene_column=column, mapping=genes.mapping, duplicates=policy)
    if resolved.report.unknown_features:
        logger.warning("%s", resolved.report.feature_warning)
    message = "; ".join([message, *resolved.report.messages()])
    return Selection(candidate=chosen, state=verdict.state, genes=resolved, message=message)


def check_cell_names(obs: pd.DataFrame) -> None:
    """Raise `InputError` when two cells have the same name: splits and sentences are stored by it."""
    if not obs.index.is_unique:
        twice = obs.index[obs.index.duplicated()].unique()
        raise InputError(
            f"expected unique cell names, found {len(twice)} repeated, such as "
            f"{', '.join(repr(str(n)) for n in twice[:3])}; add the sample's name, or run adata.obs_names_make_unique()"
        )


def candidates_of(adata: AnnData) -> list[Candidate]:
    """Return all matrices of `adata`: layers, `raw.X`, `X`."""
    record = adata.uns.get("cytoglot")
    is_read = isinstance(record, Mapping) and "matrix" in record
    found = [
        Candidate(source=f"layers[{name!r}]", matrix=m, var=adata.var, is_read=is_read)
        for name, m in adata.layers.items()
    ]
    if adata.raw is not None:
        found.append(Candidate(source="raw.X", matrix=adata.raw.X, var=adata.raw.var))
    if adata.X is not None:
        found.append(Candidate(source="X", matrix=adata.X, var=adata.var, is_read=is_read))
    return found


def choose(
    candidates: Sequence[Candidate],
    *,
    layer: str | None,
    cell_names: Names,
    known: dict[str, Verdict] | None = None,
) -> tuple[Candidate, Verdict, str]:
    """Return the candidate to read, its verdict and the message; `known` holds verdicts that were made already."""
    if not candidates:
        raise InputError("expected a matrix of cells × genes, found none: no X, no raw.X and no layer")
    verdicts = known if known is not None else {}

    def verdict(candidate: Candidate) -> Verdict:
        if candidate.source not in verdicts:
            cells = sample_positions(int(candidate.matrix.shape[0]))
            try:
                sample = cell_rows(candidate.matrix).sample(cells)
            except InputError as fault:
                verdicts[candidate.source] = Verdict(state=None, fault=str(fault).removeprefix(EXPECTED))
            else:
                verdicts[candidate.source] = verdict_on(
                    sample, cell_names=_NamesOf(cell_names, cells), gene_names=candidate.var.index
                )
        return verdicts[candidate.source]

    layers = [c for c in candidates if c.source.startswith("layers[")]
    by_source = {c.source: c for c in candidates if c not in layers}
    if layer is not None:
        options = {c.option: c for c in (*layers, *by_source.values())}  # a layer named "X" or "raw" comes second
        layer = "raw" if layer == "raw.X" else layer
        if layer not in options:
            raise UnknownNameError("layer", layer, options)
        asked = options[layer]
        if not verdict(asked).usable:
            raise InputError(_refusal([asked], candidates, verdict))
        return asked, verdict(asked), _message(asked, [], verdict)
    # layers named for counts, raw.X, X; the other layers are read only when asked for
    by_layer = {c.option.lower(): c for c in layers}
    order = [by_layer[name] for name in COUNT_LAYERS if name in by_layer]
    order += [by_source[source] for source in ("raw.X", "X") if source in by_source]
    chosen = next((c for c in order if verdict(c).is_counts and verdict(c).ranks), None)
    chosen = chosen or next((c for c in order if verdict(c).ranks), None)
    if chosen is None and not any(verdict(c).ranks for c in candidates):  # a mask before zeros
        flat = sorted((c for c in order if verdict(c).usable), key=lambda c: verdict(c).words.endswith("all zero"))
        chosen = flat[0] if flat else None
    if chosen is None:
        raise InputError(_refusal(order, candidates, verdict))
    passed_over = [c for c in order if c.source in verdicts and c is not chosen]
    for candidate in passed_over:
        if verdict(candidate).state is None or (verdict(candidate).usable and not verdict(candidate).ranks):
            logger.warning("%s is not read: %s", candidate.source, verdict(candidate).words)
    return chosen, verdict(chosen), _message(chosen, passed_over, verdict)


def verdict_on(matrix: Any, *, cell_names: Names, gene_names: Names) -> Verdict:
    """Test every value of a matrix in memory; faults name the cell and the gene."""
    try:
        return Verdict(state=matrix_state(matrix, cell_names=cell_names, gene_names=gene_names))
    except InputError as fault:
        return Verdict(state=None, fault=str(fault).removeprefix(EXPECTED))


class _NamesOf:
    """Names of chosen cells, looked up when a message needs one: they may lie on disk."""

    def __init__(self, names: Names, cells: NDArray[np.int64]) -> None:
        self._names, self._cells = names, cells

    def __getitem__(self, at: int, /) -> str:
        return str(self._names[int(self._cells[at])])


def sample_positions(n_cells: int) -> NDArray[np.int64]:
    """Return up to 2,048 ascending positions, in 32 evenly spaced runs so that few blocks of a file are read."""
    if n_cells <= _SAMPLE_RUNS * _SAMPLE_RUN:
        return np.arange(n_cells)
    starts = np.linspace(0, n_cells - _SAMPLE_RUN, _SAMPLE_RUNS).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_SAMPLE_RUN))


def _message(chosen: Candidate, passed_over: list[Candidate], verdict: Callable[[Candidate], Verdict]) -> str:
    state = verdict(chosen).state
    n_cells, n_tested = int(chosen.matrix.shape[0]), state.n_cells_checked if state else 0
    tested = "" if n_tested == n_cells else f" (tested on {n_tested:,} of {n_cells:,} cells)"
    others = "; ".join(f"{c.source}: {verdict(c).words}" for c in passed_over)
    return f"read {chosen.source}: {verdict(chosen).words}{tested}" + (f"; passed over {others}" if others else "")


def _refusal(refused: list[Candidate], candidates: Sequence[Candidate], verdict: Callable[[Candidate], Verdict]) -> str:
    """Every matrix looked at, its state, and what to pass instead."""
    found = "; ".join(f"{c.source}: {verdict(c).words}" for c in refused)
    found = found or "no X, no raw.X and no layer named for counts"
    others = [c for c in candidates if c not in refused]
    options = [f"layer={c.option!r} ({verdict(c).words})" for c in others if verdict(c).ranks]
    if options:
        advice = "pass " + " or ".join(options)
    elif any(verdict(c).state is None for c in refused):
        advice = "remove or mend these values, or pass layer= with a matrix without them"
    else:
        advice = (
            "pass a file with counts or log1p values: those from before scaling or centring, in X, in raw or in "
            "layers['counts']"
        )
    return f"expected integer counts, log1p or other non-negative values, found {found}; {advice}"
