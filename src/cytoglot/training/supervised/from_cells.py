"""Train a language model of cells: one call from an AnnData file to a model folder.

The folder is unfinished while it holds `.work`; the same call then goes on from the last checkpoint and ends with the
same weights as an unbroken run. `cytoglot.json` is written last.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.config import load_recipe
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.readers.read import read
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel, set_threads
from cytoglot.lm.model.scratch import scratch_model
from cytoglot.lm.model.tokenizer import build_tokenizer, padding_id
from cytoglot.manifest import Manifest
from cytoglot.sentence.rank_curve import DEFAULT_CURVE, fit_rank_curve
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks
from cytoglot.training.loop.batches import NumberedBatches
from cytoglot.training.loop.callbacks import History
from cytoglot.training.loop.distributed import n_processes, rank
from cytoglot.training.loop.fit import (
    Run,
    begin,
    can_pack,
    check_base,
    finish,
    fit,
    manifest_of_cells,
    start_model,
)
from cytoglot.training.loop.trainer import TrainingData
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.examples import Examples, collate, plan_training, plan_validation
from cytoglot.training.supervised.prepare import PreparedCells, label_table, prepare_cells, word_quantiles
from cytoglot.training.supervised.word_vectors import co_expression_vectors
from cytoglot.training.validation.calibrate import calibrate, generation_temperature
from cytoglot.training.validation.held_out import held_out_of_cells

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_MAX_VALIDATION_CELLS = 1000
_ROW_TOKENS = 2048  # of packed rows: attention costs their square


def train(
    source: AnnData | str | Path,
    *,
    label: str,
    out: str | Path,
    recipe: TrainRecipe | str | Path | None = None,
    overrides: tuple[str, ...] = (),
    split_by: str = "auto",
    split: Split | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> CellModel:
    """Train on the labelled cells of `source` and return the finished model, also saved in `out`.

    Parameters
    ----------
    source
        An AnnData as `cytoglot.read` returns it, a file, or the name of a data set.
    label
        Column of `obs` with the cell types. Cells without one train the generation tasks only.
    out
        The model folder. A finished one is loaded and returned unless `overwrite`; an unfinished one is resumed.
    recipe, overrides
        A `TrainRecipe`, or a YAML file, with `a.b=value` replacements.
    split_by, split
        How cells are divided into training, validation and test cells (`cytoglot.data.splits.splitting.split_cells`),
        or a division made elsewhere. Test cells are never read; validation cells end the training and set
        temperature and threshold.
    layer, gene_options
        Which matrix is read, and how its columns become genes.

    Raises
    ------
    InputError
        The source or the label column cannot be used, or `out` holds a run with other settings, or other files.
    """
    settings = recipe if isinstance(recipe, TrainRecipe) else load_recipe(TrainRecipe, recipe, overrides)
    if settings.kind == "grpo":
        raise InputError("expected a recipe of kind pretrain or sft, found grpo; call cytoglot.train, which takes any")
    found = resolve_source(source) if isinstance(source, (str, Path)) else source
    adata = read(found, layer=layer, **gene_options.keywords)
    manifest = manifest_of_cells(
        adata, source, settings, label=label, split_by=split_by, split=split, gene_options=gene_options, seed=seed
    )
    run = Run(folder=Path(out), recipe=settings, manifest=manifest, seed=seed, device=device)
    finished = begin(run, overwrite=overwrite)
    if finished is not None:
        return finished
    check_tasks(settings)
    set_threads(threads)
    prepared = prepare_cells(adata, label=label, recipe=settings, split=split, split_by=split_by, seed=seed)
    check_base(settings, prepared.sentences.vocabulary)
    for message in prepared.messages:
        logger.info("%s", message)
    lm, history = _fit(run, prepared, overwrite=overwrite)

    def make_model(lm: LanguageModel) -> CellModel:
        spec = spec_of_cells(prepared, settings, manifest, label=label)
        return calibrate_on_cells(CellModel(lm=lm, spec=spec, folder=run.folder), prepared)

    return finish(
        run,
        make_model,
        lm,
        history,
        split=prepared.split,
        messages=prepared.messages,
        held_out=held_out_of_cells(prepared, settings, seed),
    )


def check_tasks(recipe: TrainRecipe) -> None:
    """Refuse tasks that ask for more than a file of labelled cells tells."""
    if recipe.sources:
        raise InputError("sources can be weighed in a corpus only; build one with `cytoglot corpus build`")
    record = CellRecord(genes=("GENE1", "GENE2"), metadata={**recipe.context, "cell_type": "B"}, cell_id="c")
    for name in recipe.tasks:
        if tasks[name].unit != "cell" or not tasks[name].can_ask(record):
            raise InputError(
                f"task {name!r} needs more than the genes and types of single cells; build a corpus with "
                "`cytoglot corpus build` and train on that"
            )


def _fit(run: Run, prepared: PreparedCells, *, overwrite: bool) -> tuple[LanguageModel, History]:
    """Build or load the model and train it, from the last whole checkpoint if there is one."""
    recipe, seed = run.recipe, run.seed
    lm = start_model(run, lambda: _new_model(prepared, recipe, seed=seed))
    max_tokens = lm.context_length or 1 << 30
    make = partial(Examples, prepared, tokenizer=lm.tokenizer, recipe=recipe, seed=seed, max_tokens=max_tokens)
    optim = recipe.optim
    packed = can_pack(lm, optim, auto=lm.device.type == "cuda")
    layout = partial(
        collate,
        pad_token_id=padding_id(lm.tokenizer),
        row_tokens=min(max_tokens, _ROW_TOKENS) if packed else None,
    )
    step_size = n_processes() * optim.batch_size * optim.gradient_accumulation
    plan = plan_training(prepared, recipe, n_examples=optim.steps * step_size, seed=seed, step_size=step_size)
    held = make(plan=plan_validation(prepared, max_cells=_MAX_VALIDATION_CELLS, seed=seed), augmented=False)
    batches = NumberedBatches(
        make(plan=plan, augmented=True), layout, batch_size=optim.batch_size, rank=rank(), world=n_processes()
    )
    data = TrainingData(
        batches=batches,
        validation=list(NumberedBatches(held, layout, batch_size=2 * optim.batch_size)),
        held_out=None if optim.stop_on == "loss" else held_out_of_cells(prepared, recipe, seed),
    )
    return fit(run, lm, data, overwrite=overwrite)


def _new_model(
    prepared: PreparedCells, recipe: TrainRecipe, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    sentences = prepared.sentences
    tokenizer = _tokenizer(prepared, recipe)
    rows = prepared.rows("train", labelled=False)
    vectors = None
    if recipe.model.word_vectors == "co_expression":
        rank = min(recipe.model.word_vector_rank, recipe.model.scratch.hidden_size - 1)
        vectors = co_expression_vectors(prepared.log_ng[rows], rank=rank, seed=seed)
    some = np.random.default_rng([seed, 4]).permutation(rows)[:1000]
    model = scratch_model(
        tokenizer,
        recipe.model.scratch,
        seed=seed,
        words=sentences.vocabulary.symbols,
        word_vectors=vectors,
        word_texts=[sentences.ids(int(i))[: prepared.top_genes] for i in some],
    )
    return model, tokenizer


def _tokenizer(prepared: PreparedCells, recipe: TrainRecipe) -> PreTrainedTokenizerBase:
    """Byte-level pieces are learned from all wordings of all tasks and from the labels."""
    texts = [template.text for name in recipe.tasks for template in tasks[name].templates.training]
    texts += [f" {label}." for label in label_table(prepared)] * 20  # labels are few beside the wordings
    texts += [" ".join(recipe.context.values())]
    return build_tokenizer(
        prepared.sentences.vocabulary.symbols, texts, context_length=recipe.model.scratch.context_length
    )


def calibrate_on_cells(model: CellModel, prepared: PreparedCells) -> CellModel:
    """Choose between one view and the recipe's number by the validation loss, then keep temperature and threshold."""
    rows = prepared.rows("validation", labelled=True)
    if len(rows) == 0:
        return model
    truth = np.array([model.spec.labels.index(x) if x in model.spec.labels else -1 for x in prepared.labels[rows]])
    fitted = {}
    for views in sorted({1, model.spec.views}):
        scores_nk = model.label_scores(prepared.sentences[rows], views=views)
        fitted[views] = calibrate(scores_nk, truth)
        logger.info("%d views: validation loss %.4f at its best temperature", views, fitted[views].validation_loss)
    best = min(fitted, key=lambda views: fitted[views].validation_loss)
    temperature = 1.0
    if "cell_generation" in model.spec.tasks:
        real = model.truncate(prepared.sentences[rows])
        temperature = generation_temperature(model, real, prepared.labels[rows], seed=prepared.split.seed)
        logger.info("cells are generated at temperature %.2f", temperature)
    calibration = replace(fitted[best], generation_temperature=temperature)
    return replace(model, spec=replace(model.spec, views=best, calibration=calibration))


def spec_of_cells(prepared: PreparedCells, recipe: TrainRecipe, manifest: Manifest, *, label: str) -> CellModelSpec:
    """Return what a model that learned from these cells knows of them, not yet calibrated."""
    rows = prepared.rows("train", labelled=False)
    table = label_table(prepared)
    mapped = map_labels(list(table))
    curve = fit_rank_curve(DEFAULT_CURVE, prepared.sentences[rows], prepared.log_ng[rows], seed=prepared.split.seed)
    return CellModelSpec(
        vocabulary=prepared.sentences.vocabulary,
        ranking=replace(prepared.sentences.settings, top_genes=prepared.top_genes),
        tie_rates=tuple(float(rate) for rate in prepared.tie_rates),
        rank_curve=curve.to_dict(),
        label_column=label,
        labels=tuple(table),
        label_counts=tuple(table.values()),
        label_ontology_ids={name: term for name, term in mapped.ids.items() if term is not None},
        words_per_label=word_quantiles(prepared),
        expressed_per_word=_expressed_per_word(prepared, rows),
        context=recipe.context,
        tasks=tuple(recipe.tasks),
        augment=recipe.augment,
        views=recipe.views,
        manifest=manifest.to_dict(),
    )


def _expressed_per_word(prepared: PreparedCells, rows: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    words = int(prepared.n_words[rows].sum())
    return float(prepared.sentences.n_expressed[rows].sum() / words) if words else 1.0
