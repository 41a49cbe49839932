"""Which cells are judged, and which of the same or of another file the baselines and the control are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import load_split
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.data.schema import GROUP_FIELDS, group_values, recognize_obs
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.content import content_of_cells
from cytoglot.data.splits.matching import MatchedCells, match_cells
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError, nearest_names
from cytoglot.metrics.uncertainty import resampling_unit

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The cells of one evaluation: training cells for the baselines, validation cells for their choices, test cells."""

    adata: AnnData
    """all of them; with a reference the judged file's cells, then the reference's, over the genes of both"""
    labels: NDArray[np.object_]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    split: Split
    part: NDArray[np.object_]
    """(n,) part of each cell in the model's split, "" for a new one"""
    matched: MatchedCells
    """what the model's split knows of the judged file"""
    reference: AnnData
    """the file whose training cells are used: the judged one, or another"""
    reference_matched: MatchedCells
    label_column: str
    """of the reference"""
    genes: NDArray[np.int64]
    """columns of `adata` that both files have: a baseline cannot learn from what it is not shown later"""
    messages: tuple[str, ...]
    unit: str
    groups: NDArray[np.object_] | None
    """resampling unit of each test cell"""


def held_out_cells(
    adata: AnnData,
    model: CellModel,
    *,
    label: str | None,
    new_cells: bool = False,
    label_map: Mapping[str, str] | None = None,
) -> HeldOut:
    """Sort the cells of a file by the split of the model; cells without a label are left out.

    Parameters
    ----------
    label_map
        Label of the file → label of the model, "" for cells to leave out; other labels stay as they are.

    Raises
    ------
    InputError
        There is no test cell, no label column, no split, or the map does not fit the file or the model.
    """
    column = label or model.spec.label_column
    if column is None:
        raise InputError("this model was not trained on a label column; pass --label")
    if model.folder is None or (split := load_split(model.folder)) is None:
        raise InputError("this model has no stored split, so training cells cannot be told from others")
    labels = _labels_of(adata, column)
    messages: list[str] = []
    if label_map is not None:
        labels, messages = _mapped(labels, label_map, column=column, known=model.spec.labels)
    matched = _match(adata, model, split, new_cells=new_cells)
    part = matched.part
    known = np.array([value is not None for value in labels], dtype=bool)
    test = np.flatnonzero(known & np.isin(part, ["test", ""]))
    if len(test) == 0:
        renamed = (
            f" ({matched.counts['renamed']} of the file have other names now)" if matched.counts["renamed"] else ""
        )
        raise InputError(
            f"no cell to evaluate on: {int(known.sum())} of {adata.n_obs} cells have a label, and all of these were "
            f"used for training or validation{renamed}; pass held-out cells"
        )
    # Donors or batches where there are at least five among the test cells, else cells.
    obs = adata.obs.iloc[test]
    fields = recognize_obs(obs)
    columns = {fields[name]: group_values(obs, fields[name]).to_numpy() for name in GROUP_FIELDS if name in fields}
    unit, groups = resampling_unit(columns)
    return HeldOut(
        adata=adata,
        labels=labels,
        train=np.flatnonzero(known & (part == "train")),
        validation=np.flatnonzero(known & (part == "validation")),
        test=test,
        split=split,
        part=part,
        matched=matched,
        reference=adata,
        reference_matched=matched,
        label_column=column,
        genes=np.arange(adata.n_vars),
        messages=(*messages, *matched.messages),
        unit=unit,
        groups=groups,
    )


def with_reference(held: HeldOut, reference: AnnData, model: CellModel) -> HeldOut:
    """Return the same test cells beside the training and validation cells of another file.

    Parameters
    ----------
    reference
        As `cytoglot.data.readers.read.read` returns it: the file that the model was trained from, or a part of it. Its
        labels are in the column that the model was trained on.

    Raises
    ------
    InputError
        None of its cells trained the model, it has no such labels, its values are of another kind than those of the
        judged cells, or the files have no gene in common.
    """
    import anndata

    column = model.spec.label_column or held.label_column
    labels = _labels_of(reference, column)
    # Cells with the name and not the content of a training cell were never learned from.
    matched = _match(reference, model, held.split, new_cells=held.split.content is not None)
    known = np.array([value is not None for value in labels], dtype=bool)
    chosen = np.flatnonzero(known & np.isin(matched.part, ["train", "validation"]))
    part = matched.part[chosen]
    if not (part == "train").any():
        raise InputError(
            f"none of the {reference.n_obs} cells of the reference is a training cell of the model with a label in "
            f"{column!r} (the model has {len(held.split.train)} training cells); pass the file that it was trained from"
        )
    kinds = [matrix_state_of(cells).kind for cells in (reference, held.adata)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"the reference holds {kinds[0]} values and the judged file {kinds[1]} values, so what is fitted on one "
            "cannot be asked about the other; name a matrix of the judged file with --layer, or leave the reference out"
        )
    learned = reference[chosen].copy()
    learned.obs_names = [f"reference {name}" for name in learned.obs_names]
    judged = held.adata
    # Other layers and columns of var are not needed; a gene that a file lacks is 0 in its cells.
    slim = [anndata.AnnData(X=cells.X, obs=cells.obs, var=cells.var[[]]) for cells in (judged, learned)]
    joined = anndata.concat(slim, join="outer", fill_value=0)
    joined.uns["cytoglot"] = judged.uns["cytoglot"]
    shared = judged.var_names.intersection(learned.var_names)
    if len(shared) == 0:
        raise InputError(
            f"the reference and the judged file have no gene in common (first {learned.var_names[0]!r} and "
            f"{judged.var_names[0]!r}); read both with names of one kind, see --gene-column"
        )
    n = judged.n_obs
    count = {name: int((part == name).sum()) for name in ("train", "validation")}
    message = (
        f"baselines and controls learn from {count['train']} training cells of the reference, with "
        f"{count['validation']} validation cells to choose by; the baselines see the {len(shared)} genes that both "
        "files have"
    )
    return replace(
        held,
        adata=joined,
        labels=np.concatenate([held.labels, labels[chosen]]),
        train=n + np.flatnonzero(part == "train"),
        validation=n + np.flatnonzero(part == "validation"),
        part=np.concatenate([held.part, part]),
        reference=reference,
        reference_matched=matched,
        label_column=column,
        genes=joined.var_names.get_indexer(shared),
        messages=(*held.messages, message),
    )


def _labels_of(adata: AnnData, column: str) -> NDArray[np.object_]:
    return np.array([None if pd.isna(value) else str(value) for value in read_labels(adata.obs, column)], dtype=object)


def _match(adata: AnnData, model: CellModel, split: Split, *, new_cells: bool) -> MatchedCells:
    return match_cells(split, adata.obs_names, content_of_cells(adata, model.spec.vocabulary), new_cells=new_cells)


def _mapped(
    labels: NDArray[np.object_], label_map: Mapping[str, str], *, column: str, known: tuple[str, ...]
) -> tuple[NDArray[np.object_], list[str]]:
    """Return the labels in the words of the model, and what to say about the map."""
    found = sorted({label for label in labels if label is not None})
    if not set(found) & label_map.keys():
        raise InputError(
            f"no label of column {column!r} is in the label map, which has {_listed(list(label_map))}; the column has "
            f"{_listed(found)}"
        )
    for old, new in label_map.items():
        if old in found and new and new not in known:
            raise InputError(
                f"the label map gives {old!r} the label {new!r}, which the model does not have; "
                f"{nearest_names(new, known)}"
            )
    # A pair of which neither is known is a header, or of another model.
    absent = [old for old, new in label_map.items() if old not in found and new in known]
    mapped = np.array([label_map.get(label, label) or None for label in labels], dtype=object)
    messages = (
        [f"{len(absent)} labels of the label map are not in column {column!r}: {_listed(absent)}"] if absent else []
    )
    n_left_out = sum(before is not None and after is None for before, after in zip(labels, mapped, strict=True))
    if n_left_out:
        messages.append(f"{n_left_out} cells are left out, as the label map gives them no label")
    return mapped, messages


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
