"""Judge a trained model on cells that it never saw, beside baselines fitted on the same training cells.

The folder that is written holds everything the report needs; nothing in it is computed again.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.applications.annotation import label_probabilities
from cytoglot.applications.forecast import forecast_cells
from cytoglot.atomic import atomic_path, check_output_folder, write_json
from cytoglot.benchmark.classifiers import CLASSIFIERS
from cytoglot.benchmark.generation import evaluate_generation
from cytoglot.benchmark.generation_summary import Verdict
from cytoglot.benchmark.held_out import HeldOut, held_out_cells, with_reference
from cytoglot.benchmark.maps import two_maps
from cytoglot.benchmark.probe import linear_probe
from cytoglot.benchmark.reconstruction import curve_on_cells
from cytoglot.benchmark.results import OURS, Prediction, ResultRow, annotation_rows, difference_rows
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, VocabularyOverlap, as_cell_model, load_cell_model
from cytoglot.cell_model.spec import TRAINING_FILE, CellModelSpec, load_split
from cytoglot.config import Settings
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import AS_NAMED, DEFAULT_GENES, GeneOptions
from cytoglot.data.label_map import read_label_map
from cytoglot.data.readers.read import read
from cytoglot.data.schema import unlike_in_spelling
from cytoglot.data.splits.content import content_of_cells
from cytoglot.data.splits.leakage import leakage_report
from cytoglot.data.splits.matching import match_cells
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.manifest import Manifest
from cytoglot.metrics.classification import calibration_bins, confusion, per_class
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_ANNOTATION = "cell_type_annotation"
BASELINES = ("majority", "logistic_regression", "nearest_neighbors")
"""classifiers that every evaluation shows beside the model"""


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
    verdict: Verdict | None = None
    """whether the model knows more of a cell than its type; None where generated cells were not compared"""


def evaluate(
    source: AnnData | str | Path,
    model: CellModel | LanguageModel | str | Path,
    *,
    label: str | None = None,
    out: str | Path,
    settings: EvaluateSettings | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    reference: AnnData | str | Path | None = None,
    label_map: Mapping[str, str] | str | Path | None = None,
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
    reference
        The file that the model was trained from, where `source` is another one: baselines and controls learn from its
        training cells. Its labels are in the column that the model was trained on, its matrix and genes are found.
    label_map
        Label of `source` → label of the model, where they have other names, as a mapping or a file
        (`read_label_map`); an empty label leaves the cells out, labels that it does not name stay.
    new_cells
        Cells that are named as cells of the split but hold other values are other cells.
    min_overlap
        Least share of the model's genes that the cells must have.

    Raises
    ------
    InputError
        There is no test cell with a label (every cell was used for training or validation), the model has no split,
        cells are named as cells of the split and hold other values (unless `new_cells`), `reference` holds no training
        cell of the model, `label_map` does not fit the file or the model, or `out` holds other things than an
        evaluation.

    Examples
    --------
    >>> import cytoglot as cg
    >>> from cytoglot.benchmark.evaluate import EvaluateSettings
    >>> fast = EvaluateSettings(control=False, generation=False, probe=False, maps=False)  # the predictions alone
    >>> evaluation = cg.evaluate("cells.h5ad", "model", label="cell_type", out="evaluation", settings=fast)
    >>> [row.method for row in evaluation.results if row.metric == "accuracy"][-1]
    'nearest_neighbors'
    """
    check_output_folder(Path(out), written_by="evaluate", mark="results.json")
    settings = settings or EvaluateSettings()
    other = resolve_source(reference) if isinstance(reference, (str, Path)) else reference
    renamed = read_label_map(label_map) if isinstance(label_map, (str, Path)) else label_map
    model = as_cell_model(model, device=device)
    found = resolve_source(source) if isinstance(source, (str, Path)) else source
    adata = read(found, layer=layer, **gene_options.keywords)
    # First, since cells with other genes would seem to be cells with other values.
    sentences, overlap = model.sentences(adata, gene_options=AS_NAMED, min_overlap=min_overlap)
    held_out = held_out_cells(adata, model, label=label, new_cells=new_cells, label_map=renamed)
    if other is not None:
        held_out = with_reference(held_out, read(other), model)
        sentences, _ = model.sentences(held_out.adata, gene_options=AS_NAMED, min_overlap=min_overlap)
    work = _Work(
        model=model,
        held_out=held_out,
        settings=settings,
        sentences=sentences,
        overlap=overlap,
        seed=seed,
        label_map=renamed,
    )
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
        verdict=work.verdict,
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


def _control_recipe(recipe: TrainRecipe) -> TrainRecipe:
    """Return the recipe of the control: shuffled labels, and as many examples of labels as the model learned from.

    What the control must show is that labels can come from nowhere but the labels of training cells. Writing cells has
    no part in that, so it is left out with the steps that it took.
    """
    changed: dict[str, Any] = {"control": "shuffled_labels", "report_to": (), "views": 1}
    share = recipe.tasks.get(_ANNOTATION, 0.0) / sum(recipe.tasks.values())
    if 0 < share < 1:
        steps = math.ceil(share * recipe.optim.steps)
        changed |= {"tasks": {_ANNOTATION: 1.0}, "optim": recipe.optim.model_copy(update={"steps": steps})}
    return recipe.model_copy(update=changed)


@dataclass(kw_only=True)
class _Work:
    """One evaluation, step by step; each step writes its own file."""

    model: CellModel
    held_out: HeldOut
    settings: EvaluateSettings
    sentences: CellSentences
    overlap: VocabularyOverlap
    seed: int
    label_map: Mapping[str, str] | None = None
    rows: list[ResultRow] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    ours: str = OURS
    """the method of the model that `annotate` uses by default"""
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        self.messages = list(self.held_out.messages)
        if self.model.spec.calibration.warning is not None:
            self.messages.append(self.model.spec.calibration.warning)
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
        for ours in (p for p in predictions if p.method.startswith("cytoglot")):
            self.rows += difference_rows(self.truth, ours, others, **options)
        self._write_predictions(folder, predictions)
        if self.settings.generation and len(held.train):
            with self._timed("generation"):
                # A cell has no order among genes of equal expression: a rule for ties is no biology, and a model that
                # has learned it must not gain by it.
                ranking = replace(self.model.spec.ranking, ties="random", seed=seed)
                untied = replace(self.model, spec=replace(self.model.spec, ranking=ranking, tie_rates=None))
                sentences, _ = untied.sentences(held.adata, gene_options=AS_NAMED, min_overlap=0)
                result = evaluate_generation(
                    self.model,
                    self.model.truncate(sentences[held.train]),
                    held.labels[held.train],
                    self.model.truncate(sentences[held.test]),
                    self.truth,
                    max_cells=self.settings.max_generated,
                    seed=seed,
                )
            self.rows += result.rows
            self.verdict = result.verdict
            content = {
                "per_type": result.per_type,
                "generated_vs_real_2d": result.points,
                "markers": result.markers,
            }
            write_json(folder / "generation.json", content)
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
        """Our own, first as `annotate` answers by default; then the linear probe, the baselines and the control."""
        held, model = self.held_out, self.model
        sentences = self.sentences[held.test]
        with self._timed("annotation by scoring"):
            scored = label_probabilities(model, sentences, method="score")
        predictions = [Prediction.of(OURS, scored)]
        if model.head is not None and model.spec.calibration.hybrid is not None:
            mixed_nk = model.hybrid_log_probabilities(np.log(np.maximum(scored.probability_nk, 1e-300)), sentences)
            for how, log_p_nk in {"hybrid": mixed_nk, "head": model.head.log_probabilities(sentences)}.items():
                found = Prediction(method=f"{OURS} {how}", labels=scored.labels, probability_nk=np.exp(log_p_nk))
                predictions.append(found)
            if model.annotation_method() == "hybrid":
                predictions.insert(0, predictions.pop(1))
        with self._timed("embedding"):
            self.embedding_nd = self.model.embeddings(self.sentences)
        if len(held.train) == 0:
            self.messages.append(
                "baselines and controls are not shown: the file holds no training cell of the model; pass the file "
                "that it was trained from as --reference (reference=)"
            )
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
        for name in BASELINES:
            with self._timed(name):
                fitted = CLASSIFIERS[name](seed=self.seed).fit(
                    held.adata[held.train, held.genes],
                    held.labels[held.train],
                    held.adata[held.validation, held.genes] if len(held.validation) else None,
                    held.labels[held.validation],
                )
                logger.info("%s: chosen on validation cells: %s", name, dict(fitted.chosen) or "nothing")
                probability_nk = fitted.predict_proba(held.adata[held.test, held.genes])
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
        split, adata = load_split(base), self.held_out.reference
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
            held.reference,
            label=held.label_column,
            out=folder,
            recipe=_control_recipe(recipe),
            split=held.reference_matched.split_of(held.reference.obs_names, held.split),
            gene_options=AS_NAMED,
            seed=self.seed,
            device=str(self.model.lm.device),
            overwrite=True,
        )
        sentences, _ = control.sentences(held.adata[held.test], gene_options=AS_NAMED)
        return Prediction.of("control: shuffled labels", label_probabilities(control, sentences))

    def _write_predictions(self, folder: Path, predictions: list[Prediction]) -> None:
        ours = predictions[0]
        self.ours, held = ours.method, self.held_out
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
            "n_cells": len(held.matched.part),
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
            "leakage": leakage_report(held.adata.obs, held.split, held.adata.X, part=held.part),
            "calibration": asdict(spec.calibration) | {"in_use": asdict(spec.calibration.in_use)},
            "messages": self.messages,
        }
        write_json(folder / "data_card.json", card)
        results: dict[str, Any] = {"results": [asdict(row) for row in self.rows], "meta": {"method": self.ours}}
        if self.verdict is not None:
            results |= self.verdict.to_dict()
        write_json(folder / "results.json", results)
        write_json(folder / "timings.json", {name: round(seconds, 3) for name, seconds in self.timings.items()})
        training = Path(str(self.model.folder)) / TRAINING_FILE
        if training.is_file():
            (folder / "training.json").write_bytes(training.read_bytes())
        manifest = Manifest(
            command="evaluate",
            config={
                "settings": self.settings.model_dump(),
                "model": dict(spec.manifest),
                "label_map": None if self.label_map is None else dict(self.label_map),
            },
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
