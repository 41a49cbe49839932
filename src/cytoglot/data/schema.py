"""What the columns of `obs` mean: canonical field names, their usual synonyms, and values that are not values.

The canonical names are those of the CELLxGENE schema where it has one, else the word of this package.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
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


def recognize_obs(obs: pd.DataFrame) -> dict[str, str]:
    """Return canonical field → column of `obs`, for the fields that are there.

    Columns are recognized by name alone: case, dots, dashes and spaces do not matter. Where several columns mean the
    same field the first synonym of `OBS_FIELDS` wins. Columns not known are left out.
    """
    by_name: dict[str, str] = {}
    for column in obs.columns:
        by_name.setdefault(re.sub(r"[^a-z0-9]+", "_", str(column).strip().lower()).strip("_"), str(column))
    found = {field: [by_name[s] for s in synonyms if s in by_name] for field, synonyms in OBS_FIELDS.items()}
    return {field: columns[0] for field, columns in found.items() if columns}


def group_columns(obs: pd.DataFrame) -> list[str]:
    """Return the columns of donors, batches and data sets, among which a split or a resampling chooses."""
    found = recognize_obs(obs)
    return [found[field] for field in GROUP_FIELDS if field in found]


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
    for value, text in zip(values, value_texts(values), strict=True):
        text = "" if pd.isna(value) else text
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
    if isinstance(values.dtype, pd.CategoricalDtype):
        texts = np.array([*value_texts(values.cat.categories), ""], dtype=object)[values.cat.codes]  # −1 is the last
    else:
        texts = np.array(value_texts(values), dtype=object)
    missing = values.isna().to_numpy() | np.array([text.lower() in non_values for text in texts], dtype=bool)
    return pd.Series(texts, index=obs.index, name=values.name, dtype=object).mask(missing)


def value_texts(values: pd.Series | pd.Index | NDArray[Any]) -> list[str]:
    """Return `value_text` of each value; a missing one gives some text."""
    return [value_text(value) for value in np.asarray(values)]  # pandas would hand out 32-bit floats as 64-bit ones


def value_text(value: object) -> str:
    """Return the text of one value of `obs`, stripped; the same for 1, 1.0 and "1", whatever the type of the column.

    A single missing value turns a column of integers into floats; it must not turn label 1 into label 1.0. Texts are
    left as they are: "1.0" and "1" may stand for two things in one column.
    """
    if isinstance(value, (float, np.floating)) and value.is_integer() and abs(float(value)) < 2**53:
        return str(int(value))
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def unlike_in_spelling(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return name → known one that differs in case, spaces, hyphens, underscores or the notation of a number alone.

    A sign that ends a word is kept: CD4+ and CD4- are two types.
    """
    folded: dict[str, list[str]] = {}
    for name in known:
        folded.setdefault(_folded(name), []).append(name)
    pairs = {name: [other for other in folded.get(_folded(name), ()) if other != name] for name in names}
    return {name: others[0] for name, others in pairs.items() if others}


def _folded(name: str) -> str:
    number = re.sub(r"^(-?\d+)\.0+$", r"\1", name.strip())
    return re.sub(r"[\s_]+|(?<=\w)-(?=\w)", "", unicodedata.normalize("NFKC", number).casefold())
