"""The tie rules: what the sentences keep, and what a linear classifier finds in them.

    python -m benchmarks.bench_ties [--sets pbmc3k kang ...] [--genes hvg all] [--rules symbol order ...] [--json]

Sentences of the 200 first genes, of 2,000 highly variable genes and of all genes; each gene weighted by
1 / log2(rank + 1); logistic regression whose strength is chosen on validation cells. Genes, rates, markers, type
profiles and classifier see training cells alone. `order` is the order of the file.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import get_args

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from benchmarks.bench_annotation import TASKS, labels_and_rows, read_task
from cytoglot.benchmark.type_profile import TypeProfile
from cytoglot.corpus.from_cells import CellOptions, choose_genes
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import folds
from cytoglot.metrics.classification import accuracy_statistic, macro_f1_statistic
from cytoglot.metrics.uncertainty import bootstrap, bootstrap_difference
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, TieRule
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.ranker import detection_rates

logger = logging.getLogger(__name__)
RULES: tuple[TieRule, ...] = get_args(TieRule)
GENES = {"hvg": 2000, "all": None}
N_MARKERS = 25
KEPT = ("first_fifth", "last_fifth", "never", "markers", "overlap", "nearest")
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)


def main() -> None:
    """Run all sets and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--genes", nargs="+", choices=list(GENES), default=list(GENES))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--top-genes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    rows = []
    for name in arguments.sets:
        adata = read_task(name)
        if adata is not None:
            rows += judge(name, adata, arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write(as_markdown(rows) + "\n")


def judge(name: str, adata: AnnData, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Return the scores of every rule, and the difference of its predictions from those by `order`, on the same cells.

    `order` is always among the rules.
    """
    task, rules = TASKS[name], list(dict.fromkeys(["order", *arguments.rules]))
    found: dict[tuple[str, str], list[tuple[pd.DataFrame, dict[str, float]]]] = {}
    for split in folds(adata.obs, by=task.by, label="cell_type", n_folds=5, seed=0):
        labels, rows = labels_and_rows(adata, split)
        for kind in arguments.genes:
            counts_ng, vocabulary = chosen_counts(adata, split, GENES[kind])
            rates_g = detection_rates(counts_ng[split.mask(adata.obs_names, "train")])
            markers = marker_genes(counts_ng[rows["train"]], labels[rows["train"]])
            for rule in rules:
                settings = RankSettings(top_genes=arguments.top_genes, ties=rule)
                sentences = encode_matrix(
                    counts_ng, vocabulary, cell_ids=adata.obs_names, settings=settings, tie_rates=rates_g
                )
                predicted = classify(rank_weights(sentences), labels, rows)
                table = pd.DataFrame({"truth": labels[rows["test"]], "predicted": predicted})
                kept = what_is_kept(sentences, counts_ng, labels, rows, markers)
                found.setdefault((kind, rule), []).append((table, kept))
    pooled = {key: pd.concat([table for table, _ in parts]) for key, parts in found.items()}
    means = {key: pd.DataFrame([kept for _, kept in parts]).mean().to_dict() for key, parts in found.items()}
    return [summary(name, *key, pooled) | means[key] for key in pooled]


def chosen_counts(adata: AnnData, split: Split, hvg: int | None) -> tuple[csr_matrix, GeneVocabulary]:
    """Return the columns of the genes that are chosen on training cells, in the order of the file."""
    genes = choose_genes(adata[split.mask(adata.obs_names, "train")], CellOptions(hvg=hvg))
    columns = np.sort(adata.var_names.get_indexer(genes))
    return csr_matrix(adata.X)[:, columns], GeneVocabulary(symbols=tuple(adata.var_names[columns]))


def marker_genes(counts_ng: csr_matrix, labels: NDArray[np.object_]) -> dict[str, NDArray[np.int64]]:
    """Return the `N_MARKERS` genes of each type (of five cells or more) with the largest t statistics."""
    sizes = pd.Series(labels).value_counts()
    known = np.isin(labels.astype(str), sizes.index[sizes >= 5].astype(str))
    cells = AnnData(counts_ng[known].astype(np.float32), obs=pd.DataFrame({"type": labels[known].astype(str)}))
    cells.obs["type"] = cells.obs["type"].astype("category")
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "type", method="t-test", n_genes=N_MARKERS)
    names = cells.uns["rank_genes_groups"]["names"]  # columns are numbered
    return {name: names[name].astype(np.int64) for name in names.dtype.names}


def what_is_kept(
    sentences: CellSentences,
    counts_ng: csr_matrix,
    labels: NDArray[np.object_],
    rows: dict[str, NDArray[np.int64]],
    markers: dict[str, NDArray[np.int64]],
) -> dict[str, float]:
    """Return of test cells what survives the cut, and how alike sentences of a type are.

    Of genes with one count: the share kept in the first and in the last fifth of the file's genes, and the share of
    genes (of those with one count in 20 cells) that are kept in less than 1 % of those cells. Of the detected marker
    genes of the cell's type the share kept. `overlap`: share of the words among the 200 most frequent of the type.
    `nearest`: share of cells that overlap most with their own type.
    """
    test = rows["test"]
    ids = sentences.gene_ids.astype(np.int32)
    kept_ng = csr_matrix((np.ones(len(ids)), ids, sentences.offsets), shape=counts_ng.shape)[test]
    ones_ng = (counts_ng[test] == 1).astype(float)
    ones_g, kept_g = (np.asarray(m.sum(axis=0)).ravel() for m in (ones_ng, kept_ng.multiply(ones_ng)))
    first, last = (np.array_split(np.arange(len(ones_g)), 5)[end] for end in (0, -1))
    often = ones_g >= 20
    detected_ng, truth = (counts_ng[test] > 0).astype(float), labels[test].astype(str)
    n_kept, n_detected = (
        sum(matrix[truth == name][:, genes].sum() for name, genes in markers.items())
        for matrix in (kept_ng, detected_ng)
    )
    profile = TypeProfile.fit(sentences[rows["train"]], labels[rows["train"]])
    typical_lg = np.zeros_like(profile.detected_lg)
    for row, detected_g in enumerate(profile.detected_lg):
        typical_lg[row, np.argsort(-detected_g, kind="stable")[:200]] = 1
    overlap_nl = kept_ng @ typical_lg.T / np.maximum(sentences.lengths[test], 1)[:, None]
    own = np.array([profile.labels.index(name) if name in profile.labels else -1 for name in truth])
    overlap_nl, own = overlap_nl[own >= 0], own[own >= 0]
    return {
        "first_fifth": kept_g[first].sum() / max(ones_g[first].sum(), 1),
        "last_fifth": kept_g[last].sum() / max(ones_g[last].sum(), 1),
        "never": float((kept_g[often] < 0.01 * ones_g[often]).mean()) if often.any() else float("nan"),
        "markers": n_kept / n_detected,
        "overlap": float(overlap_nl[np.arange(len(own)), own].mean()),
        "nearest": float((overlap_nl.argmax(axis=1) == own).mean()),
    }


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
    lines += ["", f"| set | genes | ties | {' | '.join(KEPT)} |", f"|{'---|' * (3 + len(KEPT))}"]
    for row in rows:
        cells = [str(row[key]) for key in ("set", "genes", "ties")]
        cells += [f"{float(str(row[key])):.3f}" for key in KEPT]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
