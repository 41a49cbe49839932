"""`cytoglot.json`: what a language model needs to speak of cells, and the split that it was trained with.

The model folder is an ordinary Hugging Face folder; these two files lie beside the weights. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.atomic import write_json
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.sentence.cell_sentence import RankSettings

SPEC_FILE = "cytoglot.json"
SPLIT_FILE = "split.json"
TRAINING_FILE = "training.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class HybridCalibration:
    """How the sentence head is averaged with the likelihoods of the language model, fitted on validation cells."""

    head_weight: float
    """of the head's log-probabilities, 0 to 1; those of the language model have the rest"""
    temperature: float = 1.0
    threshold: float = 0.0
    validation_loss: float = 0.0
    validation_accuracy: float | None = None
    """as those of `Calibration`, of the average"""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted on validation cells and never on test cells."""

    temperature: float = 1.0
    """log-likelihoods are divided by it before they become probabilities"""
    threshold: float = 0.0
    """a cell whose best label has a lower probability is left unassigned"""
    generation_temperature: float = 1.0
    """sampling temperature of generated cells; 1 but for models of earlier versions, which fitted one"""
    generation_diversity: float | None = None
    """diversity of cells generated at that temperature divided by that of real validation cells of their types; about 1
    for a model that has learned to write cells, None where it was not measured"""
    n_validation: int = 0
    """validation cells that were scored and have a label of the training cells"""
    n_not_scored: int = 0
    """those left out because scoring all would have cost too much beside the training"""
    validation_loss: float = 0.0
    """negative log-likelihood of the true label at this temperature, nats per cell"""
    validation_accuracy: float | None = None
    """share of the validation cells whose label has the highest likelihood; None where labels were no task, and in
    models of earlier versions"""
    majority_accuracy: float | None = None
    """share of them that have the most frequent label of the training cells"""
    hybrid: HybridCalibration | None = None
    """the same of the average with the sentence head, where the model has one"""

    @property
    def method(self) -> Literal["score", "hybrid"]:
        """How cells are annotated by default: the way with the lower validation loss."""
        return "hybrid" if self.hybrid is not None and self.hybrid.validation_loss < self.validation_loss else "score"

    @property
    def in_use(self) -> Calibration | HybridCalibration:
        """Temperature, threshold and validation loss of the way in which cells are annotated by default."""
        return self.hybrid if self.hybrid is not None and self.method == "hybrid" else self

    @property
    def warning(self) -> str | None:
        """What to know of a language model that is right no more often than one label for all cells; None of others."""
        ours, majority = self.validation_accuracy, self.majority_accuracy
        if (
            ours is None or majority is None or not ours <= majority < 1
        ):  # nothing is better than one label if all have it
            return None
        text = (
            f"the language model finds the label of {ours:.0%} of {self.n_validation} validation cells, no more than "
            f"the most frequent label of the training cells does ({majority:.0%}): it has not learned to tell cell "
            "types; train it longer, with a higher learning rate or with all weights"
        )
        if self.hybrid is not None and self.method == "hybrid" and self.hybrid.validation_accuracy is not None:
            text += f" (annotate averages it with the sentence head, and finds {self.hybrid.validation_accuracy:.0%})"
        return text


@dataclass(frozen=True, kw_only=True)
class CellModelSpec:
    """The content of `cytoglot.json`."""

    vocabulary: GeneVocabulary
    """the genes that a sentence may hold, in the order of the vocabulary (highly variable ones, or all)"""
    ranking: RankSettings
    tie_rates: tuple[float, ...] | None = None
    """detection rate of each gene of the vocabulary among training cells"""
    rank_curve: Mapping[str, Any] | None = None
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    label_counts: tuple[int, ...] = ()
    """training cells of each label"""
    label_ontology_ids: Mapping[str, str] = field(default_factory=dict)
    words_per_label: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """label → sentence lengths at the 5 %, 25 %, 50 %, 75 % and 95 % quantiles of its training cells"""
    expressed_per_word: float = 1.0
    """expressed genes of a cell per word of its sentence, a mean over training cells (the rank curve asks for it)"""
    context: Mapping[str, str] = field(default_factory=dict)
    """metadata that every prompt states, such as organism and tissue"""
    tasks: tuple[str, ...] = ()
    views: int = 1
    """views of a cell averaged when annotating"""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """how far those views stray"""
    calibration: Calibration = field(default_factory=Calibration)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.label_counts):
            raise ValueError(f"{len(self.labels)} labels but {len(self.label_counts)} counts")
        if self.tie_rates is not None and len(self.tie_rates) != len(self.vocabulary):
            raise ValueError(f"{len(self.tie_rates)} tie rates for {len(self.vocabulary)} genes")

    @property
    def tie_rates_g(self) -> NDArray[np.float32] | None:
        """Detection rates as an array of shape (n_genes,), or None."""
        return None if self.tie_rates is None else np.asarray(self.tie_rates, dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Write `cytoglot.json` into `folder`, atomically."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _OBJECTS}
        value |= {
            "vocabulary": self.vocabulary.to_dict(),
            "vocabulary_fingerprint": self.vocabulary.fingerprint,
            "ranking": asdict(self.ranking),
            "calibration": asdict(self.calibration),
            "augment": self.augment.model_dump(),
        }
        write_json(Path(folder) / SPEC_FILE, value)

    @classmethod
    def load(cls, folder: str | Path) -> CellModelSpec:
        """Read `cytoglot.json` from `folder`.

        Raises
        ------
        InputError
            The folder or the file is missing, the file is of a newer format, or its vocabulary was changed by hand.
        """
        folder = Path(folder)
        path = folder / SPEC_FILE
        if not folder.is_dir():
            raise InputError(f"model folder {folder} does not exist; pass the folder that `cytoglot train -o` wrote")
        if not path.is_file():
            is_unfinished = (folder / ".work").is_dir()
            unfinished = (
                " (its training was not finished: run the same `cytoglot train` again)" if is_unfinished else ""
            )
            raise InputError(f"{folder} holds no {SPEC_FILE}, so it is not a cytoglot model folder{unfinished}")
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}); copy the model folder again") from error
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, this cytoglot reads {FORMAT_VERSION}; update cytoglot"
            )
        fingerprint = value.pop("vocabulary_fingerprint", None)
        vocabulary = GeneVocabulary.from_dict(value.pop("vocabulary"))
        if fingerprint != vocabulary.fingerprint:
            raise InputError(
                f"{folder}/{SPEC_FILE}: the gene vocabulary does not match its fingerprint {fingerprint}; "
                "the file was edited or damaged, copy the model folder again"
            )
        # JSON knows lists only.
        value |= {name: tuple(value[name]) for name in _TUPLES if value.get(name) is not None}
        value["words_per_label"] = {label: tuple(words) for label, words in value["words_per_label"].items()}
        calibration = value.pop("calibration")
        hybrid = calibration.pop("hybrid", None)
        return cls(
            vocabulary=vocabulary,
            ranking=RankSettings(**value.pop("ranking")),
            calibration=Calibration(**calibration, hybrid=None if hybrid is None else HybridCalibration(**hybrid)),
            augment=AugmentSettings(**value.pop("augment")),
            **value,
        )


_OBJECTS = {"vocabulary", "ranking", "calibration", "augment"}
_TUPLES = ("tie_rates", "labels", "label_counts", "tasks")


def save_split(split: Split, folder: str | Path) -> None:
    """Write the split by cell id beside the model."""
    write_json(Path(folder) / SPLIT_FILE, split.to_dict())


def load_split(folder: str | Path) -> Split | None:
    """Read the split of a model folder, or None for a model without one (a released checkpoint)."""
    path = Path(folder) / SPLIT_FILE
    if not path.is_file():
        return None
    return Split.from_dict(json.loads(path.read_text(encoding="utf-8")))
