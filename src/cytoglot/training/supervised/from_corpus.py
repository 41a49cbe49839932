"""Train a language model on a corpus: every task that it can ask, from shards, at any size.

The folder that is written is that of `cytoglot.training.supervised.from_cells`, with the same states:
unfinished while it holds `.work`, resumed by the same call, finished when `cytoglot.json` is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.config import load_recipe
from cytoglot.corpus.format.folder import Corpus, Part, open_corpus
from cytoglot.corpus.format.shard_file import concat_blocks
from cytoglot.corpus.read.epoch_plan import checked_sources
from cytoglot.corpus.read.examples import askable_tasks
from cytoglot.corpus.read.loader import BatchSettings, ExampleSettings
from cytoglot.corpus.read.records import read_row_group, row_groups
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel, set_threads
from cytoglot.lm.model.scratch import scratch_model
from cytoglot.lm.model.tokenizer import build_tokenizer, padding_id
from cytoglot.manifest import Manifest
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.task import tasks
from cytoglot.training.loop.callbacks import History
from cytoglot.training.loop.distributed import n_processes, rank
from cytoglot.training.loop.fit import (
    Run,
    begin,
    can_pack,
    check_base,
    finish,
    fit,
    manifest_of_corpus,
    start_model,
)
from cytoglot.training.loop.loss import Batch
from cytoglot.training.loop.trainer import TrainingData
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.release.model_card import corpus_facts
from cytoglot.training.supervised.corpus_batches import CorpusBatches, CorpusDataset, gene_tokenizer, readers_of
from cytoglot.training.supervised.word_vectors import co_expression_vectors
from cytoglot.training.validation.calibrate import calibrate
from cytoglot.training.validation.held_out import held_out_of_corpus

logger = logging.getLogger(__name__)

SAMPLE_CELLS = 4000
"""cells that a corpus is described by"""
_LONGEST = 1 << 15
_TOLD = {"cell_type", "organism", "tissue", "disease", "sex", "development_stage", "assay", "condition"}
_MAX_DENSE = 60_000_000  # values of the dense matrix that the gene vectors are made from: 240 MB
_VALIDATION_EXAMPLES, _CALIBRATION_CELLS = 400, 400


@dataclass(frozen=True)
class CellSample:
    """Some cells of a part, drawn evenly from its shards. Axes: n cells, g genes."""

    sentences: CellSentences
    labels: NDArray[np.object_]
    """(n,) cell type, None where unknown"""


def train_corpus(
    corpus: Corpus | str | Path,
    *,
    out: str | Path,
    recipe: TrainRecipe | str | Path | None = None,
    overrides: tuple[str, ...] = (),
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> CellModel:
    """Train on the training part of a corpus and return the finished model, also saved in `out`.

    Parameters
    ----------
    corpus
        What `cytoglot corpus build` wrote. The validation part ends the training and sets the temperature of the
        annotator; the test part is never read.
    recipe, overrides
        As for `cytoglot.train`. A recipe that names no tasks gets equal shares of all that the corpus can ask.
        Quality control, highly variable genes, tie rule, views and the shuffled control belong to training from a file
        and are refused here.

    Raises
    ------
    InputError
        The corpus cannot be read, a named task has no example in it, a setting does not apply to a corpus, or `out`
        holds a run with other settings, or other files.
    """
    corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    settings = recipe if isinstance(recipe, TrainRecipe) else load_recipe(TrainRecipe, recipe, overrides)
    if settings.kind == "grpo":
        raise InputError("expected a recipe of kind pretrain or sft, found grpo; call cytoglot.train, which takes any")
    shares = _shares(corpus, settings)
    checked_sources(corpus, settings.sources)
    manifest = manifest_of_corpus(corpus, settings, seed=seed, shares=shares)
    run = Run(folder=Path(out), recipe=settings, manifest=manifest, seed=seed, device=device)
    finished = begin(run, overwrite=overwrite)
    if finished is not None:
        return finished
    check_base(settings, corpus.vocabulary)
    set_threads(threads)
    sample = sample_cells(corpus, "train", n=SAMPLE_CELLS, seed=seed)
    lm, history = _fit(run, corpus, sample, shares, overwrite=overwrite)

    def make_model(lm: LanguageModel) -> CellModel:
        model = CellModel(lm=lm, spec=spec_of_corpus(corpus, sample, settings, shares, manifest), folder=run.folder)
        return calibrate_on_corpus(model, corpus, seed=seed) if model.spec.labels else model

    held_out = held_out_of_corpus(corpus, shares, settings, seed)
    return finish(run, make_model, lm, history, facts={"corpus": corpus_facts(corpus)}, held_out=held_out)


def _shares(corpus: Corpus, recipe: TrainRecipe) -> dict[str, float]:
    """Return the mixture: what the recipe names, else equal shares of everything that the corpus can ask."""
    refuse_settings_of_files(recipe)
    askable = askable_tasks(corpus, "train")
    if "tasks" not in recipe.model_fields_set:
        return dict.fromkeys(askable, 1.0)
    absent = sorted(set(recipe.tasks) - set(askable))
    if absent:
        raise InputError(
            f"{corpus.folder} holds nothing that the tasks {absent} could ask; it can ask: {', '.join(askable)}"
        )
    return dict(recipe.tasks)


def refuse_settings_of_files(recipe: TrainRecipe) -> None:
    """Refuse settings that say how a file of cells is read or divided."""
    own = recipe.sentence.model_fields_set - {"top_genes"}
    given = [f"sentence.{name}" for name in sorted(own)]
    given += [name for name in ("qc", "views", "context", "control", "train_share") if name in recipe.model_fields_set]
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be set for a corpus: its cells were chosen and ranked when it was built"
        )


def sample_cells(corpus: Corpus, part: Part, *, n: int, seed: int) -> CellSample:
    """Return `n` cells of a part at most, as many from each of up to 16 evenly spaced row groups."""
    places = row_groups(corpus, part)
    if not places:
        raise InputError(f"the {part} part of {corpus.folder} has no cells")
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), 16)).astype(int))
    rng = np.random.default_rng([seed, 5])
    blocks = []
    for place in chosen:
        block = read_row_group(corpus, places[place])
        blocks.append(block.take(np.sort(rng.permutation(len(block))[: -(-n // len(chosen))])))
    block = concat_blocks(blocks)
    labels = np.full(len(block), None, dtype=object)
    if "cell_type" in block.metadata_columns:
        codes, texts = block.values("cell_type")
        labels = np.array([*texts, None], dtype=object)[codes]
    sentences = CellSentences(
        cell_ids=np.array(block.cell_ids.to_pylist(), dtype=object),
        offsets=block.offsets,
        gene_ids=block.gene_ids,
        n_expressed=block.n_expressed,
        vocabulary=corpus.vocabulary,
        settings=corpus.description.settings,
    )
    return CellSample(sentences, labels)


def _new_model(
    corpus: Corpus, sample: CellSample, recipe: TrainRecipe, shares: dict[str, float], *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    scratch, sentences = recipe.model.scratch, sample.sentences
    tokenizer = _tokenizer(corpus, shares, scratch.context_length)
    vectors = None
    if recipe.model.word_vectors == "co_expression":
        n_cells = min(len(sentences), _MAX_DENSE // len(corpus.vocabulary))
        rank = min(recipe.model.word_vector_rank, scratch.hidden_size - 1, n_cells - 1)
        vectors = co_expression_vectors(_rank_weights(sentences[:n_cells], recipe), rank=rank, seed=seed)
    top_genes = recipe.sentence.top_genes
    model = scratch_model(
        tokenizer,
        scratch,
        seed=seed,
        words=corpus.vocabulary.symbols,
        word_vectors=vectors,
        word_texts=[sentences.ids(i)[:top_genes] for i in range(min(1000, len(sentences)))],
    )
    return model, tokenizer


def _rank_weights(sentences: CellSentences, recipe: TrainRecipe) -> csr_matrix:
    """Return (n, g) weights 1 / log2(1 + rank): a corpus keeps ranks, and these fall like expression does."""
    cut = sentences.truncate(recipe.sentence.top_genes) if recipe.sentence.top_genes else sentences
    weights = (1 / np.log2(1.0 + cut.ranks())).astype(np.float32)
    return csr_matrix((weights, cut.gene_ids.astype(np.int32), cut.offsets), shape=(len(cut), len(cut.vocabulary)))


def _tokenizer(corpus: Corpus, shares: dict[str, float], context_length: int) -> PreTrainedTokenizerBase:
    """Byte-level pieces are learned from the wordings, the metadata, the abstracts and the names of the tables."""
    texts = [template.text for name in shares for template in tasks[name].templates.training]
    values = {text for column in corpus.description.counts for text in corpus.labels(column) if column in _TOLD}
    texts += [f" {text}." for text in sorted(values)] * 20  # labels are few beside the wordings
    texts += [source.abstract for source in corpus.description.sources]
    texts += [s.name for s in corpus.gene_sets("train")]
    texts += [f"{t.label}. {t.definition}" for t in corpus.cell_type_terms("train")]
    return build_tokenizer(corpus.vocabulary.symbols, texts, context_length=context_length)


def _fit(
    run: Run, corpus: Corpus, sample: CellSample, shares: dict[str, float], *, overwrite: bool
) -> tuple[LanguageModel, History]:
    """Build or load the model and train it, from the last whole checkpoint if there is one."""
    recipe, seed = run.recipe, run.seed
    lm = start_model(run, lambda: _new_model(corpus, sample, recipe, shares, seed=seed))
    read = partial(_reader, lm, corpus, recipe, seed=seed, packed=can_pack(lm, recipe.optim, auto=True))
    n_readers = recipe.optim.readers or n_processes()
    mine = readers_of(rank(), n_processes(), n_readers=n_readers, batch_size=recipe.optim.batch_size)
    readers = [
        read("train", shares, rank=number, world=n_readers, batch_size=recipe.optim.batch_size // len(mine))
        for number in mine
    ]
    data = TrainingData(
        batches=CorpusBatches(readers),
        validation=_validation_batches(read, corpus, shares, batch_size=recipe.optim.batch_size),
        held_out=None if recipe.optim.stop_on == "loss" else held_out_of_corpus(corpus, shares, recipe, seed),
    )
    return fit(run, lm, data, overwrite=overwrite)


def _reader(
    lm: LanguageModel,
    corpus: Corpus,
    recipe: TrainRecipe,
    part: Part,
    shares: dict[str, float],
    *,
    seed: int,
    packed: bool,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> CorpusDataset:
    """Return batches of a part: training in random views for ever, validation once and as it is."""
    training, optim = part == "train", recipe.optim
    return CorpusDataset(
        corpus,
        part,
        rank=rank,
        world=world,
        tokenizer=gene_tokenizer(lm.tokenizer, corpus.vocabulary),
        batches=BatchSettings(
            context=min(lm.context_length or _LONGEST, _LONGEST),
            packed=packed,
            batch_size=batch_size,
            pad_id=padding_id(lm.tokenizer),
        ),
        examples=ExampleSettings(
            top_genes=recipe.sentence.top_genes,
            paraphrase_share=recipe.paraphrase_share,
            generation_weight=optim.generation_weight,
            loss_on=optim.loss_on,
            augment=recipe.augment if training else None,
        ),
        tasks=shares,
        sources=recipe.sources if training else None,
        seed=seed,
        epochs=None if training else 1,
    )


def _validation_batches(
    read: Callable[..., CorpusDataset], corpus: Corpus, shares: dict[str, float], *, batch_size: int
) -> list[Batch]:
    """Return about `_VALIDATION_EXAMPLES` examples of the validation part, of the tasks that it can ask."""
    askable = set(askable_tasks(corpus, "validation"))
    possible = {name: share for name, share in shares.items() if name in askable}
    batches: list[Batch] = []
    if possible:
        for batch in CorpusBatches([read("validation", possible, batch_size=batch_size)]):
            batches.append(batch)
            if sum(int(b["n_examples"]) for b in batches) >= _VALIDATION_EXAMPLES:
                break
    return batches


def calibrate_on_corpus(model: CellModel, corpus: Corpus, *, seed: int) -> CellModel:
    """Fit temperature and threshold on validation cells whose label training knew."""
    if not corpus.shards("validation"):
        return model
    cells = sample_cells(corpus, "validation", n=_CALIBRATION_CELLS, seed=seed)
    known = np.array([label in model.spec.labels for label in cells.labels], dtype=bool)
    truth = np.array([model.spec.labels.index(label) for label in cells.labels[known]], dtype=np.int64)
    if len(truth) < 2:
        return model
    scores_nk = model.label_scores(cells.sentences[known], views=1)
    return model.with_calibration(calibrate(scores_nk, truth))


def spec_of_corpus(
    corpus: Corpus, sample: CellSample, recipe: TrainRecipe, shares: dict[str, float], manifest: Manifest
) -> CellModelSpec:
    """Return what a model that learned from a corpus knows of its cells, not yet calibrated."""
    table = corpus.count("cell_type", "train") if "cell_type_annotation" in shares else {}
    top_genes = recipe.sentence.top_genes
    lengths = np.minimum(sample.sentences.lengths, top_genes or np.iinfo(np.int64).max)
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    return CellModelSpec(
        vocabulary=corpus.vocabulary,
        ranking=replace(corpus.description.settings, top_genes=top_genes),
        rank_curve=corpus.rank_curve,
        label_column="cell_type" if table else None,
        labels=tuple(table),
        label_counts=tuple(table.values()),
        label_ontology_ids={name: term for name, term in map_labels(list(table)).ids.items() if term is not None},
        words_per_label={
            str(name): tuple(int(q) for q in np.quantile(lengths[sample.labels == name], quantiles))
            for name in table
            if np.any(sample.labels == name)
        },
        expressed_per_word=float(sample.sentences.n_expressed.sum() / max(int(lengths.sum()), 1)),
        tasks=tuple(shares),
        augment=recipe.augment,
        manifest=manifest.to_dict(),
    )
