"""Label cells: the exact likelihood of every label of a closed set, normalised, calibrated, and open to doubt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax

from cytoglot.answer_format import FreeText
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.errors import InputError
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.answers import ParsedLabel
from cytoglot.tasks.task import AnswerSpace

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

KEY = "cytoglot_cell_type"
UNASSIGNED = "unassigned"


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
        """Probability of the best label, shape (n,)."""
        return self.probability_nk.max(axis=1)

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
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise InputError(
            f"annotation needs at least two distinct labels, found {len(chosen)}; pass --labels FILE with one label "
            "per line, or a model that was trained with labels"
        )
    scores_nk = model.label_scores(sentences, labels=chosen, views=views, context=context, template=template)
    log_probability_nk = log_softmax(scores_nk / model.spec.calibration.temperature, axis=1)
    return LabelProbabilities(labels=chosen, probability_nk=np.exp(log_probability_nk))


def annotate(
    adata: AnnData,
    model: CellModel,
    *,
    labels: Sequence[str] | None = None,
    context: Mapping[str, str] | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    top_k: int = 3,
    threshold: float | None = None,
    views: int | None = None,
    method: Literal["score", "generate"] = "score",
    min_overlap: float = MIN_OVERLAP,
    seed: int = 0,
    copy: bool = True,
) -> AnnData:
    """Return `adata` with a cell type for every cell; labels in it are neither needed nor read.

    Written are `obs["cytoglot_cell_type"]` (categorical; `unassigned` below the threshold),
    `obs["cytoglot_cell_type_best"]` (the best label whatever its probability),
    `obs["cytoglot_cell_type_confidence"]` (its probability), `obs["cytoglot_cell_type_top"]` (text),
    `obs["cytoglot_cell_type_ontology_term_id"]` (Cell Ontology, "unknown" where the label does not map),
    `obsm["cytoglot_probabilities"]` (cells × labels) and `uns["cytoglot"]["annotation"]`.

    Parameters
    ----------
    labels
        The closed set; by default the model's own.
    context
        Metadata for the prompts, such as {"organism": "human", "tissue": "blood"}.
    layer, gene_options
        Which matrix is read, and how its columns become genes.
    threshold
        By default the one calibrated on validation cells (none for other labels than the model's own).
    views
        Augmented views to average; by default the model's number.
    method
        "generate" lets the model write freely and reads the answer: no probabilities, and an answer outside of the
        labels is `unassigned`.
    copy
        False writes into `adata` itself.

    Raises
    ------
    InputError, VocabularyMismatchError
        The matrix cannot be read, there are fewer than two labels, or the genes are not those of the model.

    Notes
    -----
    An empty cell gets the model's answer to an empty sentence, which is close to the label frequencies.
    """
    sentences, overlap = model.sentences(adata, layer=layer, gene_options=gene_options, min_overlap=min_overlap)
    result = adata.copy() if copy else adata
    chosen = tuple(model.spec.labels if labels is None else labels)
    record: dict[str, Any] = {"labels": list(chosen), "method": method, "overlap": str(overlap)}
    if method == "generate":
        parsed = _generate(model, sentences, chosen, context=context, seed=seed)
        best = np.array([p.label or UNASSIGNED for p in parsed], dtype=object)
        result.obs[KEY] = pd.Categorical(best, categories=_categories(chosen, best))
        result.obs[f"{KEY}_text"] = [p.text for p in parsed]
    else:
        own = labels is None or chosen == model.spec.labels
        cut = threshold if threshold is not None else (model.spec.calibration.threshold if own else 0.0)
        beliefs = label_probabilities(model, sentences, labels=chosen, views=views, context=context)
        best = _write_beliefs(result, beliefs, threshold=cut, top_k=top_k)
        record |= {"threshold": cut, "temperature": model.spec.calibration.temperature}
    record |= _write_ontology(result, best, chosen)
    result.uns["cytoglot"] = {**result.uns.get("cytoglot", {}), "annotation": record}
    return result


def _write_beliefs(
    result: AnnData, beliefs: LabelProbabilities, *, threshold: float, top_k: int
) -> NDArray[np.object_]:
    assigned = np.where(beliefs.confidence >= threshold, beliefs.best, UNASSIGNED)
    categories = _categories(beliefs.labels, assigned)
    result.obs[KEY] = pd.Categorical(assigned, categories=categories)
    result.obs[f"{KEY}_best"] = pd.Categorical(beliefs.best, categories=list(beliefs.labels))
    result.obs[f"{KEY}_confidence"] = beliefs.confidence
    result.obs[f"{KEY}_top"] = beliefs.top(top_k)
    result.obsm["cytoglot_probabilities"] = pd.DataFrame(
        beliefs.probability_nk, index=result.obs_names, columns=list(beliefs.labels)
    )
    n_unassigned = int((assigned == UNASSIGNED).sum())
    logger.info("annotated %d cells, %d unassigned (confidence below %.3f)", len(assigned), n_unassigned, threshold)
    return np.asarray(assigned, dtype=object)


def _write_ontology(result: AnnData, best: NDArray[np.object_], labels: Sequence[str]) -> dict[str, Any]:
    mapping = map_labels(list(labels))
    result.obs[f"{KEY}_ontology_term_id"] = pd.Categorical([mapping.ids.get(name) or "unknown" for name in best])
    if mapping.unmapped:
        logger.info("no Cell Ontology term for: %s", ", ".join(mapping.unmapped))
    return {"labels_without_ontology_term": list(mapping.unmapped)}


def _categories(labels: Sequence[str], found: NDArray[np.object_]) -> list[str]:
    return [*labels, UNASSIGNED] if UNASSIGNED in set(found) and UNASSIGNED not in labels else list(labels)


def _generate(
    model: CellModel,
    sentences: CellSentences,
    labels: tuple[str, ...],
    *,
    context: Mapping[str, str] | None,
    seed: int,
) -> list[ParsedLabel]:
    prompts = model.prompts(sentences, context=context)
    answers = generate_answers(model.lm, prompts, FreeText(max_tokens=32), temperature=0.0, seed=seed)
    task, space = model.task("cell_type_annotation"), AnswerSpace(labels=labels)
    return [task.parse(first, space) for (first, *_) in answers]
