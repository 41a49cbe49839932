"""In what state a matrix is, decided by test; and from counts or logs to log-normalized values.

Axes: n cells, g genes. Matrices are cells × genes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.data.plain_matrix import is_sparse, plain_matrix
from cytoglot.errors import InputError

StateKind = Literal["counts", "log1p", "nonnegative", "signed"]

EXPECTED = "expected finite, non-negative values, "
"""how the message about a faulty value starts"""

_BLOCK = 1 << 22
"""values looked at in one go, so that a check never makes a copy of the matrix"""
_SCALE_CELLS = 400
"""cells, evenly spaced, on which the scale of non-integers is decided"""
_BASES = (None, math.e, 10.0, 2.0)
_BASE_NAMES = {math.e: "natural", 10.0: "base 10", 2.0: "base 2"}


class Names(Protocol):
    """Names by position: a list, an index, or names that are read from a file when a message needs one."""

    def __getitem__(self, at: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class MatrixState:
    """What the values of a matrix are. The ranking of a cell's genes is the same for counts and for their logs."""

    kind: StateKind
    log_base: float | None = None
    """base b where the values are log_b(1 + x), else None"""
    target_sum: float | None = None
    """sum of each cell before the logarithm where it is constant; None where it is not, as after a choice of genes"""
    n_cells_checked: int = 0
    is_flat: bool = False
    """whether no cell has two different values above 0 (all zero, a mask, a constant): it ranks nothing"""
    note: str = ""
    """more about the values, for `description`"""

    @property
    def description(self) -> str:
        """State in words: `log1p (natural), likely target sum 10,000`."""
        kind = {
            "counts": "integer counts",
            "log1p": f"log1p ({_BASE_NAMES.get(self.log_base or 0, f'base {self.log_base}')})",
            "nonnegative": "non-negative values",
            "signed": "signed values (scaled, centred or differences)",
        }[self.kind]
        target = ""
        if self.target_sum is not None:
            target = f"{'likely target sum' if self.kind == 'log1p' else 'each cell sums to'} {self.target_sum:,.10g}"
        return ", ".join(part for part in (kind, target, self.note) if part)


def matrix_state(matrix: Any, *, cell_names: Names | None = None, gene_names: Names | None = None) -> MatrixState:
    """Test whether `matrix` holds integer counts, log1p values, other non-negative values or signed ones.

    Sparse (any format) or dense, any integer, float or boolean type; not changed and not copied. Signs, NaN and whole
    numbers are tested on every value. The scale of values that are not whole is tested on up to 400 cells, evenly
    spaced: the base (e, 10 or 2) is the one for which b**x − 1 sums to the same total in every cell (within 0.1 %, for
    99 % of the cells), or, as genes may have been chosen after normalizing, is a whole multiple of one unit per cell
    (at least 80 % of the distinct values; a wrong base reaches about 10 %). A matrix of zeros, or without cells, counts
    as counts.

    Raises
    ------
    InputError
        A value is NaN or infinite; the message names the cell and the gene (by position without the names).
    """
    matrix = plain_matrix(matrix)
    n_cells = int(matrix.shape[0])
    lows, highs, whole = [0.0], [0.0], True  # 0 where nothing is stored; NaN if any value is
    for block in _values(matrix):
        if block.size:
            lows.append(float(block.min()))
            highs.append(float(block.max()))
            if whole and block.dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    whole = bool(np.array_equal(block, np.rint(block)))
    low, high = float(np.min(lows)), float(np.max(highs))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(_fault_message(matrix, cell_names, gene_names, negative=False))
    if low < 0:
        note = _fault_message(matrix, cell_names, gene_names, negative=True)
        note = note.removeprefix(EXPECTED)
        return MatrixState(kind="signed", n_cells_checked=n_cells, note=("whole numbers, " if whole else "") + note)
    parts = (matrix[start : start + _SCALE_CELLS] for start in range(0, n_cells, _SCALE_CELLS))
    # most matrices end this in their first cells
    is_flat = high == 0 or all(x.min() == x.max() for part in parts for x in _positive_values(part))
    if whole:
        note = "all zero" if high == 0 else "no value above 1" if high == 1 else ""
        note = note or ("every value of a cell the same" if is_flat else "")
        return MatrixState(kind="counts", n_cells_checked=n_cells, is_flat=is_flat, note=note)
    base, target, note = _scale(matrix)
    kind: StateKind = "nonnegative" if base is None else "log1p"
    note = "every value of a cell the same" if is_flat else note
    return MatrixState(kind=kind, log_base=base, target_sum=target, n_cells_checked=n_cells, is_flat=is_flat, note=note)


def check_values(
    matrix: Any,
    *,
    cell_names: Names | None = None,
    gene_names: Names | None = None,
    what: str = "the matrix",
) -> None:
    """Raise `InputError` naming the first cell and gene of a value that is NaN, infinite or negative."""
    matrix = plain_matrix(matrix)
    if matrix.dtype.kind in "bu":
        return
    if all(block.min() >= 0 and block.max() < np.inf for block in _values(matrix) if block.size):  # NaN fails both
        return
    raise InputError(f"{_fault_message(matrix, cell_names, gene_names, negative=None)} of {what}")


def normalize_log(matrix_ng: Any, *, target_sum: float = 1e4, base: float = 10.0) -> sparse.csr_matrix:
    """Return log_base(1 + counts · target_sum / total of the cell) as a new CSR float32; cells of total 0 stay 0.

    Base 10 and 10⁴ are the scale of the Cell2Sentence papers :cite:p:`levine2024cell2sentence`; scanpy's is base e.
    Linear values that are not whole (expected counts, averages) are accepted as well as counts. Stored zeros are
    dropped.

    Raises
    ------
    InputError
        A value is NaN, infinite or negative.
    """
    check_values(matrix_ng)
    csr = sparse.csr_matrix(plain_matrix(matrix_ng), dtype=np.float32, copy=True)
    totals = np.asarray(csr.sum(axis=1, dtype=np.float64)).ravel()
    factor = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    return _log_scaled(csr, factor, base)


def log_normalize(
    matrix: Any, state: MatrixState, *, target_sum: float = 1e4, base: float = math.e
) -> sparse.csr_matrix:
    """Return log_base(1 + x) with cells of sum `target_sum`, from counts, linear values or log1p, as a new CSR float32.

    Log values are brought to `base`, and to `target_sum` where their own is known; after a choice of genes it is not,
    and their scale is kept. Non-negative values of unknown scale are taken as linear.

    Raises
    ------
    InputError
        `state` is signed, or a value is NaN, infinite or negative.
    """
    if state.kind == "signed":
        raise InputError(
            f"expected counts or log1p values, found {state.description}; pass the layer that holds counts or logs"
        )
    if state.kind != "log1p":
        return normalize_log(matrix, target_sum=target_sum, base=base)
    check_values(matrix)
    csr = sparse.csr_matrix(plain_matrix(matrix), dtype=np.float32, copy=True)
    csr.data = np.expm1(csr.data * np.float32(math.log(state.log_base or math.e)))
    scale = 1.0 if state.target_sum is None else target_sum / state.target_sum
    return _log_scaled(csr, np.full(csr.shape[0], scale), base)


def _values(matrix: Any) -> Iterator[NDArray]:
    """The stored values in blocks of at most about 4 million."""
    if is_sparse(matrix):
        for start in range(0, matrix.data.size, _BLOCK):
            yield matrix.data[start : start + _BLOCK]
    else:
        n_rows = max(1, _BLOCK // max(1, matrix.shape[1]))
        for start in range(0, matrix.shape[0], n_rows):
            yield matrix[start : start + n_rows].ravel()


def _fault_message(matrix: Any, cell_names: Names | None, gene_names: Names | None, *, negative: bool | None) -> str:
    """Words for the first value that is not finite (`negative` False), is negative (True), or either (None)."""
    csr = matrix if not is_sparse(matrix) or matrix.format == "csr" else matrix.tocsr()
    for start in range(0, csr.shape[0], 1000):
        block = csr[start : start + 1000]
        coo = block.tocoo() if is_sparse(block) else None
        values = coo.data if coo is not None else block.ravel()
        faulty = ~np.isfinite(values) if negative is False else values < 0 if negative else ~(values >= 0)
        if negative is None:
            faulty |= np.isinf(values)
        if faulty.any():
            at = int(np.flatnonzero(faulty)[0])
            row, column = (coo.row[at], coo.col[at]) if coo is not None else divmod(at, block.shape[1])
            named = (("cell", start + int(row), cell_names), ("gene", int(column), gene_names))
            where = (f"{w} {i}" if names is None else f"{w} {str(names[i])!r} (number {i})" for w, i, names in named)
            return f"{EXPECTED}found {values[at]:g} in {', '.join(where)}"
    return EXPECTED  # unreachable: called only when a fault was seen


def _scale(matrix: Any) -> tuple[float | None, float | None, str]:
    """Log base (None: none), likely target sum (None: not constant) and a note, for values that are not all whole."""
    n_cells = matrix.shape[0]
    rows = np.unique(np.linspace(0, n_cells - 1, min(n_cells, _SCALE_CELLS)).astype(np.int64))
    cells = _positive_values(matrix[rows])
    largest = max((x.max() for x in cells), default=0.0)
    bases = [base for base in _BASES if base is None or largest < 50]  # e^50 is no expression value
    telling = [x for x in cells if x.size >= 5]  # cells of a few values agree by chance
    if len(telling) >= 3:
        # the base for which the cells' totals agree best, if they agree for any
        best, best_spread, best_total = None, 1e-3, None
        for base in bases:
            totals = np.array([_linear(x, base).sum() for x in telling])
            middle = float(np.median(totals))
            spread = float(np.quantile(np.abs(totals - middle), 0.99) / middle)
            if spread < best_spread:
                best, best_spread, best_total = base, spread, middle
        if best_total is not None:
            return best, float(f"{best_total:.4g}"), ""
    # else the first for which most values of a cell are whole multiples of a unit
    for base in bases:  # no logarithm first: 2**n - 1 of whole numbers n is whole as well
        near = [_whole_ratios(_linear(x, base)) for x in cells]
        n_ratios = sum(n for _, n in near)
        if n_ratios >= 20 and sum(n_whole for n_whole, _ in near) > 0.8 * n_ratios:
            return (
                base,
                None,
                "multiples of a unit in each cell" if base is None else "scaled to an unknown total",
            )
    return None, None, "neither counts nor log1p of normalized counts" if largest < 50 else ""


def _positive_values(matrix: Any) -> list[NDArray[np.float64]]:
    """The values above 0 of each cell that has any."""
    csr = sparse.csr_matrix(matrix)
    cells = np.split(csr.data.astype(np.float64), csr.indptr[1:-1])
    return [x[x > 0] for x in cells if (x > 0).any()]


def _linear(x: NDArray[np.float64], base: float | None) -> NDArray[np.float64]:
    return x if base is None else np.expm1(x * math.log(base))


def _whole_ratios(y: NDArray[np.float64]) -> tuple[int, int]:
    """How many of the distinct ratios to the cell's unit are whole, and how many were looked at.

    The unit is the smallest value, or a half or third of it: the smallest count of a cell of few genes may be 2 or 3.
    Ratios above 100 are left out, because float32 logs do not keep them apart.
    """
    ratios = np.unique(np.round(y / y.min(), 3))
    ratios = ratios[(ratios > 1.2) & (ratios < 100)]
    whole = [int((np.abs(ratios * d - np.rint(ratios * d)) < 0.02).sum()) for d in (1, 2, 3)]
    return max(whole), int(ratios.size)


def _log_scaled(csr: sparse.csr_matrix, factor_n: NDArray[np.float64], base: float) -> sparse.csr_matrix:
    """log_base(1 + row · factor), in the memory of `csr`, which must be the caller's own."""
    csr.data *= np.repeat(factor_n.astype(np.float32), np.diff(csr.indptr))
    np.log1p(csr.data, out=csr.data)
    csr.data /= np.float32(math.log(base))
    csr.eliminate_zeros()
    return csr
