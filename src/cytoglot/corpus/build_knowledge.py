"""What a corpus holds beside cells: gene sets, cell types, orthologs, and the curve from rank to expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytoglot.corpus.build_plan import BuildPlan
from cytoglot.corpus.build_spans import curve_cells, spill_of
from cytoglot.corpus.folder import CorpusDescription
from cytoglot.errors import InputError
from cytoglot.sentence.rank_curve import DEFAULT_CURVE, CurveFitter


def write_knowledge(plan: BuildPlan, description: CorpusDescription, out: Path) -> None:
    """Write the tables that the recipe asks for."""


def fit_curve_of_sample(plan: BuildPlan, work: Path) -> dict[str, Any] | None:
    """Return the curve from rank to expression, fitted on the sampled training cells; None where no source has counts.

    Spans are read in order, twice, so the curve does not depend on who ranked them.
    """
    fitter = CurveFitter([DEFAULT_CURVE], plan.vocabulary, seed=plan.seed)
    for reading in range(2):
        for number in range(len(plan.spans)):
            found = curve_cells(spill_of(work, number), plan, number)
            if found is not None and len(found[0].gene_ids):
                fitter.add(*found)
        if fitter.n_words == 0:
            return None
        if reading == 0 and fitter.needs_second_reading:
            fitter.start_second_reading()
        else:
            break
    try:
        return fitter.curves()[DEFAULT_CURVE].to_dict()
    except InputError:
        return None
