"""How much of the expression its order holds: rank curves fitted on training cells, judged on cells they never saw."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cytoglot.applications.reconstruction_passes import FittedCurves, Passes
from cytoglot.applications.reconstruction_plots import draw_log_rank, draw_reconstructed
from cytoglot.atomic import write_json
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.stream import open_cells
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import split_cells
from cytoglot.manifest import Manifest, fingerprint_texts
from cytoglot.sentence.cell_sentence import RankSettings, TieRule
from cytoglot.sentence.curve_score import CurveScore
from cytoglot.sentence.rank_curve import CURVE_KINDS, CurveKind

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

#: Training, validation and held-out cells: the curves have nothing that validation cells would choose.
_FRACTIONS = (0.8, 0.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """Curves, scores and plots of one data set."""

    curves: list[CurveScore]
    """a row for each of held-out and training cells, full and HVG sentences, curve and scope"""
    fitted: list[FittedCurves]
    points: dict[str, pd.DataFrame]
    """a sample of held-out words, by sentences ("full", "hvg")"""
    split: Split
    manifest: Manifest

    def to_dict(self) -> dict[str, Any]:
        """Return what `curves.json` holds, plain JSON values."""
        return {
            "curves": self.curves,
            "split": {
                "by": self.split.by,
                "n_train": len(self.split.train),
                "n_held_out": len(self.split.test),
                "warnings": list(self.split.warnings),
            },
            "genes": {f.sentences.name: len(f.sentences.vocabulary) for f in self.fitted},
            "manifest": self.manifest.to_dict(),
        }

    def write(self, folder: str | Path) -> None:
        """Write `curves.json`, `rank_curves.json`, `log_rank_expression.png` and `reconstructed.png`.

        `rank_curves.json` holds, by sentences, the genes and every curve, to be read by `rank_curve_from_dict`.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        folder = Path(folder)
        draw_log_rank(
            self.points, {f.sentences.name: f.curves for f in self.fitted}, folder / "log_rank_expression.png"
        )
        draw_reconstructed(self.points, self.curves, folder / "reconstructed.png")
        stored = {
            fitted.sentences.name: {
                "vocabulary": fitted.sentences.vocabulary.to_dict(),
                "curves": {kind: curve.to_dict() for kind, curve in fitted.curves.items()},
            }
            for fitted in self.fitted
        }
        write_json(folder / "rank_curves.json", stored)
        write_json(folder / "curves.json", self.to_dict())


def reconstruct(
    source: AnnData | str | Path,
    *,
    hvg: int | None = None,
    out: str | Path | None = None,
    label: str | None = None,
    split_by: str = "auto",
    split: Split | None = None,
    ties: TieRule = RankSettings.ties,
    kinds: Sequence[CurveKind] = CURVE_KINDS,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    seed: int = 0,
    chunk_cells: int = 1024,
) -> ReconstructionResult:
    """Return rank curves of several kinds and how well each gives the expression back.

    Expression is log10(1 + counts per 10,000), over all genes whatever the sentences hold. Curves, highly variable
    genes and tie rates see training cells alone; every curve is scored on those and on the held-out cells. The data
    are read chunk by chunk, so memory is bounded by the chunk.

    Parameters
    ----------
    source
        AnnData, which is not changed, or what `cytoglot.read` takes.
    hvg
        Judge sentences of this many highly variable genes as well as full ones.
    out
        Folder for `curves.json`, `rank_curves.json` and two plots; None writes nothing.
    label, split_by
        As in `split_cells`: a fifth of the cells, or of the groups, is held out.
    split
        Take this split, leaving its validation cells out, instead of making one.
    ties
        Tie rule of the sentences.
    kinds
        Curves to fit.
    layer, gene_options
        Which matrix is read, and how its columns become genes.
    seed
        Of the split.
    chunk_cells
        Cells in memory at a time.

    Raises
    ------
    InputError
        The source cannot be read, the split cannot be made, or one of its sides is empty.
    MissingExtraError
        scanpy (`hvg`) or matplotlib (`out`) is not installed.

    Examples
    --------
    >>> import cytoglot as cg
    >>> from cytoglot.data.synthetic import make_cells
    >>> result = cg.reconstruct(make_cells(n_cells=80, n_genes=60, seed=0), kinds=["line", "isotonic"])
    >>> sorted({row["curve"] for row in result.curves})
    ['isotonic', 'line']
    """
    started = time.perf_counter()
    settings = RankSettings(ties=ties, seed=seed)
    keywords = gene_options.keywords
    with open_cells(source, layer=layer, **keywords) as stream:
        if split is None:
            split = split_cells(stream.obs, by=split_by, label=label, fractions=_FRACTIONS, seed=seed)
            for warning in split.warnings:
                logger.warning("%s", warning)
        passes = Passes(stream, split, seed=seed, chunk_cells=chunk_cells)
        fitted = passes.fit(kinds, passes.sentence_kinds(hvg=hvg, settings=settings))
        rows, points = passes.score(fitted)
        inputs = {
            "source": str(source) if isinstance(source, (str, Path)) else "AnnData",
            "matrix": f"{stream.source}: {stream.state.description}",
            "vocabulary": stream.vocabulary.fingerprint,
            "cells": fingerprint_texts(str(name) for name in stream.obs.index),
        }
    config = {**settings.to_dict(), "hvg": hvg, "split_by": split.by, "label": label, "curves": list(kinds)}
    config |= {"layer": layer, **gene_options.to_dict()}
    manifest = Manifest(command="reconstruct", config=config, seeds={"seed": seed}, inputs=inputs)
    result = ReconstructionResult(curves=rows, fitted=fitted, points=points, split=split, manifest=manifest)
    if out is not None:
        result.write(out)
    logger.info(
        "fitted and judged %d curves in %.1f s", sum(len(f.curves) for f in fitted), time.perf_counter() - started
    )
    return result
