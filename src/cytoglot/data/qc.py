"""Quality control: which cells and genes are kept, and what each step removed."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from cytoglot.config import Settings
from cytoglot.data.normalize import MatrixState, matrix_state
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


class QcSettings(Settings):
    """Thresholds of the quality control; None switches a step off."""

    min_genes: int | None = Field(200, ge=0)
    """cells with fewer expressed genes are removed"""
    max_genes: int | None = Field(6000, ge=1)
    """cells with more expressed genes are removed: often two cells in one droplet"""
    max_mito_share: float | None = Field(0.5, ge=0, le=1)
    """cells with a larger share of mitochondrial counts are removed: often dying"""
    min_cells: int | None = Field(3, ge=0)
    """genes expressed in fewer of the cells kept are removed"""
    mito_prefixes: tuple[str, ...] = ("MT-", "mt-")
    """gene names that begin with one of these are mitochondrial"""


@dataclass(frozen=True, kw_only=True)
class QcStep:
    """What one threshold removed."""

    name: str
    threshold: float | None
    removed_cells: int = 0
    removed_genes: int = 0
    kept_cells: int
    kept_genes: int
    note: str = ""
    """why the step was skipped, or how it measured"""


@dataclass(frozen=True, kw_only=True)
class QcReport:
    """The steps in the order in which they were taken."""

    n_cells: int
    n_genes: int
    steps: tuple[QcStep, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def messages(self) -> list[str]:
        """Return one line per step."""
        return [_describe(step) for step in self.steps]


def quality_control(adata: AnnData, settings: QcSettings | None = None) -> tuple[AnnData, QcReport]:
    """Return a copy of `adata` with the cells and genes that pass, and the report of what each step removed.

    The default thresholds are those of the field and of the Cell2Sentence papers: cells with fewer than 200 or more
    than 6,000 expressed genes or over 50 % mitochondrial counts, then genes in fewer than 3 of the remaining cells.
    Where we differ: all cell steps look at all genes and come first, so the result does not depend on the order of the
    steps and each gene kept is in at least `min_cells` cells kept.

    Counts, log1p and other non-negative values in `adata.X` are welcome: genes are expressed where > 0. The
    mitochondrial share of log values is that of the values before the log; it is skipped, with a note, when the base is
    not known or no gene is mitochondrial by name. A cell without any count has share 0. `adata` is not changed; a
    backed one is read into memory.

    Raises
    ------
    InputError
        The matrix has negative or scaled values, NaN or infinity, or no cell or no gene passes.
    """
    settings = settings or QcSettings()
    adata = adata.to_memory() if adata.isbacked else adata
    state = matrix_state(adata.X, cell_names=adata.obs_names, gene_names=adata.var_names)
    if state.kind == "signed":
        raise InputError(
            f"quality control needs counts or log values, found {state.description} in adata.X; "
            "pass counts, for example adata.layers['counts'] or adata.raw.to_adata()"
        )
    matrix_ng = sparse.csr_matrix(adata.X)
    n_expressed = np.asarray((matrix_ng > 0).sum(axis=1)).ravel()
    mito, mito_note = _mito(matrix_ng, adata.var_names.astype(str), state, settings)
    inside = {
        "min_genes": None if settings.min_genes is None else n_expressed >= settings.min_genes,
        "max_genes": None if settings.max_genes is None else n_expressed <= settings.max_genes,
        "max_mito_share": None if mito is None else mito <= (settings.max_mito_share or 0.0),
    }
    keep_cells, steps = np.ones(adata.n_obs, dtype=bool), []
    for name, passes in inside.items():
        before = int(keep_cells.sum())
        keep_cells = keep_cells if passes is None else keep_cells & passes
        note = mito_note if name == "max_mito_share" else ""
        steps.append(
            QcStep(
                name=name,
                threshold=getattr(settings, name),
                removed_cells=before - int(keep_cells.sum()),
                kept_cells=int(keep_cells.sum()),
                kept_genes=adata.n_vars,
                note="switched off" if getattr(settings, name) is None else note,
            )
        )
    _check_left(int(keep_cells.sum()), "cell", steps, adata.n_obs)
    in_cells = np.asarray((matrix_ng[keep_cells] > 0).sum(axis=0)).ravel()
    keep_genes = in_cells >= (settings.min_cells or 0)
    steps.append(
        QcStep(
            name="min_cells",
            threshold=settings.min_cells,
            removed_genes=int((~keep_genes).sum()),
            kept_cells=int(keep_cells.sum()),
            kept_genes=int(keep_genes.sum()),
            note="switched off" if settings.min_cells is None else "",
        )
    )
    _check_left(int(keep_genes.sum()), "gene", steps, adata.n_vars)
    report = QcReport(n_cells=adata.n_obs, n_genes=adata.n_vars, steps=tuple(steps))
    for message in report.messages():
        logger.info(message)
    return adata[keep_cells, keep_genes].copy(), report


def mito_share(matrix_ng: sparse.csr_matrix, is_mito_g: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of each cell's counts (or values) in mitochondrial genes, 0 for a cell without any."""
    total_n = np.asarray(matrix_ng.sum(axis=1), dtype=np.float64).ravel()
    mito_n = np.asarray(matrix_ng[:, is_mito_g].sum(axis=1), dtype=np.float64).ravel()
    return np.divide(mito_n, total_n, out=np.zeros_like(total_n), where=total_n > 0)


def _mito(
    matrix_ng: sparse.csr_matrix, genes: Any, state: MatrixState, settings: QcSettings
) -> tuple[NDArray[np.float64] | None, str]:
    if settings.max_mito_share is None:
        return None, ""
    is_mito = np.array([str(gene).startswith(settings.mito_prefixes) for gene in genes], dtype=bool)
    if not is_mito.any():
        return None, f"skipped: no gene name begins with {' or '.join(settings.mito_prefixes)}"
    if state.kind != "log1p":
        return mito_share(matrix_ng, is_mito), f"{int(is_mito.sum())} mitochondrial genes"
    if state.log_base is None:
        return None, "skipped: the base of the log values is not known"
    linear = matrix_ng.astype(np.float64)
    linear.data = np.expm1(linear.data * math.log(state.log_base))
    return mito_share(linear, is_mito), f"{int(is_mito.sum())} mitochondrial genes, values taken out of the log"


def _check_left(n_left: int, what: str, steps: list[QcStep], n_before: int) -> None:
    if n_left == 0:
        told = "; ".join(_describe(step) for step in steps)
        raise InputError(f"quality control left none of {n_before} {what}s ({told}); loosen the thresholds")


def _describe(step: QcStep) -> str:
    if step.threshold is None or step.note.startswith("skipped"):
        return f"{step.name}: {step.note}"
    removed = f"{step.removed_genes} genes" if step.name == "min_cells" else f"{step.removed_cells} cells"
    text = f"{step.name} {step.threshold:g}: removed {removed}, kept {step.kept_cells} cells x {step.kept_genes} genes"
    return text + (f" ({step.note})" if step.note else "")
