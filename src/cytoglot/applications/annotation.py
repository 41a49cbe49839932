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
from scipy.special import log_softmax

from cytoglot.answer_format import FreeText
from cytoglot.applications.outputs import (
    add_record,
    cells_to_change,
    check_target,
    made_in_parts,
    model_settings,
    parts_of,
    result_of,
    sentences_fingerprint,
)
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, as_cell_model
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.knowledge.ontology import map_labels
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
_COLUMNS = ("", "_best", "_confidence", "_top", "_text", "_ontology_term_id")
UNASSIGNED = "unassigned"
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
    views: int | None = None,
    context: Mapping[str, str] | None = None,
    template: int | str | None = None,
) -> LabelProbabilities:
    """Return p(label | cell) over a closed set of labels, calibrated by the model's temperature.

    Labels other than the model's own are scored as they are; the temperature was not fitted on them.
    """
    chosen = tuple(model.spec.labels if labels is None else labels)
    _check_labels(chosen, escape=True)
    scores_nk = model.label_scores(sentences, labels=chosen, views=views, context=context, template=template)
    log_probability_nk = log_softmax(scores_nk / model.spec.calibration.temperature, axis=1)
    return LabelProbabilities(labels=chosen, probability_nk=np.exp(log_probability_nk))


def annotate(
    adata: AnnData | str | Path,
    model: CellModel | LanguageModel | str | Path,
    *,
    labels: Sequence[str | float] | None = None,
    context: Mapping[str, str] | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    top_k: int = 3,
    threshold: float | None = None,
    views: int | None = None,
    method: Literal["score", "generate"] = "score",
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

    Parameters
    ----------
    adata
        Cells, or the path of a file of them, which needs `copy=True` or `output`. Labels in it are not read.
    model
        A cell model or its folder; or any causal language model (`cytoglot.load_model`, or its folder or name) with
        `labels`: it is asked about the genes of the cells, and its probabilities are not calibrated.
    labels
        The closed set, at least two texts or numbers (1 and 1.0 are the label "1"); by default the model's own.
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
        "generate" lets the model write freely and reads the answer: no probabilities, and an answer outside of the
        labels is `unassigned`.
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
        An h5ad to write the result to as well. It is made in parts of `chunk_cells` cells: the same call after a kill
        goes on with the parts that are missing and ends with the same bytes.
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
        The matrix cannot be read, there are fewer than two labels or labels that cannot be columns, `key_added` makes
        names that no file can hold or that are taken by data that cytoglot did not write, the genes are not those of
        the model, or an interrupted run for `output` was given something else (the message says what).

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.read("cells.h5ad")
    >>> cg.annotate(adata, "model")
    >>> adata.obs[["cytoglot_cell_type", "cytoglot_cell_type_confidence"]].shape
    (240, 2)
    """
    given = None if labels is None else _label_texts(labels)
    file = cells_to_change(adata, copy=copy, output=output, layer=layer, genes=gene_options)
    cells = file.adata
    model = as_cell_model(model, labels=given, cells=cells, layer=file.layer, gene_options=file.genes, context=context)
    chosen = model.spec.labels if given is None else given
    if method == "score":
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
    sentences, overlap = model.sentences(cells, layer=file.layer, gene_options=file.genes, min_overlap=min_overlap)
    with_genes = np.flatnonzero(np.diff(sentences.offsets) > 0)
    own = chosen == model.spec.labels
    cut = threshold if threshold is not None else (model.spec.calibration.threshold if own else 0.0)

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
            "method": method,
            "seed": seed,
            "threshold": cut,
        }

    def make(first: int, last: int) -> pa.Table:
        some = sentences[with_genes[first:last]]
        if method == "generate":
            prompts = [prompt.text for prompt in model.cell_prompts(some, context=context)]
            answers = generate_answers(model.lm, prompts, FreeText(max_tokens=32), temperature=0.0, seed=seed)
            task, space = model.task("cell_type_annotation"), AnswerSpace(labels=chosen)
            parsed = [task.parse(first, space) for (first, *_) in answers]
            return pa.table({"best": [p.label or UNASSIGNED for p in parsed], "text": [p.text for p in parsed]})
        probabilities = label_probabilities(model, some, labels=chosen, views=views, context=context)
        flat = pa.array(probabilities.probability_nk.reshape(-1), pa.float64())
        return pa.table({"probability": pa.FixedSizeListArray.from_arrays(flat, len(chosen))})

    record: dict[str, Any] = {"key": key_added, "labels": list(chosen), "method": method, "overlap": str(overlap)}
    record["cells_without_genes"] = len(sentences) - len(with_genes)
    with parts_of(output, settings, overwrite=overwrite) as parts:
        table = made_in_parts(make, len(with_genes), chunk_cells, parts)
        result = result_of(cells, copy=copy and cells is adata)
        # Columns of an earlier call with another method must not stay.
        result.obs = result.obs.drop(columns=columns, errors="ignore")
        result.obsm.pop(probabilities_key, None)
        if method == "generate":
            best = np.full(len(sentences), UNASSIGNED, dtype=object)
            best[with_genes] = table["best"].to_pylist()
            result.obs[columns[0]] = pd.Categorical(best, categories=_categories(chosen, best))
            result.obs[f"{columns[0]}_text"] = _spread(table["text"].to_pylist(), with_genes, len(sentences))
        else:
            flat = table["probability"].combine_chunks().flatten().to_numpy()
            probabilities = LabelProbabilities(labels=chosen, probability_nk=flat.reshape(-1, len(chosen)))
            best = _write_probabilities(result, probabilities, with_genes, threshold=cut, top_k=top_k, key=key_added)
            record |= {"threshold": cut, "temperature": model.spec.calibration.temperature}
        mapping = map_labels(list(chosen))
        terms = [mapping.ids.get(label) or "unknown" for label in best]
        result.obs[f"{columns[0]}_ontology_term_id"] = pd.Categorical(terms)
        if mapping.unmapped:
            logger.info("no Cell Ontology term for: %s", ", ".join(mapping.unmapped))
        record["labels_without_ontology_term"] = list(mapping.unmapped)
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
                fill_h5ad(result, path)
    return result if copy else None


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
