"""What the columns of `obs` mean: canonical field names, their usual synonyms, and values that are not values.

The canonical names are those of the CELLxGENE schema where it has one, else the word of this package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from cytoglot.errors import InputError, nearest_names

#: canonical field → column names that mean it, best first (compared in lower case with `_` for other signs).
OBS_FIELDS: Mapping[str, tuple[str, ...]] = {
    "cell_type": (
        "cell_type",
        "celltype",
        "cell_types",
        "cell_type_label",
        "cell_label",
        "author_cell_type",
        "annotation",
        "cell_annotation",
        "cell_ontology_class",
        "free_annotation",
        "bulk_labels",
        "seurat_annotations",
        "predicted_celltype",
    ),
    "donor_id": ("donor_id", "donor", "individual", "individual_id", "patient", "patient_id", "subject", "subject_id"),
    "batch": (
        "batch",
        "batch_id",
        "sample",
        "sample_id",
        "orig_ident",
        "library",
        "library_id",
        "channel",
        "lane",
        "plate",
        "run",
        "gem_group",
    ),
    "dataset_id": ("dataset_id", "dataset", "study", "study_id", "project", "source_study", "gse"),
    "organism": ("organism", "species"),
    "tissue": ("tissue", "organ", "tissue_general", "tissue_site"),
    "disease": ("disease", "diagnosis", "disease_state", "disease_status"),
    "assay": ("assay", "technology", "tech", "protocol", "platform", "chemistry", "library_platform"),
    "sex": ("sex", "gender"),
    "development_stage": ("development_stage", "age", "developmental_stage", "stage", "donor_age"),
    "condition": ("condition", "treatment", "stimulation", "stim"),
    "perturbation": ("perturbation", "perturbed_gene", "guide_target", "gene_target", "target_gene", "perturbations"),
    "section": ("section", "slice", "slide"),
    "niche": ("niche", "region", "spatial_domain", "layer_annotation"),
    "dose": ("dose", "dose_value", "concentration"),
    "time": ("time", "time_point", "timepoint"),
}

#: fields whose values name groups of cells that share technical or personal traits; splits keep them whole.
GROUP_FIELDS: tuple[str, ...] = ("donor_id", "batch", "dataset_id")

#: cell-type values that mean "no label", in lower case.
UNLABELED: frozenset[str] = frozenset(
    {"unlabeled", "unlabelled", "unassigned", "unknown", "nan", "none", "na", "n/a", "<na>", ""}
)

#: group values that name no group: the verdicts of demultiplexing (demuxlet, HTODemux, vireo) beside missing ones.
NOT_A_GROUP: frozenset[str] = UNLABELED | {"doublet", "doublets", "multiplet", "ambiguous", "negative"}

#: species by the words that a file may use.
COMMON_NAMES: Mapping[str, str] = {"homo sapiens": "human", "mus musculus": "mouse"}


def recognise_obs(obs: pd.DataFrame) -> dict[str, str]:
    """Return canonical field → column of `obs`, for the fields that are there.

    Columns are recognised by name alone: case, dots, dashes and spaces do not matter. Where several columns mean the
    same field the first synonym of `OBS_FIELDS` wins. Columns not known are left out.
    """
    by_name: dict[str, str] = {}
    for column in obs.columns:
        by_name.setdefault(_normal_name(str(column)), str(column))
    found = {}
    for field, synonyms in OBS_FIELDS.items():
        column_found = next((by_name[s] for s in synonyms if s in by_name), None)
        if column_found is not None:
            found[field] = column_found
    return found


def labels(obs: pd.DataFrame, column: str) -> pd.Series:
    """Return the labels of `column` as stripped strings, NaN where missing or a value of `UNLABELED`.

    The index is that of `obs`, the dtype is object whatever the column held, and `obs` is not changed.

    Raises
    ------
    InputError
        There is no such column (the message lists those that are there), or it occurs twice.
    """
    return _texts(obs, column, UNLABELED)


def group_values(obs: pd.DataFrame, column: str) -> pd.Series:
    """Return the group (donor, batch, study) of each cell, NaN where missing or a value of `NOT_A_GROUP`.

    Raises
    ------
    InputError
        There is no such column, or it occurs twice.
    """
    return _texts(obs, column, NOT_A_GROUP)


def tidied(name: str, values: pd.Index | NDArray[Any]) -> pd.Categorical:
    """Return the text of each value: stripped, NaN for words that mean no value, the common name of a species."""
    non_values = NOT_A_GROUP if name in GROUP_FIELDS else UNLABELED
    texts: list[str | None] = []
    for value in values:
        text = "" if pd.isna(value) else str(value).strip()
        text = COMMON_NAMES.get(text.lower().replace("_", " "), text) if name == "organism" else text
        texts.append(None if text.lower() in non_values else text)
    return pd.Categorical(texts, categories=sorted({text for text in texts if text is not None}))


def tidy_values(name: str, values: pd.Series) -> list[Any]:
    """Return the texts of a column as `tidied`, one for each cell, NaN where there is none."""
    codes, found = pd.factorize(values)
    return tidied(name, found).take(codes, allow_fill=True).tolist()


def _texts(obs: pd.DataFrame, column: str, non_values: frozenset[str]) -> pd.Series:
    if column not in obs.columns:
        known = [str(c) for c in obs.columns]
        listed = ", ".join(repr(c) for c in known) or "none"
        nearest = nearest_names(column, known)
        hint = f" ({nearest})" if nearest.startswith("did you mean") else ""  # else it lists them again
        raise InputError(f"obs has no column {column!r}; its columns are: {listed}{hint}")
    n_columns = int((obs.columns == column).sum())
    if n_columns > 1:
        raise InputError(f"obs has {n_columns} columns named {column!r}; rename all but one")
    values = obs[column]
    missing = values.isna().to_numpy()
    texts = values.astype(object).map(lambda value: str(value).strip())
    missing = missing | texts.map(lambda text: text.lower() in non_values).to_numpy(dtype=bool)
    return texts.mask(missing).astype(object)


def _normal_name(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.strip().lower()).strip("_")
