"""The profile of each kind of cell: which genes such cells have, as Plackett–Luce weights, before any gene is written.

A model with a profile writes genes with the probability exp(logit + log weight of the gene), over the genes not yet
written: a product of what such cells have in common and of what the language model knows beyond it. The model is
trained so, and every use of it adds the same weights.

Axes: c conditions, g genes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import WordWeights
from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import fingerprint_bytes
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.plackett_luce import PlackettLuce, fit_plackett_luce

PROFILE_FILE = "profile.safetensors"
_TENSOR = "log_weights"


@dataclass(frozen=True, kw_only=True, eq=False)
class CellProfile:
    """Log weights of the genes for each condition: values of some fields of the metadata."""

    fields: tuple[str, ...]
    """what a condition consists of, such as ("cell_type", "condition"), the most important first"""
    conditions: tuple[tuple[str, ...], ...]
    """the values of each row: of the first fields, or of all. The first row has none: nothing is known"""
    log_weights_cg: NDArray[np.float16]
    """natural logarithms, (c, g); shifted so that the mean over the genes is 0, which changes no probability"""
    vocabulary_fingerprint: str

    def row(self, metadata: Mapping[str, str]) -> int:
        """Return the row of what is known: the longest condition that training cells had, else the one of all cells."""
        known: list[str] = []
        for name in self.fields:
            if name not in metadata or (*known, metadata[name]) not in self._rows:
                break
            known.append(metadata[name])
        return self._rows[tuple(known)]

    def weights(self, metadata: Mapping[str, str]) -> WordWeights:
        """Return the weights of the genes for what is known of a cell; the same object each time."""
        return self._weights[self.row(metadata)]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that it says."""
        names = json.dumps([self.fields, self.conditions, self.vocabulary_fingerprint])
        return fingerprint_bytes([names.encode(), self.log_weights_cg.tobytes()])

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], int]:
        return {condition: row for row, condition in enumerate(self.conditions)}

    @cached_property
    def _weights(self) -> tuple[WordWeights, ...]:
        return tuple(WordWeights(row.astype(np.float32)) for row in self.log_weights_cg)

    def save(self, folder: str | Path) -> None:
        """Write `profile.safetensors` into a model folder, atomically."""
        from safetensors.numpy import save_file

        facts = {"fields": self.fields, "conditions": self.conditions, "vocabulary": self.vocabulary_fingerprint}
        with atomic_path(Path(folder) / PROFILE_FILE) as path:
            save_file({_TENSOR: self.log_weights_cg}, path, metadata={"profile": json.dumps(facts)})

    @classmethod
    def load(cls, folder: str | Path, *, vocabulary_fingerprint: str) -> CellProfile | None:
        """Read the profile of a model folder; None where there is none.

        Raises
        ------
        InputError
            It is of other genes than the model's.
        ResourceError
            The file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / PROFILE_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()["profile"])
                log_weights_cg = file.get_tensor(_TENSOR)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ResourceError(f"{path} is damaged ({error}); copy the model folder again") from error
        if facts["vocabulary"] != vocabulary_fingerprint:
            raise InputError(
                f"{path} is of other genes than the model (vocabulary {facts['vocabulary']}, expected "
                f"{vocabulary_fingerprint}); copy the model folder again"
            )
        return cls(
            fields=tuple(facts["fields"]),
            conditions=tuple(map(tuple, facts["conditions"])),
            log_weights_cg=log_weights_cg,
            vocabulary_fingerprint=vocabulary_fingerprint,
        )


def fit_profile(
    sentences: CellSentences,
    metadata: Mapping[str, Sequence[str | None] | NDArray[np.object_]],
    *,
    fields: Sequence[str] = ("cell_type",),
    top_genes: int | None = None,
    shrink: float = 20.0,
) -> CellProfile:
    """Fit the profile of some training cells.

    Parameters
    ----------
    sentences
        n cells.
    metadata
        Field → value of each cell, None where it is not known. A field that is absent is known of no cell.
    fields
        What a condition consists of, the most important first. A cell whose first field is not known counts for all
        cells alone.
    top_genes
        Genes of a cell that count; None for all.
    shrink
        Pseudo-cells that draw each condition towards the one with a field less, and in the end towards all cells.
    """
    n_genes, rows = len(sentences.vocabulary), range(len(sentences))
    columns = [metadata.get(name, [None] * len(sentences)) for name in fields]
    everything = fit_plackett_luce([sentences.ids(i)[:top_genes] for i in rows], n_genes)
    fitted: dict[tuple[str, ...], PlackettLuce] = {(): everything}
    for depth in range(1, len(fields) + 1):
        known = {i: tuple(str(column[i]) for column in columns[:depth])
                 for i in rows if all(column[i] is not None for column in columns[:depth])}  # fmt: skip
        for condition, some in groupby(sorted(known, key=lambda i: (known[i], i)), key=lambda i: known[i]):
            fitted[condition] = fit_plackett_luce(
                [sentences.ids(i)[:top_genes] for i in some], n_genes, parent=fitted[condition[:-1]], shrink=shrink
            )
    log_weights_cg = np.log(np.stack([one.weights_g for one in fitted.values()]))
    # Centred, so that float16 has its digits where they count; at the ends of its range nothing is lost that matters.
    log_weights_cg -= log_weights_cg.mean(axis=1, keepdims=True)
    return CellProfile(
        fields=tuple(fields),
        conditions=tuple(fitted),
        log_weights_cg=log_weights_cg.astype(np.float16),
        vocabulary_fingerprint=sentences.vocabulary.fingerprint,
    )
