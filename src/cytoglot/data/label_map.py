"""Files that say which label of a model stands for a label of other cells."""

from __future__ import annotations

from pathlib import Path

from cytoglot.config import read_yaml
from cytoglot.data.schema import value_text
from cytoglot.errors import InputError
from cytoglot.texts import read_pairs


def read_label_map(path: str | Path) -> dict[str, str]:
    """Return label of the cells → label of the model, from a CSV or TSV of two columns or a YAML mapping.

    An empty label of the model is for cells to leave out. A header needs no mark: it maps a label that no cell has.

    Raises
    ------
    InputError
        The file is missing, no text, empty or no such table or mapping, or gives a label two of the model.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        return read_pairs(path, what="label map", columns=("label of the cells", "label of the model"))
    found = read_yaml(path, what="label map")
    broken = [old for old, new in found.items() if isinstance(new, (dict, list))]
    if broken or not found:
        what = "nothing" if not found else f"{type(found[broken[0]]).__name__} for {broken[0]!r}"
        raise InputError(f"label map {path} must give each label of the cells one label of the model, found {what}")
    return {value_text(old): "" if new is None else value_text(new) for old, new in found.items()}
