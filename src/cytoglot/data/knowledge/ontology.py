"""Cell-type labels → Cell Ontology (CL) terms, with a report of what did not map.

The table in the package holds the labels of common data sets of blood, pancreas, lung, brain and a few more tissues; a
larger one of the same form can be passed. Nothing is guessed by string distance: a wrong id is worse than none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from cytoglot.data.knowledge.tables import read_table
from cytoglot.data.schema import UNLABELED

Match = Literal["label", "synonym", "numbered"]

_GREEK = str.maketrans({"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon"})
_WORDS = {"mono": "monocyte", "mac": "macrophage", "haematopoietic": "hematopoietic", "tumour": "tumor"}


@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """Which label names which Cell Ontology term."""

    ids: Mapping[str, str | None]
    """label → CL id, None where there is none"""
    names: Mapping[str, str]
    """CL id → official label, for the ids found"""
    matched_as: Mapping[str, Match]
    """mapped label → "label" (the official one), "synonym", or "numbered": only the label without its number is known,
    so the term is broader ("Fibroblasts.2" → fibroblast)"""
    unmapped: tuple[str, ...]
    """labels without a term; values that mean "no label" are not listed"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "unmapped": list(self.unmapped)}


def map_labels(labels: Iterable[str], *, terms: str | Path | None = None) -> LabelMapping:
    """Map cell-type labels to Cell Ontology ids.

    A label is compared with official labels, then with synonyms, then once more without a trailing number ("type A",
    ".1"). Case, order of words, punctuation, plurals, "cell", "+" and "-positive" do not matter; a minus sign after a
    marker and "-negative" do ("CD25- T"). Values of `schema.UNLABELED` and missing ones give None.

    Parameters
    ----------
    labels
        Any number of labels; each is looked up once, the order of first appearance is kept.
    terms
        A larger table (TSV with columns id, label, synonyms, the last separated by "|"; may be gzipped), asked after
        the one in the package. A synonym of several terms in it is left out.

    Raises
    ------
    InputError
        `terms` does not exist or lacks a column.
    """
    tables = [_package_table()] + ([] if terms is None else [_make_table(_read(terms))])
    ids: dict[str, str | None] = {}
    names: dict[str, str] = {}
    matched: dict[str, Match] = {}
    for label in dict.fromkeys(str(label) for label in labels if not pd.isna(label)):
        found = next((hit for table in tables if (hit := table.find(label)) is not None), None)
        ids[label] = None if found is None else found[0]
        if found is not None:
            names[found[0]], matched[label] = found[1], found[2]
    unmapped = tuple(label for label, cl in ids.items() if cl is None and label.strip().lower() not in UNLABELED)
    return LabelMapping(ids=ids, names=names, matched_as=matched, unmapped=unmapped)


def label_key(label: str) -> str:
    """Return what of a label counts when labels are compared; empty for one without letters and digits."""
    return " ".join(sorted(_words(label)))


@dataclass(frozen=True)
class _Table:
    by_label: Mapping[str, str]
    by_synonym: Mapping[str, str]
    names: Mapping[str, str]

    def find(self, label: str) -> tuple[str, str, Match] | None:
        words = _words(label)
        key, shorter = " ".join(sorted(words)), " ".join(sorted(_without_number(words)))
        if key in self.by_label:
            cl, how = self.by_label[key], "label"
        elif key in self.by_synonym:
            cl, how = self.by_synonym[key], "synonym"
        elif shorter and shorter != key and (shorter in self.by_label or shorter in self.by_synonym):
            cl, how = self.by_label.get(shorter) or self.by_synonym[shorter], "numbered"
        else:
            return None
        return cl, self.names[cl], how  # type: ignore[return-value]


@cache
def _package_table() -> _Table:
    with resources.as_file(resources.files("cytoglot.data.knowledge").joinpath("cell_ontology_labels.tsv")) as path:
        return _make_table(_read(path))


def _read(path: str | Path) -> pd.DataFrame:
    return read_table(path, ["id", "label", "synonyms"], comment="#")


def _make_table(frame: pd.DataFrame) -> _Table:
    synonyms = frame["synonyms"].str.split("|").explode()
    pairs = pd.DataFrame({"key": synonyms.map(label_key), "id": frame["id"].reindex(synonyms.index)})
    pairs = pairs[pairs["key"] != ""].drop_duplicates()
    single = pairs[~pairs["key"].duplicated(keep=False)]
    label_keys = frame["label"].map(label_key)
    first = ~label_keys.duplicated()
    return _Table(
        by_label=dict(zip(label_keys[first], frame.loc[first, "id"], strict=True)),
        by_synonym=dict(zip(single["key"], single["id"], strict=True)),
        names=dict(zip(frame["id"], frame["label"], strict=True)),
    )


def _words(label: str) -> list[str]:
    text = unicodedata.normalize("NFKC", label).lower().translate(_GREEK).replace("_", " ")
    text = re.sub(r"[- ]positive\b", "+", text)
    text = re.sub(r"[- ]negative\b", "-", text)
    text = re.sub(r"(?<=[a-z0-9])-(?![a-z0-9])", "neg ", text)  # CD25- is one word, and not CD25
    is_plural = re.compile(r".{3,}(?<!s)(?<!u)(?<!i)s").fullmatch
    words = [word[:-1] if is_plural(word) else word for word in re.findall(r"[^\W_]+", text)]
    return [_WORDS.get(word, word) for word in words if word != "cell"]


def _without_number(words: list[str]) -> list[str]:
    """Drop a trailing "1", "2a", "type 1" or "type A"."""
    typed = len(words) > 2 and words[-2] == "type" and re.fullmatch(r"\d*[a-z]?", words[-1])
    numbered = len(words) > 1 and re.fullmatch(r"\d+[a-z]?", words[-1])
    return words[:-2] if typed else words[:-1] if numbered else words
