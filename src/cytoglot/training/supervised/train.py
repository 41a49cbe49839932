"""Supervised training from a recipe to a finished model: cells, model, examples, loop, calibration.

The folder is unfinished while it holds `.work`; the same call then goes on from the last checkpoint and ends with the
same weights as an unbroken run. `cytoglot.json` is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_matrix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cytoglot.cell_model.load import CellModel, check_same_genes
from cytoglot.corpus.format.folder import Part
from cytoglot.corpus.read.examples import available_tasks, sample_examples
from cytoglot.corpus.read.loader import BatchSettings, ExampleSettings
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel, set_threads
from cytoglot.lm.model.scratch import scratch_model, start_at_frequencies
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_completions, encode_prompts, padding_id
from cytoglot.lm.scoring.distinct_words import AnswerWords
from cytoglot.sentence.profile import CellProfile, fit_profile
from cytoglot.tasks.task import tasks
from cytoglot.training.cells import TrainingCells, begin_run, spec_of, training_cells
from cytoglot.training.job import TrainJob
from cytoglot.training.loop.distributed import n_processes, rank
from cytoglot.training.loop.fit import begin, can_pack, finish, fit, start_model
from cytoglot.training.loop.loss import Batch
from cytoglot.training.loop.trainer import TrainingData
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.corpus_batches import CorpusBatches, CorpusDataset, gene_tokenizer, readers_of
from cytoglot.training.supervised.word_vectors import co_expression_vectors
from cytoglot.training.validation.calibrate import calibrate_model
from cytoglot.training.validation.held_out import held_out_of_corpus
from cytoglot.training.validation.sentence_head import fit_sentence_head

logger = logging.getLogger(__name__)

_LONGEST = 1 << 15
_PRIOR_EXAMPLES = 256
"""questions for a cell's type, which tell a model from nothing how frequent the labels are"""
_METADATA = {"cell_type", "organism", "tissue", "disease", "sex", "development_stage", "assay", "condition"}
"""metadata whose values are worth pieces of their own in a new tokenizer"""
_MAX_DENSE = 60_000_000  # values of the dense matrix that the gene vectors are made from: 240 MB
_BUCKET_BATCHES = 8
"""batches of a file whose examples are sorted by length together: cells of one length are often of one type"""
_VALIDATION_EXAMPLES, _VALIDATION_TOKENS = 1000, 1 << 18
"""the validation loss is of so many at most, whichever comes first: a look must not cost as much as the steps"""


def train_supervised(job: TrainJob) -> CellModel:
    """Train a model of kind pretrain or sft and return it, also saved in `job.out`.

    Raises
    ------
    InputError
        The source, its label column or the base cannot be used, a task cannot be asked, or the folder holds a run with
        other settings, or other files.
    """
    recipe, seed, source = job.recipe, job.seed, job.open()
    run = begin_run(job, source)
    finished = begin(run, overwrite=job.overwrite)
    if finished is not None:
        return finished
    n_threads = set_threads(job.threads)
    with training_cells(job, source) as cells:
        set_threads(n_threads)  # numba, which ranks cells, may have changed it
        if recipe.model.base is not None:
            check_same_genes(recipe.model.base, cells.corpus.vocabulary, min_share=recipe.model.min_known_genes)
        for message in cells.messages:
            logger.info("%s", message)
        lm = start_model(run, lambda: new_model(cells, recipe, seed=seed))
        packed = can_pack(lm, recipe.optim, auto=cells.packed)
        symbols, words, profile = tuple(cells.corpus.vocabulary.symbols), None, None
        writes_genes = any(tasks[name].answer_kind == "genes" for name in cells.shares)
        if recipe.optim.word_loss == "unwritten" and writes_genes:
            words = AnswerWords.of(lm.tokenizer, symbols)
            if has_profile(cells, recipe) and (words.token_ids_w is not None or recipe.model.profile):
                if words.token_ids_w is None:
                    raise InputError(
                        "model.profile needs a tokenizer in which each gene is one token, and the base's spells genes "
                        "in several; leave model.profile out"
                    )
                profile = fit_profile(
                    cells.sample.with_random_ties(seed),
                    cells.sample.metadata,
                    fields=recipe.model.profile_fields,
                    top_genes=recipe.sentence.top_genes,
                )
                words = AnswerWords.of(lm.tokenizer, symbols, log_weights_cw=profile.log_weights_cg)
        learned = LearnedWords(words=words, profile=profile)
        validation = held_out_of_corpus(cells.corpus, cells.shares, recipe, seed, profile=profile)
        data = TrainingData(
            batches=training_batches(lm, cells, recipe, learned, seed=seed, packed=packed),
            validation=validation_batches(lm, cells, recipe, learned, seed=seed, packed=packed),
            held_out=None if recipe.optim.stop_on == "loss" else validation,
            words=words,
        )
        lm, history = fit(run, lm, data, overwrite=job.overwrite)

        def make_model(lm: LanguageModel) -> CellModel:
            spec = spec_of(cells, recipe, run.manifest)
            found = cells.calibration_cells(seed)
            head = None
            if recipe.model.sentence_head and "cell_type_annotation" in cells.shares and found is not None:
                head = fit_sentence_head(cells.sample, found, spec.labels)
            model = CellModel(lm=lm, spec=spec, folder=run.folder, profile=profile, head=head)
            return calibrate_model(
                model, found, generation=cells.fits_generation, seed=seed, n_learned=history.n_tokens
            )

        return finish(
            run,
            make_model,
            lm,
            history,
            split=cells.split,
            messages=cells.messages,
            facts=cells.facts,
            held_out=validation,
        )


@dataclass(frozen=True, kw_only=True)
class LearnedWords:
    """What answers of genes are learned over, and with."""

    words: AnswerWords | None = None
    """the genes as tokens; None: all tokens"""
    profile: CellProfile | None = None


ALL_TOKENS = LearnedWords()


def has_profile(cells: TrainingCells, recipe: TrainRecipe) -> bool:
    """Return whether the recipe asks for a profile, or leaves it open and has cells written one by one."""
    if recipe.model.profile is not None:
        return recipe.model.profile
    written = [name for name in cells.shares if tasks[name].writes_cells and tasks[name].answer_kind == "genes"]
    return recipe.optim.word_loss == "unwritten" and bool(written)


def training_batches(
    lm: LanguageModel,
    cells: TrainingCells,
    recipe: TrainRecipe,
    learned: LearnedWords = ALL_TOKENS,
    *,
    seed: int,
    packed: bool,
) -> CorpusBatches:
    """Return this process's batches, for ever: random tasks and views of the training cells."""
    optim = recipe.optim
    n_readers = optim.readers or n_processes()
    mine = readers_of(rank(), n_processes(), n_readers=n_readers, batch_size=optim.batch_size)
    read = partial(
        _reader, lm, cells, recipe, learned, seed=seed, packed=packed, batch_size=optim.batch_size // len(mine)
    )
    readers = [read("train", cells.weights, rank=number, world=n_readers) for number in mine]
    return CorpusBatches(readers, token_mean=optim.loss == "token_mean")


def validation_batches(
    lm: LanguageModel,
    cells: TrainingCells,
    recipe: TrainRecipe,
    learned: LearnedWords = ALL_TOKENS,
    *,
    seed: int,
    packed: bool,
) -> list[Batch]:
    """Return some examples of the validation part, as they are and in the terse wording, of what it can be asked."""
    askable = set(available_tasks(cells.corpus, "validation"))
    weights = {name: share for name, share in cells.validation_weights.items() if name in askable}
    batches: list[Batch] = []
    if not weights:
        return batches
    optim, n_examples, n_tokens = recipe.optim, 0, 0
    reader = _reader(
        lm, cells, recipe, learned, "validation", weights, seed=seed, packed=packed, batch_size=optim.batch_size
    )
    for batch in CorpusBatches([reader], token_mean=optim.loss == "token_mean"):
        batches.append(batch)
        n_examples, n_tokens = n_examples + batch["n_examples"], n_tokens + batch["n_tokens"]
        if n_examples >= _VALIDATION_EXAMPLES or n_tokens >= _VALIDATION_TOKENS:
            break
    return batches


def _reader(
    lm: LanguageModel,
    cells: TrainingCells,
    recipe: TrainRecipe,
    learned: LearnedWords,
    part: Part,
    weights: Mapping[str, float],
    *,
    seed: int,
    packed: bool,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> CorpusDataset:
    training, optim, words = part == "train", recipe.optim, learned.words
    return CorpusDataset(
        cells.corpus,
        part,
        rank=rank,
        world=world,
        tokenizer=gene_tokenizer(lm.tokenizer, cells.corpus.vocabulary),
        batches=BatchSettings(
            context=min(lm.context_length or _LONGEST, _LONGEST),
            packed=packed,
            batch_size=batch_size,
            bucket_examples=_BUCKET_BATCHES * batch_size if training else None,
            pad_id=padding_id(lm.tokenizer),
        ),
        examples=ExampleSettings(
            top_genes=recipe.sentence.top_genes,
            paraphrase_share=recipe.paraphrase_share if training else 0.0,
            metadata_share=cells.metadata_share,
            generation_weight=optim.generation_weight,
            loss_on=optim.loss_on,
            distinct_words="off" if words is None else "tokens" if words.token_ids_w is None else "words",
            word_share=optim.word_share if training else 1.0,
            augment=recipe.augment if training else None,
        ),
        tasks=weights,
        profile=learned.profile,
        sources=cells.visits if training else None,
        seed=seed,
        epochs=None if training else 1,
    )


def new_model(
    cells: TrainingCells, recipe: TrainRecipe, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model from nothing and its tokenizer; gene vectors start from the training cells, or at random."""
    scratch, sentences, words = recipe.model.scratch, cells.sample.sentences, cells.corpus.vocabulary.symbols
    tokenizer = new_tokenizer(cells, scratch.context_length)
    vectors = None
    if recipe.model.word_vectors == "co_expression":
        expression_ng = cells.sample.log_ng
        if expression_ng is None:  # what falls like it, where only ranks are kept
            some = sentences[: _MAX_DENSE // len(words)]
            if recipe.sentence.top_genes is not None:
                some = some.truncate(recipe.sentence.top_genes)
            weights = (1 / np.log2(1.0 + some.ranks())).astype(np.float32)
            arrays = (weights, some.gene_ids.astype(np.int32), some.offsets)
            expression_ng = csr_matrix(arrays, shape=(len(some), len(words)))
        rank = min(recipe.model.word_vector_rank, scratch.hidden_size - 1, expression_ng.shape[0] - 1)
        vectors = co_expression_vectors(expression_ng, rank=rank, seed=seed)
    chosen = np.random.default_rng([seed, 4]).permutation(len(sentences))[:1000]
    top_genes = recipe.sentence.top_genes
    texts = [sentences.ids(int(i))[:top_genes] for i in chosen]
    model = scratch_model(
        tokenizer,
        scratch,
        seed=seed,
        words=words,
        word_vectors=vectors,
        word_texts=texts,
        has_profile=has_profile(cells, recipe),
    )
    if "cell_type_annotation" in cells.shares:
        asked = sample_examples(
            cells.corpus, "train", _PRIOR_EXAMPLES, task="cell_type_annotation", seed=seed, top_genes=top_genes
        )
        prompts = encode_prompts(tokenizer, [one.prompt for one in asked])
        answers = encode_completions(tokenizer, [one.completion for one in asked])
        start_at_frequencies(model, prompts, np.array([ids[0] for ids in answers], dtype=np.int64))
    return model, tokenizer


def new_tokenizer(cells: TrainingCells, context_length: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer with byte-level pieces of the wordings, metadata, abstracts and names of tables."""
    corpus = cells.corpus
    texts = [template.text for name in cells.shares for template in tasks[name].templates.training]
    values = {text for column in corpus.description.counts for text in corpus.labels(column) if column in _METADATA}
    texts += [f" {text}." for text in sorted(values)] * 20  # labels are few beside the wordings
    texts += [source.abstract for source in corpus.description.sources]
    texts += [s.name for s in corpus.gene_sets("train")]
    texts += [f"{t.label}. {t.definition}" for t in corpus.cell_type_terms("train")]
    return build_tokenizer(corpus.vocabulary.symbols, texts, context_length=context_length)
