"""A linear head on the cell sentence: the cell type from the ranks of all genes, without the language model.

It reads the whole sentence where the language model reads its first words, and is level with logistic regression on
expression. Averaged with the likelihoods of the language model it is a *hybrid*, and called so wherever it is used.

Axes: n cells, g genes, k labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import fingerprint_bytes
from cytoglot.sentence.cell_sentence import CellSentences

HEAD_FILE = "sentence_head.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class SentenceHead:
    """Softmax regression on `rank_features`."""

    coefficients_kg: NDArray[np.float32]
    """(k, g), in the order of the model's labels and genes"""
    intercept_k: NDArray[np.float32]

    def log_probabilities(self, sentences: CellSentences) -> NDArray[np.float64]:
        """Return log p(label | cell) in nats, (n, k), of whole sentences over the model's genes."""
        return np.asarray(log_softmax(rank_features(sentences) @ self.coefficients_kg.T + self.intercept_k, axis=1))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all its numbers."""
        return fingerprint_bytes([self.coefficients_kg.tobytes(), self.intercept_k.tobytes()])

    def save(self, folder: str | Path) -> None:
        """Write `sentence_head.safetensors` into a model folder, atomically."""
        with atomic_path(Path(folder) / HEAD_FILE) as path:
            save_file({"coefficients": self.coefficients_kg, "intercept": self.intercept_k}, path)

    @classmethod
    def load(cls, folder: str | Path, *, n_labels: int, n_genes: int) -> SentenceHead | None:
        """Read the head of a model folder; None where there is none.

        Raises
        ------
        InputError
            It is of another number of labels or genes.
        ResourceError
            The file is damaged.
        """
        path = Path(folder) / HEAD_FILE
        if not path.is_file():
            return None
        try:
            found = load_file(path)
            head = cls(coefficients_kg=found["coefficients"], intercept_k=found["intercept"])
        except (SafetensorError, OSError, KeyError) as error:
            raise ResourceError(f"{path} is damaged ({error}); copy the model folder again") from error
        if head.coefficients_kg.shape != (n_labels, n_genes):
            raise InputError(
                f"{path} is of {head.coefficients_kg.shape} labels and genes, the model of {(n_labels, n_genes)}; copy "
                "the model folder again"
            )
        return head


def rank_features(sentences: CellSentences) -> csr_matrix:
    """Return 1 / log2(rank + 1) of each gene of a sentence, 0 of all others, (n, g): 1 for the first gene."""
    values = (1 / np.log2(1.0 + sentences.ranks())).astype(np.float32)
    shape = (len(sentences), len(sentences.vocabulary))
    return csr_matrix((values, sentences.gene_ids.astype(np.int32), sentences.offsets), shape=shape)
