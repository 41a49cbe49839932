"""Label cells: the exact likelihood of every label of a closed set, normalized, calibrated, and open to doubt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.answer_format import FreeText
from cytoglot.applications.outputs import (
    add_record,
    cells_to_change,
    check_suffix,
    check_target,
    made_in_parts,
    model_settings,
    parts_of,
    result_of,
    sentences_fingerprint,
)
from cytoglot.cell_model.load import MIN_OVERLAP, AnnotationMethod, CellModel, as_cell_model
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.schema import value_text
from cytoglot.data.write import fill_h5ad
from cytoglot.errors import InputError
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.task import AnswerSpace, check_context
from cytoglot.texts import as_key, is_key, storable

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

DEFAULT_KEY = "cytoglot"
KEY = f"{DEFAULT_KEY}_cell_type"
"""column of `obs` with the labels, unless `key_added` says otherwise"""
_COLUMNS = ("", "_best", "_confidence", "_top", "_text", "_ontology_term_id", "_majority", "_majority_share")
UNASSIGNED = "unassigned"
OUTPUTS = (".h5ad", ".csv")
CHUNK_CELLS = 512
"""cells between two saved parts of a file"""


@dataclass(frozen=True, kw_only=True)
class LabelProbabilities:
    """What a model believes of each cell. Axes: n cells, k labels."""

    labels: tuple[str, ...]
    probability_nk: NDArray[np.float64]

    @property
    def best(self) -> NDArray[np.object_]:
        """Label of the highest probability, shape (n,); the first of equals."""
        return np.array(self.labels, dtype=object)[self.probability_nk.argmax(axis=1)]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the best label, shape (n,); rounding may have left it just above 1."""
        return np.clip(self.probability_nk.max(axis=1), 0.0, 1.0)

    def top(self, n: int) -> list[str]:
        """Return the `n` likeliest labels of each cell as text, such as "CD4 T (0.81), CD8 T (0.12)"."""
        order_nk = np.argsort(-self.probability_nk, axis=1, kind="stable")[:, :n]
        return [
            ", ".join(f"{self.labels[k]} ({row[k]:.2f})" for k in ks)
            for row, ks in zip(self.probability_nk, order_nk, strict=True)
        ]


def label_probabilities(
    model: CellModel,
    sentences: CellSentences,
    *,
    labels: Sequence[str] | None = None,
    method: AnnotationMethod = "auto",
    views: int | None = None,
    context: Mapping[str, str] | None = None,
    template: int | str | None = None,
) -> LabelProbabilities:
    """Return p(label | cell) over a closed set of labels, calibrated by the model's temperature.

    Labels other than the model's own are scored as they are; the temperature was not fitted on them. `method` is as in
    `CellModel.label_log_probabilities`.
    """
    chosen = tuple(model.spec.labels if labels is None else labels)
    _check_labels(chosen, escape=True)
    log_p_nk = model.label_log_probabilities(
        sentences, labels=chosen, method=method, views=views, context=context, template=template
    )
    return LabelProbabilities(labels=chosen, probability_nk=np.exp(log_p_nk))


def annotate(
    adata: AnnData | str | Path,
    model: CellModel | LanguageModel | str | Path,
    *,
    labels: Sequence[str | float] | None = None,
    by: str | None = None,
    context: Mapping[str, str] | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    top_k: int = 3,
    threshold: float | None = None,
    views: int | None = None,
    method: AnnotationMethod | Literal["generate"] = "auto",
    min_overlap: float = MIN_OVERLAP,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    copy: bool = False,
    escape_labels: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    chunk_cells: int = CHUNK_CELLS,
) -> AnnData | None:
    """Write a cell type for every cell into `adata`; labels in it are neither needed nor read.

    With KEY for `key_added`, written are `obs["KEY_cell_type"]` (categorical; `unassigned` below the threshold),
    `obs["KEY_cell_type_best"]` (the best label whatever its probability), `obs["KEY_cell_type_confidence"]` (its
    probability), `obs["KEY_cell_type_top"]` (text), `obs["KEY_cell_type_ontology_term_id"]` (Cell Ontology, "unknown"
    where the label does not map), `obsm["KEY_probabilities"]` (cells × labels) and a record, in
    `uns["cytoglot"]["annotation"]` for the default key and in `uns["cytoglot"]["annotation_KEY"]` for others, so that
    two models can stand side by side in one file. What an earlier call wrote under the same key is replaced.

    A cell without one gene of the model is `unassigned`, its probabilities and its confidence are NaN, and
    `cells_without_genes` of the record counts such cells.

    With `by`, `obs["KEY_cell_type_majority"]` gives all cells of a cluster the label that most of them have in
    `obs["KEY_cell_type"]`, and `obs["KEY_cell_type_majority_share"]` is the share of the cluster's cells that have it.
    `unassigned` is counted as a label is, so a cluster of mostly unassigned cells is unassigned. Of labels with equally
    many cells the one with the higher sum of probabilities in the cluster wins, then the first of the labels;
    `unassigned` loses a tie. A cell without a cluster keeps its own label, and its share is NaN.

    Parameters
    ----------
    adata
        Cells, or the path of a file of them, which needs `copy=True` or `output`. Labels in it are not read.
    model
        A cell model or its folder; or any causal language model (`cytoglot.load_model`, or its folder or name) with
        `labels`: it is asked about the genes of the cells, and its probabilities are not calibrated.
    labels
        The closed set, at least two texts or numbers (1 and 1.0 are the label "1"); by default the model's own.
    by
        Column of `obs` with clusters, such as "leiden", for one label per cluster beside the cells' own.
    context
        Metadata for the prompts, such as {"organism": "human", "tissue": "blood"}.
    layer
        Matrix to rank: "X", "raw" or the name of a layer; None finds it.
    gene_options
        How columns become genes: see `cytoglot.read`.
    top_k
        Labels listed for each cell in the column `…_top`.
    threshold
        A cell whose best label is less likely than this, 0 to 1, is `unassigned`. By default the one calibrated on
        validation cells (none for other labels than the model's own).
    views
        Augmented views to average; by default the model's number.
    method
        "score": the likelihood that the language model gives each label. "head": a linear head on the ranks of all
        genes. "hybrid": their average. "auto": what had the lower loss on validation cells, "score" for other labels
        than the model's own. "generate" lets the model write freely and reads the answer: no probabilities, and an
        answer outside of the labels is `unassigned`. The record says which it was.
    min_overlap
        Cells with fewer than this share of the model's genes, 0 to 1, are refused.
    seed
        Of the free answers of `method="generate"`; scores do not depend on it.
    key_added
        What the names of all that is written begin with.
    copy
        Return a changed copy, in memory, and leave `adata` as it is. Without it `adata` is changed and None returned: a
        view becomes an AnnData of its own (what it is a view of is not changed), and of a backed AnnData `obs`, `obsm`
        and `uns` are changed in memory, not in the file.
    escape_labels
        Columns of a file cannot be called "T/NK", ".", "_index" or "". With this the columns of the probabilities have
        such labels percent-encoded ("T%2FNK", `cytoglot.texts.as_key`); the record and all of `obs` keep the true
        ones. Without it such labels are refused.
    output
        A file to write the result to as well: `.h5ad` for all of the AnnData, or `.csv` for a row per cell with what
        was added to `obs` and the probabilities, in columns such as "probability: B cell". It is made in parts of
        `chunk_cells` cells: the same call after a kill goes on with the parts that are missing and ends with the same
        bytes.
    overwrite
        Begin anew where an interrupted run of other settings has left parts.
    chunk_cells
        Cells between two saved parts of `output`.

    Returns
    -------
        None, or with `copy` the changed copy.

    Raises
    ------
    InputError, VocabularyMismatchError
        The matrix cannot be read, there are fewer than two labels or labels that cannot be columns, `by` is no column
        of clusters, `output` ends in neither `.h5ad` nor `.csv`, `key_added` makes names that no file can hold or that
        are taken by data that cytoglot did not write, the genes are not those of the model, or an interrupted run for
        `output` was given something else (the message says what).

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.read("cells.h5ad")
    >>> cg.annotate(adata, "model")
    >>> adata.obs[["cytoglot_cell_type", "cytoglot_cell_type_confidence"]].shape
    (240, 2)
    """
    check_suffix(output, OUTPUTS)
    given = None if labels is None else _label_texts(labels)
    file = cells_to_change(adata, copy=copy, output=output, layer=layer, genes=gene_options)
    cells = file.adata
    model = as_cell_model(model, labels=given, cells=cells, layer=file.layer, gene_options=file.genes, context=context)
    chosen = model.spec.labels if given is None else given
    how = method if method == "generate" else model.annotation_method(method, labels=chosen)
    if how != "generate":
        _check_labels(chosen, escape=escape_labels)
        if cells.obs_names.name in chosen:
            raise InputError(
                f"the index of obs is called {cells.obs_names.name!r}, as a label is; give it another name"
            )
    check_context(context)
    columns, probabilities_key = [f"{key_added}_cell_type{column}" for column in _COLUMNS], f"{key_added}_probabilities"
    name = check_target(
        cells,
        "annotation",
        key_added,
        default=DEFAULT_KEY,
        writes={"obs": columns, "obsm": [probabilities_key]},
        copy=copy,
    )
    clusters = None if by is None else _clusters(cells.obs, by, written=columns)
    sentences, overlap = model.sentences(cells, layer=file.layer, gene_options=file.genes, min_overlap=min_overlap)
    with_genes = np.flatnonzero(np.diff(sentences.offsets) > 0)
    own = chosen == model.spec.labels
    fitted = model.spec.calibration
    at = {"score": fitted, "hybrid": fitted.hybrid}.get(how)  # where temperature and threshold are
    cut = threshold if threshold is not None else (at.threshold if own and at is not None else 0.0)

    def settings() -> dict[str, Any]:
        return {
            **model_settings(model, "cell_type_annotation"),
            "data": sentences_fingerprint(sentences),
            "labels": chosen,
            "escape_labels": escape_labels,
            "chunk_cells": chunk_cells,
            "context": dict(context or {}),
            "top_k": top_k,
            "views": views,
            "method": how,
            "seed": seed,
            "threshold": cut,
        }

    def make(first: int, last: int) -> pa.Table:
        some = sentences[with_genes[first:last]]
        if how == "generate":
            prompts = [prompt.text for prompt in model.cell_prompts(some, context=context)]
            answers = generate_answers(model.lm, prompts, FreeText(max_tokens=32), temperature=0.0, seed=seed)
            task, space = model.task("cell_type_annotation"), AnswerSpace(labels=chosen)
            parsed = [task.parse(first, space) for (first, *_) in answers]
            return pa.table({"best": [p.label or UNASSIGNED for p in parsed], "text": [p.text for p in parsed]})
        probabilities = label_probabilities(model, some, labels=chosen, method=how, views=views, context=context)
        flat = pa.array(probabilities.probability_nk.reshape(-1), pa.float64())
        return pa.table({"probability": pa.FixedSizeListArray.from_arrays(flat, len(chosen))})

    record: dict[str, Any] = {"key": key_added, "labels": list(chosen), "method": how, "overlap": str(overlap)}
    record["cells_without_genes"] = len(sentences) - len(with_genes)
    with parts_of(output, settings, overwrite=overwrite) as parts:
        table = made_in_parts(make, len(with_genes), chunk_cells, parts)
        result = result_of(cells, copy=copy and cells is adata)
        # Columns of an earlier call with another method must not stay.
        result.obs = result.obs.drop(columns=columns, errors="ignore")
        result.obsm.pop(probabilities_key, None)
        if how == "generate":
            best = _spread(table["best"].to_pylist(), with_genes, len(sentences), UNASSIGNED)
            result.obs[columns[0]] = pd.Categorical(best, categories=_categories(chosen, best))
            result.obs[f"{columns[0]}_text"] = _spread(table["text"].to_pylist(), with_genes, len(sentences))
        else:
            flat = table["probability"].combine_chunks().flatten().to_numpy()
            probabilities = LabelProbabilities(labels=chosen, probability_nk=flat.reshape(-1, len(chosen)))
            best = _write_probabilities(result, probabilities, with_genes, threshold=cut, top_k=top_k, key=key_added)
            record |= {"threshold": cut, "temperature": 1.0 if at is None else at.temperature}
        mapping = map_labels(list(chosen))
        terms = [mapping.ids.get(label) or "unknown" for label in best]
        result.obs[f"{columns[0]}_ontology_term_id"] = pd.Categorical(terms)
        if mapping.unmapped:
            logger.info("no Cell Ontology term for: %s", ", ".join(mapping.unmapped))
        record["labels_without_ontology_term"] = list(mapping.unmapped)
        if clusters is not None:
            of_cluster = majority_labels(best, clusters, chosen, result.obsm.get(probabilities_key))
            majority = np.where(clusters.isna(), best, clusters.map(of_cluster["label"]).astype(object))
            result.obs[f"{columns[0]}_majority"] = pd.Categorical(majority, categories=_categories(chosen, majority))
            result.obs[f"{columns[0]}_majority_share"] = clusters.map(of_cluster["share"]).astype(float)
            record["by"] = by
            logger.info(
                "majority label of %d clusters of %s: %d cells have another one of their own",
                len(of_cluster),
                by,
                int((majority != best).sum()),
            )
        add_record(result, name, record)
        n_unassigned = int((best == UNASSIGNED).sum())
        logger.info(
            "annotated %d cells, %d unassigned, of which %d have no gene of the model",
            len(best),
            n_unassigned,
            record["cells_without_genes"],
        )
        if parts is not None:
            with parts.whole() as path:
                if path.suffix == ".h5ad":
                    fill_h5ad(result, path)
                else:
                    added = result.obs[[column for column in columns if column in result.obs]]
                    if how != "generate":
                        probability = result.obsm[probabilities_key].set_axis(
                            [f"probability: {label}" for label in chosen], axis=1
                        )
                        added = pd.concat([added, probability], axis=1)
                    added.to_csv(path, index_label="cell_id")
    return result if copy else None


def majority_labels(
    labels_n: NDArray[np.object_],
    clusters: pd.Series,
    order: Sequence[str],
    probability_nk: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the most frequent label of each cluster with its share of the cells; a row per cluster, sorted by name.

    Parameters
    ----------
    labels_n
        Label of each cell, or `unassigned`, which is counted as a label is and loses ties.
    clusters
        Cluster of each cell; cells where it is missing are left out.
    order
        The labels: of those with equally many cells the one with the higher sum of probabilities wins, then the first.
    probability_nk
        Probability of each label of `order` in each cell; NaN counts as 0. Without it ties go by the order.

    Returns
    -------
    pandas.DataFrame
        Columns "label", "share" and "cells".
    """
    names = [*order, *({UNASSIGNED} - set(order))]
    in_cluster = clusters.notna().to_numpy()
    cluster_n = clusters.to_numpy()[in_cluster]
    counts_ck = pd.crosstab(cluster_n, labels_n[in_cluster]).reindex(columns=names, fill_value=0)
    evidence_ck = np.zeros(counts_ck.shape)
    if probability_nk is not None:
        sums = pd.DataFrame(probability_nk.to_numpy()[in_cluster]).groupby(cluster_n).sum()  # sorted, as the counts are
        evidence_ck[:, : len(order)] = sums.to_numpy()
    counts = counts_ck.to_numpy()
    is_most = counts == counts.max(axis=1, keepdims=True)
    if len(names) > len(order):  # unassigned is the last, and wins only alone
        is_most[:, -1] &= is_most.sum(axis=1) == 1
    winner = np.where(is_most, evidence_ck, -1.0).argmax(axis=1)
    n_cells = counts.sum(axis=1)
    share = counts[np.arange(len(counts)), winner] / n_cells
    return pd.DataFrame(
        {"label": np.array(names, dtype=object)[winner], "share": share, "cells": n_cells}, index=counts_ck.index
    )


def _clusters(obs: pd.DataFrame, by: str, *, written: Sequence[str]) -> pd.Series:
    """Return the cluster of each cell as text, None where it is missing; refuse a column that holds no clusters."""
    if by in written:
        raise InputError(
            f"by={by!r} is a column that this call writes; pass a column of clusters, or another key_added"
        )
    clusters = read_labels(obs, by)
    n_clusters = clusters.nunique()
    if n_clusters == 0 or (n_clusters == clusters.notna().sum() and n_clusters > 1):
        found = "no value" if n_clusters == 0 else f"{n_clusters} values, each of a single cell"
        raise InputError(f"a majority vote needs a column of clusters, {by!r} holds {found}; pass another --by (by=)")
    return clusters


def _label_texts(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return labels as texts; a number has the text that it has as a label of cells."""
    if isinstance(labels, (str, bytes)):
        raise InputError(f"labels must be a list, found one text; pass [{labels!r}, ...], all labels to choose from")
    missing = [label for label in labels if pd.isna(label)]
    if missing:
        raise InputError(f"labels must be texts or numbers, found {missing[0]!r}; leave out what stands for no label")
    return tuple(label if isinstance(label, str) else value_text(label) for label in labels)


def _check_labels(labels: Sequence[str], *, escape: bool) -> None:
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise InputError(
            f"annotation needs at least two distinct labels, found {len(labels)}; pass --labels FILE with one label "
            "per line, or a model that was trained with labels"
        )
    broken = [label for label in labels if storable(label) != label]
    if broken:
        raise InputError(
            f"labels must be texts that files can hold, found {broken[0]!r} with U+0000 or half a character"
        )
    refused = [label for label in labels if not is_key(label)]
    if refused and not escape:
        raise InputError(
            f"{len(refused)} labels cannot name a column of a file, such as {refused[0]!r} (a '/' parts folders); "
            f"pass --escape-labels (escape_labels=True) to call that column {as_key(refused[0])!r}"
        )


def _write_probabilities(
    result: AnnData,
    probabilities: LabelProbabilities,
    rows: NDArray[np.intp],
    *,
    threshold: float,
    top_k: int,
    key: str,
) -> NDArray[np.object_]:
    """Write what is believed of the cells `rows`, and that nothing is of the others; return the assigned labels."""
    n = result.n_obs
    assigned = _spread(
        np.where(probabilities.confidence >= threshold, probabilities.best, UNASSIGNED), rows, n, UNASSIGNED
    )
    best = _spread(probabilities.best, rows, n, UNASSIGNED)
    confidence, probability_nk = np.full(n, np.nan), np.full((n, len(probabilities.labels)), np.nan)
    confidence[rows], probability_nk[rows] = probabilities.confidence, probabilities.probability_nk
    result.obs[f"{key}_cell_type"] = pd.Categorical(assigned, categories=_categories(probabilities.labels, assigned))
    result.obs[f"{key}_cell_type_best"] = pd.Categorical(best, categories=_categories(probabilities.labels, best))
    result.obs[f"{key}_cell_type_confidence"] = confidence
    result.obs[f"{key}_cell_type_top"] = _spread(probabilities.top(top_k), rows, n)
    names: Sequence[str] = probabilities.labels
    if not all(map(is_key, names)):
        names = list(map(as_key, names))
    result.obsm[f"{key}_probabilities"] = pd.DataFrame(probability_nk, index=result.obs_names, columns=list(names))
    return assigned


def _spread(
    values: Sequence[str] | NDArray[Any], rows: NDArray[np.intp], n: int, other: str = ""
) -> NDArray[np.object_]:
    """Return the values at their rows, and `other` at the rows without one."""
    every = np.full(n, other, dtype=object)
    every[rows] = values
    return every


def _categories(labels: Sequence[str], found: NDArray[np.object_]) -> list[str]:
    return [*labels, UNASSIGNED] if UNASSIGNED in set(found) and UNASSIGNED not in labels else list(labels)
