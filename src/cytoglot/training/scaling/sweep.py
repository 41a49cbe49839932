"""A sweep of models: sizes × amounts of data × full weights or adapters, judged on the same held-out cells.

Each run is an ordinary model folder under `runs/`, so a killed sweep goes on where it stopped.

Axes: r runs, u held-out cells.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors import safe_open

from cytoglot.atomic import check_output_folder, write_json
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import TRAINING_FILE, load_split
from cytoglot.config import Overrides, Settings, load_recipe
from cytoglot.data.datasets import resolve_source
from cytoglot.data.readers.read import read
from cytoglot.data.schema import group_values
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import split_cells
from cytoglot.errors import InputError
from cytoglot.lm.model.scratch import ScratchSettings
from cytoglot.lm.scoring.score import score_pairs
from cytoglot.metrics.classification import accuracy_statistic, macro_f1_statistic
from cytoglot.metrics.scaling import fit_ladder
from cytoglot.metrics.uncertainty import AdditiveStatistic, bootstrap
from cytoglot.training.recipe import LoraRecipe, ModelRecipe, TrainRecipe
from cytoglot.training.run import train

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

RESULT_FILE = "scaling.json"
Mode = Literal["full", "lora"]


class Pretraining(Settings):
    """What the models of every size learn before the sweep's own cells."""

    source: str
    """a file of cells or the name of a data set"""
    label: str
    """its column of cell types"""
    train: TrainRecipe = TrainRecipe()
    """how; the size is that of the sweep"""


class ScaleRecipe(Settings):
    """A sweep."""

    source: str
    """a file of cells or the name of a data set"""
    label: str
    """its column of cell types"""
    split_by: str = "auto"
    """how cells are divided (cytoglot.data.splits.splitting); the same division for all runs"""
    output: str | None = None
    """the folder to write, where the command line names none"""
    sizes: dict[str, dict[str, Any]]
    """name → settings of a model from nothing (hidden_size, n_layers, …), or base: a folder or a name on the hub"""
    shares: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """shares of the training cells; a smaller share is a part of a larger one"""
    modes: tuple[Mode, ...] = Field(default=("full",), min_length=1)
    """full weights, adapters, or both; adapters need a base or `pretrain`"""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """each run is made once with each"""
    pretrain: Pretraining | None = None
    """train a base of every size first; the sweep then adapts it"""
    train: TrainRecipe = TrainRecipe()
    """how each run learns"""
    lora: LoraRecipe = LoraRecipe()
    """the adapters of mode lora"""
    held_out_cells: int = Field(default=200, ge=2)
    """test cells that every run is judged on, at most"""

    @model_validator(mode="after")
    def _can_run(self) -> ScaleRecipe:
        if not self.sizes:
            raise ValueError("sizes is empty; name at least one model")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares must lie above 0 and at most at 1, found {self.shares}")
        without = [name for name, size in self.sizes.items() if "base" not in size]
        if "lora" in self.modes and self.pretrain is None and without:
            raise ValueError(f"mode lora adapts a trained model: give pretrain, or a base for {', '.join(without)}")
        if without and self.train.model.base is not None:
            raise ValueError(f"train.model.base would stand for the sizes {', '.join(without)}; give them a base each")
        if self.train.kind == "grpo":
            raise ValueError("a sweep is of kind pretrain or sft, found train.kind grpo")
        # A size that is no model is refused before another is trained.
        below = (self.train if self.pretrain is None else self.pretrain.train).model.scratch
        for name, size in self.sizes.items():
            if not re.fullmatch(r"[\w.+-]+", name):  # it is a part of a folder's name
                raise ValueError(f"a size is named by letters, digits and . _ + -, found {name!r}")
            try:
                if "base" in size:
                    ModelRecipe.model_validate(size)
                else:
                    ScratchSettings.model_validate({**below.model_dump(exclude_unset=True), **size})
            except ValidationError as error:
                fault = error.errors()[0]
                key = "".join(f"{part}: " for part in fault["loc"])
                raise ValueError(f"size {name}: {key}{fault['msg'].removeprefix('Value error, ')}") from error
        return self


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One place of the sweep."""

    size: str
    mode: Mode
    share: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.size}-{self.mode}-{self.share:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run is and reached."""

    run: SweepRun
    parameters: int
    """of the whole model"""
    parameters_without_vectors: int
    """without the input vectors: what the power law is over, and what 6 N D counts"""
    trained_parameters: int
    cells: int
    """training cells that it learned from"""
    tokens: int
    """read in training, repeats included"""
    loss_u: NDArray[np.float64]
    """(u,) negative log-likelihood of each held-out cell's sentence given its type, nats"""
    words_u: NDArray[np.float64]
    """(u,) words of those sentences"""
    answers_u: NDArray[np.object_]
    """(u,) annotated type"""


@dataclass(frozen=True, kw_only=True)
class TestCells:
    """Test cells that every run is judged on."""

    adata: AnnData
    truth_u: NDArray[np.object_]
    groups_u: NDArray[np.object_] | None
    unit: str


def run_sweep(
    recipe: ScaleRecipe | str | Path,
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train and evaluate every run, fit the power law, and write `scaling.json`; return its content.

    Parameters
    ----------
    out
        Folder of the sweep; finished runs in it are loaded, not repeated.
    seed
        Of the division of the cells, the choice of held-out cells and the resampling; each run has its own besides.

    Raises
    ------
    InputError
        The recipe or the source cannot be used, or the folder holds other things.
    """
    settings = load_recipe(ScaleRecipe, recipe, overrides)
    if out is None and settings.output is None:
        raise InputError("expected a folder to write, found none; pass -o, or set output in the recipe")
    folder = Path(out if out is not None else str(settings.output))
    check_output_folder(folder, written_by="scale", mark="ladder.json")
    adata = read(resolve_source(settings.source))
    split = split_cells(adata.obs, by=settings.split_by, label=settings.label, seed=seed)
    for warning in split.warnings:
        logger.warning("%s", warning)
    held_out = choose_test_cells(adata, split, settings, seed=seed)
    write_json(folder / "ladder.json", {"recipe": settings.model_dump(mode="json"), "seed": seed})
    results = []
    for run in grid(settings):
        logger.info("run %s", run.name)
        model = train(
            adata,
            label=settings.label,
            out=folder / "runs" / run.name,
            recipe=_recipe_of(run, settings, folder, device=device, threads=threads),
            split=split,
            seed=run.seed,
            device=device,
            threads=threads,
        )
        results.append(evaluate_run(model, run, held_out))
    result = summary(results, held_out, settings, seed=seed)
    write_json(folder / RESULT_FILE, result)
    return result


def grid(recipe: ScaleRecipe) -> Iterator[SweepRun]:
    """Yield the runs, smallest shares first, so that a first picture is there early."""
    for share, size, mode, seed in product(sorted(recipe.shares), recipe.sizes, recipe.modes, recipe.seeds):
        yield SweepRun(size=size, mode=mode, share=share, seed=seed)


def _recipe_of(run: SweepRun, recipe: ScaleRecipe, folder: Path, *, device: str, threads: int | None) -> TrainRecipe:
    """Return how a run learns; a base of its size is trained first where the sweep asks for one, at the first run."""
    size, learns, pretrain = dict(recipe.sizes[run.size]), recipe.train, recipe.pretrain
    if pretrain is not None and "base" not in size:
        out, own = folder / "bases" / run.size, _of_size(pretrain.train, size)
        train(pretrain.source, label=pretrain.label, out=out, recipe=own, device=device, threads=threads)
        size = {"base": str(out)}
    adapters = {"lora": recipe.lora.model_dump()} if run.mode == "lora" else {}
    return _of_size(learns, size, train_share=run.share, **adapters)


def _of_size(recipe: TrainRecipe, size: dict[str, Any], **changed: Any) -> TrainRecipe:
    values = recipe.model_dump(exclude_unset=True) | changed
    model = dict(values.get("model", {}))
    own = size if "base" in size else {"scratch": {**model.get("scratch", {}), **size}}
    return TrainRecipe.model_validate({**values, "model": {**model, **own}})


def choose_test_cells(adata: AnnData, split: Split, recipe: ScaleRecipe, *, seed: int) -> TestCells:
    """Draw labelled test cells, at most `held_out_cells`, in the order of the file."""
    labels = read_labels(adata.obs, recipe.label)
    rows = np.flatnonzero(split.mask(adata.obs_names, "test") & labels.notna().to_numpy())
    if len(rows) < 2:
        raise InputError(f"expected at least 2 labelled test cells, found {len(rows)}; pass another split_by")
    rows = np.sort(np.random.default_rng([seed, 8]).permutation(rows)[: recipe.held_out_cells])
    groups = None if split.by == "cell" else group_values(adata.obs, split.by).to_numpy(dtype=object)[rows]
    if groups is not None and len(set(groups)) < 2:
        groups = None  # one donor tells nothing about donors
    truth = labels.iloc[rows].astype(str).to_numpy(dtype=object)
    return TestCells(
        adata=adata[rows].copy(), truth_u=truth, groups_u=groups, unit="cell" if groups is None else split.by
    )


def evaluate_run(model: CellModel, run: SweepRun, held_out: TestCells) -> RunResult:
    """Measure a run on the held-out cells: how likely it finds their sentences, and how it annotates them."""
    sentences, _ = model.sentences(held_out.adata)
    examples, task = [], model.task("cell_generation")
    records = list(model.records(model.truncate(sentences)))
    for record, label in zip(records, held_out.truth_u, strict=True):
        if not record.genes:
            raise InputError(f"test cell {record.cell_id!r} expresses no gene of the vocabulary; leave out empty cells")
        labelled = replace(record, metadata={**record.metadata, "cell_type": label})
        examples.append(task.example(labelled, template=task.short_template(labelled)))
    scores_uk = model.label_scores(sentences)
    assert model.folder is not None
    split = load_split(model.folder)
    assert split is not None
    history = json.loads((model.folder / TRAINING_FILE).read_text(encoding="utf-8"))["history"]
    total = sum(p.numel() for p in model.lm.model.parameters())
    trained = total
    if run.mode == "lora":
        with safe_open(model.folder / "adapter" / "adapter_model.safetensors", framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        trained = sum(int(np.prod(shape)) for shape in shapes)
    return RunResult(
        run=run,
        parameters=total,
        parameters_without_vectors=total - model.lm.model.get_input_embeddings().weight.numel(),
        trained_parameters=trained,
        cells=max(1, round(run.share * len(split.train))),
        tokens=int(history[-1]["tokens"]) if history else 0,
        loss_u=-score_pairs(model.lm, [e.prompt for e in examples], [e.completion for e in examples]),
        words_u=np.array([len(record.genes) for record in records], dtype=np.float64),
        answers_u=np.array(model.spec.labels, dtype=object)[scores_uk.argmax(axis=1)],
    )


def summary(results: Sequence[RunResult], held_out: TestCells, recipe: ScaleRecipe, *, seed: int) -> dict[str, Any]:
    """Return rows with intervals, and a power law for each mode that has enough runs."""
    words_u = results[0].words_u
    for other in results:
        # Losses per word compare runs only where they are of the same words.
        if not np.array_equal(other.words_u, words_u):
            raise InputError(
                f"runs {results[0].run.name} and {other.run.name} write other words for the same cells (another "
                "context length or vocabulary); set sentence.top_genes to what fits every model"
            )
    rows = [_row(result, held_out, words_u, seed=seed) for result in results]
    laws: dict[str, Any] = {}
    for mode in dict.fromkeys(recipe.modes):
        of_mode = [result for result in results if result.run.mode == mode]
        try:
            loss_ru, weight_u = np.stack([result.loss_u for result in of_mode]), words_u
            if held_out.groups_u is not None:
                codes, names = pd.factorize(held_out.groups_u)
                member_ug = (codes[:, None] == np.arange(len(names))).astype(np.float64)
                loss_ru, weight_u = loss_ru @ member_ug, words_u @ member_ug
            fit = fit_ladder(
                np.array([result.parameters_without_vectors for result in of_mode], dtype=np.float64),
                np.array([result.cells for result in of_mode], dtype=np.float64),
                loss_ru,
                weight_u,
                seed_r=[result.run.seed for result in of_mode],
                seed=seed,
            )
            laws[mode] = {
                **fit.law.to_dict(),
                "intervals": {name: list(bounds) for name, bounds in fit.intervals.items()},
                "leave_one_out": {name: list(bounds) for name, bounds in fit.leave_one_out.items()},
                "r2_log": fit.r2_log,
            }
        except ValueError as error:
            laws[mode] = {"not_fitted": str(error)}
    most = pd.Series(held_out.truth_u).value_counts()
    control = {"most_frequent_type": float(most.iloc[0] / most.sum())}
    return {
        "runs": rows,
        "power_law": laws,
        "baselines": {"accuracy": control},
        "held_out": {"cells": len(held_out.truth_u), "unit": held_out.unit, "words": int(words_u.sum())},
    }


def _row(result: RunResult, held_out: TestCells, words_u: NDArray[np.float64], *, seed: int) -> dict[str, Any]:
    loss = AdditiveStatistic(
        rows_nk=np.stack([result.loss_u, words_u], axis=1), combine=lambda sums: sums[..., 0] / sums[..., 1]
    )
    measured = {
        "loss_per_word": loss,
        "accuracy": accuracy_statistic(held_out.truth_u, result.answers_u),
        "macro_f1": macro_f1_statistic(held_out.truth_u, result.answers_u),
    }
    numbers = {
        name: getattr(result, name)
        for name in ("parameters", "parameters_without_vectors", "trained_parameters", "cells", "tokens")
    }
    flops = 6 * result.parameters_without_vectors * result.tokens
    row: dict[str, Any] = {**asdict(result.run), **numbers, "flops": flops}
    for name, statistic in measured.items():
        interval = bootstrap(statistic, groups=held_out.groups_u, unit=held_out.unit, seed=seed)
        bounds = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        row |= {key: None if np.isnan(value) else float(value) for key, value in bounds.items()}
    return row
