"""Train, annotate, embed, generate, evaluate and report on real data that ships inside a dependency."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cytoglot.cli.output import refuse_existing, table
from cytoglot.errors import InputError

logger = logging.getLogger(__name__)

DATASET, LABEL = "pbmc68k_reduced", "bulk_labels"


def run_demo(
    output: Path, *, overwrite: bool, device: str, threads: int | None, seed: int, as_json: bool
) -> dict[str, Any]:
    """Run the demo into `output` and return the results, the report's path and the seconds it took.

    Raises
    ------
    InputError
        `output` holds something else than a demo.
    """
    started = time.perf_counter()
    if output.exists():
        ours = {"model", "evaluation", "annotated.h5ad", "generated.h5ad"}
        held = {path.name for path in output.iterdir()} if output.is_dir() else {f"the file {output.name}"}
        foreign = sorted(held - ours)
        if foreign:
            raise InputError(
                f"{output} holds other things than a demo ({', '.join(foreign[:3])}); pass another -o FOLDER"
            )
        if not overwrite:
            refuse_existing(output / "evaluation" / "report.html", overwrite=False)
        else:
            shutil.rmtree(output)
    from cytoglot.applications.annotation import annotate
    from cytoglot.applications.embedding import embed
    from cytoglot.applications.generation import generate
    from cytoglot.benchmark.evaluate import evaluate
    from cytoglot.data.audit import audit
    from cytoglot.data.datasets import load_dataset
    from cytoglot.data.write import write_h5ad
    from cytoglot.report.html import write_report
    from cytoglot.training.run import train

    adata = load_dataset(DATASET)
    logger.info("1/5 the file: %s", DATASET)
    logger.info("%s", audit(adata, label=LABEL).to_text())
    logger.info("2/5 training a language model of its cells")
    model = train(adata, label=LABEL, out=output / "model", seed=seed, device=device, threads=threads)
    logger.info("3/5 annotating, embedding and generating")
    annotated = adata.copy()
    annotate(annotated, model, escape_labels=True)
    embed(annotated, model)
    write_h5ad(annotated, output / "annotated.h5ad")
    write_h5ad(generate(model, model.spec.labels[0], n=10, seed=seed), output / "generated.h5ad")
    logger.info("4/5 evaluating on held-out cells, with baselines and a model of shuffled labels")
    evaluation = evaluate(adata, model, label=LABEL, out=output / "evaluation", seed=seed)
    logger.info("5/5 the report")
    html = write_report(output / "evaluation")
    rows = [asdict(row) for row in evaluation.results]
    if as_json:
        return {"results": rows, "html": html, "seconds": round(time.perf_counter() - started, 1)}
    shown = [
        row
        for row in rows
        if row["metric"] in {"accuracy", "macro_f1", "mean_overlap", "pairwise_diversity", "r2_expressed"}
    ]
    logger.info("\n%s\n", table(shown))
    return {"model": output / "model", "seconds": round(time.perf_counter() - started, 1), "report": html.resolve()}
