"""Judge a trained model on cells that it never saw, beside baselines fitted on the same training cells.

The folder that is written holds everything the report needs; nothing in it is computed again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.applications.annotation import label_probabilities
from cytoglot.applications.forecast import forecast_cells
from cytoglot.atomic import atomic_path, check_output_folder, write_json
from cytoglot.benchmark.baselines import BASELINES
from cytoglot.benchmark.generation import evaluate_generation
from cytoglot.benchmark.maps import two_maps
from cytoglot.benchmark.probe import linear_probe
from cytoglot.benchmark.reconstruction import curve_on_cells
from cytoglot.benchmark.results import OURS, Prediction, ResultRow, annotation_rows, difference_rows
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, VocabularyOverlap, as_cell_model, load_cell_model
from cytoglot.cell_model.spec import TRAINING_FILE, CellModelSpec, load_split
from cytoglot.config import Settings
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import AS_NAMED, DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.read import read
from cytoglot.data.schema import GROUP_FIELDS, group_values, recognize_obs, unlike_in_spelling
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.content import content_of_cells
from cytoglot.data.splits.leakage import leakage_report
from cytoglot.data.splits.matching import MatchedCells, match_cells
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.manifest import Manifest
from cytoglot.metrics.classification import calibration_bins, confusion, per_class
from cytoglot.metrics.uncertainty import resampling_unit
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


class EvaluateSettings(Settings):
    """What is measured."""

    control: bool = True
    """retrain the model on shuffled labels, with the same recipe; it must reach chance"""
    generation: bool = True
    """compare generated with real cells"""
    probe: bool = True
    """a linear classifier on the embeddings"""
    max_generated: int = 20
    """generated cells of each type at most"""
    maps: bool = True
    """two-dimensional maps of the test cells (needs the report extra)"""


@dataclass(kw_only=True)
class Evaluation:
    """What was measured and where it lies."""

    folder: Path
    results: list[ResultRow]
    messages: list[str] = field(default_factory=list)
    cells: dict[str, int] = field(default_factory=dict)
    """cells of each kind; see `data.splits.matching.MatchedCells`"""
    unknown_labels: list[str] = field(default_factory=list)
    """labels of judged cells that the model does not know"""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The cells of one evaluation: training cells for the baselines, validation cells for their choices, test cells."""

    adata: AnnData
    labels: NDArray[np.object_]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    split: Split
    matched: MatchedCells
    unit: str
    groups: NDArray[np.object_] | None
    """resampling unit of each test cell"""


def evaluate(
    source: AnnData | str | Path,
    model: CellModel | LanguageModel | str | Path,
    *,
    label: str | None = None,
    out: str | Path,
    settings: EvaluateSettings | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    new_cells: bool = False,
    min_overlap: float = MIN_OVERLAP,
    seed: int = 0,
    device: str = "auto",
) -> Evaluation:
    """Evaluate `model` on the test cells of its own split and on new cells, and write the evaluation folder.

    Parameters
    ----------
    source
        The file that the model was trained from (its training cells fit the baselines, its test cells are judged), or
        another one. Training and validation cells are never judged, whatever their names are: cells are known by what
        they hold. Cells that the model's split knows neither by name nor by content are new, and judged.
    model
        A cell model, or its folder or name on the hub.
    label
        Column of the true cell types; by default the one the model was trained on.
    layer, gene_options
        Which matrix is read, and how its columns become genes.
    out
        Folder for the results; a new one, or one of an earlier evaluation.
    settings
        What is computed; by default all of it.
    seed
        Of the baselines, the control, generated cells and resampling.
    device
        Of the model, if it is loaded here.
    new_cells
        Cells that are named as cells of the split but hold other values are other cells.
    min_overlap
        Least share of the model's genes that the cells must have.

    Raises
    ------
    InputError
        There is no test cell with a label (every cell was used for training or validation), the model has no split,
        cells are named as cells of the split and hold other values (unless `new_cells`), or `out` holds other things
        than an evaluation.

    Examples
    --------
    >>> import cytoglot as cg
    >>> from cytoglot.benchmark.evaluate import EvaluateSettings
    >>> fast = EvaluateSettings(control=False, generation=False, probe=False, maps=False)  # the predictions alone
    >>> evaluation = cg.evaluate("cells.h5ad", "model", label="cell_type", out="evaluation", settings=fast)
    >>> [row.method for row in evaluation.results if row.metric == "accuracy"][:2]
    ['cytoglot', 'majority']
    """
    check_output_folder(Path(out), written_by="evaluate", mark="results.json")
    settings = settings or EvaluateSettings()
    model = as_cell_model(model, device=device)
    found = resolve_source(source) if isinstance(source, (str, Path)) else source
    adata = read(found, layer=layer, **gene_options.keywords)
    # First, since cells with other genes would seem to be cells with other values.
    sentences, overlap = model.sentences(adata, gene_options=AS_NAMED, min_overlap=min_overlap)
    held_out = held_out_cells(adata, model, label=label, new_cells=new_cells)
    work = _Work(model=model, held_out=held_out, settings=settings, sentences=sentences, overlap=overlap, seed=seed)
    folder = Path(out)
    with atomic_path(folder) as partial:
        partial.mkdir()
        work.run(partial, control_folder=folder.parent / f".{folder.name}.control")
    return Evaluation(
        folder=folder,
        results=work.rows,
        messages=work.messages,
        cells=held_out.matched.counts,
        unknown_labels=work.unknown_labels,
    )


def forecast_evaluation(
    source: AnnData | Path,
    model: str | Path,
    settings: EvaluateSettings,
    *,
    layer: str | None,
    gene_options: GeneOptions,
    min_overlap: float = MIN_OVERLAP,
    device: str = "auto",
) -> dict[str, Any]:
    """Forecast the model's own time from a few cells; for the control it is the time that its training took."""
    loaded = load_cell_model(model, device=device)
    forecast = forecast_cells(
        loaded, source, passes=loaded.spec.views + 1, layer=layer, gene_options=gene_options, min_overlap=min_overlap
    )
    training = Path(model) / TRAINING_FILE
    history = json.loads(training.read_text(encoding="utf-8"))["history"] if training.is_file() else []
    control = float(history[-1]["seconds"]) if history and settings.control else 0.0
    rest = 20.0 + (15.0 if settings.maps else 0.0) + (10.0 if settings.generation else 0.0)
    return forecast | {
        "seconds": round(forecast["seconds"] + control + rest, 1),
        "control_seconds": round(control, 1),
        "disk_mb": 5.0,
    }


def held_out_cells(adata: AnnData, model: CellModel, *, label: str | None, new_cells: bool = False) -> HeldOut:
    """Sort the cells of a file by the split of the model; cells without a label are left out."""
    column = label or model.spec.label_column
    if column is None:
        raise InputError("this model was not trained on a label column; pass --label")
    if model.folder is None or (split := load_split(model.folder)) is None:
        raise InputError("this model has no stored split, so training cells cannot be told from others")
    series = read_labels(adata.obs, column)
    labels = np.array([None if pd.isna(value) else str(value) for value in series], dtype=object)
    content = content_of_cells(adata, model.spec.vocabulary)
    matched = match_cells(split, adata.obs_names, content, new_cells=new_cells)
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
        matched=matched,
        unit=unit,
        groups=groups,
    )


def _unknown_labels(truth: NDArray[np.object_], unknown: Sequence[str], known: Sequence[str]) -> str:
    """Say which labels the model cannot give, and which it knows in another spelling."""
    n = int(np.isin(truth, list(unknown)).sum())
    shown = ", ".join(repr(name) for name in unknown[:5]) + (", …" if len(unknown) > 5 else "")
    text = f"{n} of {len(truth)} judged cells have labels that the model does not know and count as wrong: {shown}"
    if n == len(truth):
        text = f"no label of the judged cells is known to the model, so no answer can be right: {shown}; "
        text += "it knows " + ", ".join(map(repr, known[:5])) + (", …" if len(known) > 5 else "")
    pairs = [f"{ours!r} for {theirs!r}" for theirs, ours in unlike_in_spelling(unknown, known).items()]
    return f"{text}; other spellings are not the same label, it has {', '.join(pairs)}" if pairs else text


@dataclass(kw_only=True)
class _Work:
    """One evaluation, step by step; each step writes its own file."""

    model: CellModel
    held_out: HeldOut
    settings: EvaluateSettings
    sentences: CellSentences
    overlap: VocabularyOverlap
    seed: int
    rows: list[ResultRow] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.messages = list(self.held_out.matched.messages)
        self.truth = self.held_out.labels[self.held_out.test]
        self.unknown_labels = sorted(set(self.truth) - set(self.model.spec.labels))
        if self.unknown_labels:
            self.messages.append(_unknown_labels(self.truth, self.unknown_labels, self.model.spec.labels))
        for message in self.messages:
            logger.warning("%s", message)

    def run(self, folder: Path, *, control_folder: Path) -> None:
        """Do everything and write it into `folder`."""
        held, seed = self.held_out, self.seed
        predictions = self._predictions(control_folder)
        options: dict[str, Any] = {"groups": held.groups, "unit": held.unit, "seed": seed}
        self.rows += annotation_rows(self.truth, predictions, **options)
        others = [p for p in predictions if not p.method.startswith("cytoglot")]
        for ours in predictions[:2] if self.settings.probe and len(predictions) > 1 else predictions[:1]:
            self.rows += difference_rows(self.truth, ours, others, **options)
        self._write_predictions(folder, predictions)
        if self.settings.generation and len(held.train):
            with self._timed("generation"):
                result = evaluate_generation(
                    self.model,
                    self.model.truncate(self.sentences[held.train]),
                    held.labels[held.train],
                    self.model.truncate(self.sentences[held.test]),
                    self.truth,
                    max_cells=self.settings.max_generated,
                    seed=seed,
                )
            self.rows += result.rows
            write_json(folder / "generation.json", {"per_type": result.per_type, "generated_vs_real_2d": result.points})
        with self._timed("reconstruction"):  # the model's own rank curve
            row, content = curve_on_cells(self.model, held.adata, self.sentences, held.test, seed=seed)
        self.rows.append(row)
        write_json(folder / "reconstruction.json", content)
        if self.settings.maps:
            with self._timed("maps"):
                table = two_maps(self.embedding_nd, held.adata, held.test, held.labels, seed=seed)
            table.to_parquet(folder / "embedding_2d.parquet", index=False)
        self._write_cards(folder)

    def _predictions(self, control_folder: Path) -> list[Prediction]:
        """Our own first, then the linear probe, the baselines and the control."""
        held = self.held_out
        with self._timed("annotation by scoring"):
            predictions = [Prediction.of(OURS, label_probabilities(self.model, self.sentences[held.test]))]
        with self._timed("embedding"):
            self.embedding_nd = self.model.embeddings(self.sentences)
        if len(held.train) == 0:
            self.messages.append("baselines and controls are not shown: the file holds no training cell of the model")
            return predictions
        if self.settings.probe:
            with self._timed("linear probe"):
                labels, probability_nk = linear_probe(
                    self.embedding_nd,
                    held.labels,
                    train=held.train,
                    validation=held.validation,
                    test=held.test,
                    seed=self.seed,
                )
            predictions.append(Prediction(method=f"{OURS} linear probe", labels=labels, probability_nk=probability_nk))
        for name, baseline in BASELINES.items():
            with self._timed(name):
                fitted = baseline(seed=self.seed).fit(
                    held.adata[held.train],
                    held.labels[held.train],
                    held.adata[held.validation] if len(held.validation) else None,
                    held.labels[held.validation],
                )
                logger.info("%s: chosen on validation cells: %s", name, dict(fitted.chosen) or "nothing")
                probability_nk = fitted.predict_proba(held.adata[held.test])
            predictions.append(Prediction(method=name, labels=fitted.labels, probability_nk=probability_nk))
        if self.settings.control:
            recipe = TrainRecipe.model_validate(self.model.spec.manifest["config"]["recipe"])
            reason = self._no_control(recipe)
            if reason is None:
                try:
                    with self._timed("control: retraining on shuffled labels"):
                        predictions.append(self._control(recipe, control_folder))
                except InputError as error:  # such as a base model that has moved: no reason to lose the rest
                    reason = str(error)
                finally:
                    shutil.rmtree(control_folder, ignore_errors=True)
            if reason is not None:
                self.messages.append(f"the control on shuffled labels is not shown: {reason}")
        return predictions

    def _no_control(self, recipe: TrainRecipe) -> str | None:
        """Return why a model that is trained again on shuffled labels would tell nothing."""
        if recipe.kind == "grpo":
            return "alignment learns from rewards and not from labels; evaluate the model that it started from"
        base = recipe.model.base
        if base is None:
            return None
        split, adata = load_split(base), self.held_out.adata
        if split is not None:
            content = content_of_cells(adata, CellModelSpec.load(base).vocabulary)
            known = match_cells(split, adata.obs_names, content, new_cells=split.content is not None)
            if (known.part == "train").any():
                return f"its base model {Path(base).name} has learned labels of these cells; evaluate that one"
        self.messages.append(
            "the control on shuffled labels starts from the base model as the model did; it need not be at chance "
            "where that one knows labels of these cells"
        )
        return None

    def _control(self, recipe: TrainRecipe, folder: Path) -> Prediction:
        held = self.held_out
        control = train(
            held.adata,
            label=str(self.model.spec.label_column),
            out=folder,
            recipe=recipe.model_copy(update={"control": "shuffled_labels", "report_to": ()}),
            split=held.matched.split_of(held.adata.obs_names, held.split),
            gene_options=AS_NAMED,
            seed=self.seed,
            device=str(self.model.lm.device),
            overwrite=True,
        )
        sentences, _ = control.sentences(held.adata[held.test], gene_options=AS_NAMED)
        return Prediction.of("control: shuffled labels", label_probabilities(control, sentences))

    def _write_predictions(self, folder: Path, predictions: list[Prediction]) -> None:
        ours = predictions[0]
        held = self.held_out
        table = pd.DataFrame({"cell_id": held.adata.obs_names[held.test].astype(str), "truth": self.truth})
        if held.groups is not None:
            table["unit"] = held.groups
        for prediction in predictions:
            table[f"predicted: {prediction.method}"] = prediction.best
            table[f"confidence: {prediction.method}"] = prediction.confidence
        table.to_parquet(folder / "predictions.parquet", index=False)
        matrix = confusion(self.truth, ours.best)
        write_json(folder / "confusion.json", {"labels": list(matrix.labels), "counts": matrix.counts.tolist()})
        write_json(
            folder / "per_class.json",
            [{"method": p.method, **asdict(s)} for p in predictions for s in per_class(self.truth, p.best)],
        )
        bins = calibration_bins(ours.confidence, self.truth == ours.best)
        write_json(
            folder / "calibration.json",
            [
                {"bin_low": b.low, "bin_high": b.high, "confidence": b.confidence, "accuracy": b.accuracy, "n": b.n}
                for b in bins
            ],
        )

    def _write_cards(self, folder: Path) -> None:
        held, spec = self.held_out, self.model.spec
        card = {
            "n_cells": held.adata.n_obs,
            "n_genes": held.adata.n_vars,
            "matrix": dict(held.adata.uns["cytoglot"]["matrix"]),
            "n_train": len(held.train),
            "n_validation": len(held.validation),
            "n_test": len(held.test),
            "split_by": held.split.by,
            "unit": held.unit,
            "labels": {name: int((held.labels == name).sum()) for name in sorted(set(held.labels) - {None})},
            "labels_unseen_in_training": self.unknown_labels,
            "cells": held.matched.counts,
            "vocabulary": str(self.overlap),
            "leakage": leakage_report(held.adata.obs, held.split, held.adata.X, part=held.matched.part),
            "calibration": asdict(spec.calibration),
            "messages": self.messages,
        }
        write_json(folder / "data_card.json", card)
        write_json(folder / "results.json", {"results": [asdict(row) for row in self.rows], "meta": {"method": OURS}})
        write_json(folder / "timings.json", {name: round(seconds, 3) for name, seconds in self.timings.items()})
        training = Path(str(self.model.folder)) / TRAINING_FILE
        if training.is_file():
            (folder / "training.json").write_bytes(training.read_bytes())
        manifest = Manifest(
            command="evaluate",
            config={"settings": self.settings.model_dump(), "model": dict(spec.manifest)},
            seeds={"seed": self.seed},
            inputs={"vocabulary": spec.vocabulary.fingerprint},
        )
        write_json(folder / "manifest.json", manifest.to_dict())

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - started
        logger.info("%s: %.1f s", name, self.timings[name])
