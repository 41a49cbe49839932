"""The four tie rules: what a linear classifier finds in the sentences that they make.

    python -m benchmarks.bench_ties [--sets pbmc3k kang ...] [--json]

Sentences of the 200 first genes, of 2,000 highly variable genes and of all genes; each gene weighted by
1 / log2(rank + 1); logistic regression whose strength is chosen on validation cells. Genes, rates and classifier see
training cells alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from benchmarks.bench_annotation import TASKS, Task, labels_and_rows, read_task
from cytoglot.corpus.from_cells import CellOptions, choose_genes
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import folds
from cytoglot.metrics.classification import accuracy_statistic, macro_f1_statistic
from cytoglot.metrics.uncertainty import bootstrap, bootstrap_difference
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, TieRule
from cytoglot.sentence.encode import detection_rates, encode_matrix

logger = logging.getLogger(__name__)
RULES: tuple[TieRule, ...] = get_args(TieRule)
GENES = {"hvg": 2000, "all": None}
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)


def main() -> None:
    """Run all sets and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--top-genes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    rows = []
    for name in arguments.sets:
        adata = read_task(name)
        if adata is not None:
            rows += judge(name, adata, TASKS[name], top_genes=arguments.top_genes)
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write(as_markdown(rows) + "\n")


def judge(name: str, adata: AnnData, task: Task, *, top_genes: int) -> list[dict[str, object]]:
    """Return accuracy and macro-F1 of every rule, and its difference from `order` on the same cells."""
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for split in folds(adata.obs, by=task.by, label="cell_type", n_folds=5, seed=0):
        labels, rows = labels_and_rows(adata, split)
        for kind, hvg in GENES.items():
            counts_ng, vocabulary = chosen_counts(adata, split, hvg)
            rates_g = detection_rates(counts_ng[split.mask(adata.obs_names, "train")])
            for rule in RULES:
                settings = RankSettings(top_genes=top_genes, ties=rule)
                sentences = encode_matrix(
                    counts_ng, vocabulary, cell_ids=adata.obs_names, settings=settings, tie_rates=rates_g
                )
                predicted = classify(rank_weights(sentences), labels, rows)
                table = pd.DataFrame({"truth": labels[rows["test"]], "predicted": predicted})
                found.setdefault((kind, rule), []).append(table)
    pooled = {key: pd.concat(tables) for key, tables in found.items()}
    return [summary(name, kind, rule, pooled) for kind, rule in pooled]


def chosen_counts(adata: AnnData, split: Split, hvg: int | None) -> tuple[csr_matrix, GeneVocabulary]:
    """Return the columns of the genes that are chosen on training cells."""
    genes = choose_genes(adata[split.mask(adata.obs_names, "train")], CellOptions(hvg=hvg))
    return csr_matrix(adata.X)[:, adata.var_names.get_indexer(genes)], GeneVocabulary(symbols=tuple(genes))


def rank_weights(sentences: CellSentences) -> csr_matrix:
    """Return 1 / log2(rank + 1) of each gene, 0 for those outside of the sentence."""
    weights = 1 / np.log2(sentences.ranks() + 1.0)
    shape = (len(sentences), len(sentences.vocabulary))
    return csr_matrix((weights, sentences.gene_ids.astype(np.int32), sentences.offsets), shape=shape)


def classify(
    features_ng: csr_matrix, labels: NDArray[np.object_], rows: dict[str, NDArray[np.int64]]
) -> NDArray[np.object_]:
    """Return the predicted labels of the test cells."""
    best, best_score = None, -1.0
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300).fit(
            features_ng[rows["train"]], labels[rows["train"]].astype(str)
        )
        score = model.score(features_ng[rows["validation"]], labels[rows["validation"]].astype(str))
        if score > best_score:
            best, best_score = model, score
    assert best is not None
    return np.asarray(best.predict(features_ng[rows["test"]]), dtype=object)


def summary(name: str, kind: str, rule: str, pooled: dict[tuple[str, str], pd.DataFrame]) -> dict[str, object]:
    """Return one row of the result."""
    row: dict[str, object] = {"set": name, "genes": kind, "ties": rule}
    for metric, make in {"accuracy": accuracy_statistic, "macro_f1": macro_f1_statistic}.items():
        mine, order = (
            make(pooled[kind, r]["truth"].to_numpy(object), pooled[kind, r]["predicted"].to_numpy(object))
            for r in (rule, "order")
        )
        difference = bootstrap_difference(mine, order)
        row |= {metric: bootstrap(mine).value, f"{metric}_minus_order": difference.value}
        row |= {f"{metric}_low": difference.low, f"{metric}_high": difference.high}
    return row


def as_markdown(rows: list[dict[str, object]]) -> str:
    """Lay out the rows."""
    lines = [
        "| set | genes | ties | accuracy | − order, points (95 %) | macro-F1 | − order, points (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row[key]) for key in ("set", "genes", "ties")]
        for metric in ("accuracy", "macro_f1"):
            low, high = 100 * float(str(row[f"{metric}_low"])), 100 * float(str(row[f"{metric}_high"]))
            points = 100 * float(str(row[f"{metric}_minus_order"]))
            cells += [f"{float(str(row[metric])):.3f}", f"{points:+.1f} ({low:+.1f} to {high:+.1f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
