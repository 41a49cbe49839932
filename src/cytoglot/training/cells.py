"""What training needs to know of its cells: the corpus that is read, and what holds for those of a file alone.

A file of cells becomes a corpus of its own for as long as it is trained on; from here on there are corpora only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec, load_split
from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.format.shard_file import concat_blocks
from cytoglot.corpus.from_cells import LABELLED, UNLABELLED, CellOptions, corpus_of_cells
from cytoglot.corpus.read.epoch_plan import checked_sources
from cytoglot.corpus.read.examples import available_tasks
from cytoglot.corpus.read.records import read_row_group, row_groups
from cytoglot.data.genes.options import AS_NAMED, DEFAULT_GENES
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.schema import group_columns
from cytoglot.data.splits.content import content_of_cells, fingerprint_cells
from cytoglot.data.splits.matching import match_cells
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import FRACTIONS
from cytoglot.errors import InputError
from cytoglot.lm.model.fingerprint import folder_fingerprint
from cytoglot.manifest import Manifest, fingerprint_texts
from cytoglot.sentence.augment import tie_order
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks
from cytoglot.training.job import TrainJob
from cytoglot.training.loop.fit import Run
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.release.model_card import corpus_facts

if TYPE_CHECKING:
    from anndata import AnnData

_SAMPLE_CELLS, _CALIBRATION_CELLS = 4000, 400
"""cells that a corpus is described by, and that a model of it is calibrated on"""
_LEAST_VISITS = 4096
"""a smaller file is gone through several times in an epoch, so that few of its batches lack examples"""


@dataclass(frozen=True, kw_only=True)
class CellSample:
    """Some cells of a part. Axes: n cells, g genes."""

    sentences: CellSentences
    metadata: Mapping[str, NDArray[np.object_]]
    """name → (n,) values, None where unknown; always with `cell_type`"""
    tied: NDArray[np.bool_] | None = None
    """(w,) whether each gene of the sentences is expressed as much as the one before it; None where that is unknown"""
    log_ng: csr_matrix | None = None
    """their expression, log10(1 + counts per 10,000), where it is known"""

    @property
    def labels(self) -> NDArray[np.object_]:
        """(n,) cell type, None where unknown."""
        return self.metadata["cell_type"]

    def with_random_ties(self, seed: int) -> CellSentences:
        """Return the sentences with genes of equal expression in random order, as cells are learned to be written.

        They are as they are where it is not known which genes are equal.
        """
        if self.tied is None:
            return self.sentences
        order = tie_order(self.tied, np.random.default_rng([seed, 14]))
        return replace(self.sentences, gene_ids=self.sentences.gene_ids[order])


@dataclass(frozen=True, kw_only=True)
class TrainingCells:
    """A corpus and how it is learned from; the defaults are those of a corpus that was built as one."""

    corpus: Corpus
    shares: Mapping[str, float]
    """task → share of the examples, as the recipe names them"""
    weights: Mapping[str, float]
    """task → weight among the tasks that can ask a cell"""
    visits: Mapping[str, float]
    """source → how often its cells are visited in an epoch"""
    sample: CellSample
    """training cells: what a model from nothing starts from, and what the finished one tells of its cells"""
    metadata_share: float = 0.5
    """probability that optional metadata are told, for each field apart"""
    validation_weights: Mapping[str, float]
    """task → weight in the validation loss"""
    packed: bool = True
    """what `optim.packing: auto` means"""
    label_column: str = "cell_type"
    context: Mapping[str, str] = field(default_factory=dict)
    """metadata of every cell"""
    views: int = 1
    """views that calibration may choose to average"""
    n_calibration: int = _CALIBRATION_CELLS
    fits_generation: bool = False
    """whether calibration writes cells, to fit their temperature: cells of a corpus may be too long for that"""
    tie_rates: NDArray[np.float32] | None = None
    split: Split | None = None
    """of the cells of a file"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """what the model card tells of a corpus"""
    messages: tuple[str, ...] = ()

    def calibration_cells(self, seed: int) -> CellSample | None:
        """Return validation cells, None where there are none."""
        if not self.corpus.shards("validation"):
            return None
        return sample_cells(self.corpus, "validation", n=self.n_calibration, seed=seed)


def begin_run(job: TrainJob, source: AnnData | Corpus) -> Run:
    """Return the run of a job, whose manifest tells what made the model.

    Two runs are the same where config and inputs are equal.
    """
    recipe = job.recipe
    config: dict[str, Any] = {"recipe": recipe.model_dump(mode="json")}
    inputs: dict[str, Any]
    if isinstance(source, Corpus):
        inputs = {"corpus": source.description.fingerprint, "source": source.folder.name}
        if recipe.kind != "grpo":  # which tasks a corpus can ask is part of it, where the recipe leaves it open
            config["recipe"]["tasks"] = shares_of(source, recipe)
    else:
        kept = None if job.split is None else json.dumps(job.split.to_dict() | {"content": None})
        config |= {"label": job.label, "split": job.split_by if kept is None else fingerprint_texts([kept])}
        config |= {} if job.fractions == FRACTIONS else {"fractions": list(job.fractions)}
        # What gene options did to the cells is in the inputs already.
        config |= job.gene_options.to_dict() if job.gene_options != DEFAULT_GENES else {}
        columns = [
            job.label,
            recipe.sentence.hvg_batch_key,
            *([] if job.split_by in ("auto", "cell") else [job.split_by]),
        ]
        if recipe.kind == "grpo" or (job.split is None and job.split_by == "auto"):  # one of them may be chosen
            columns += group_columns(source.obs)
        inputs = {
            **fingerprint_cells(source, [column for column in columns if column is not None]),
            "source": Path(job.source).name if isinstance(job.source, (str, Path)) else "AnnData",
        }
    base = recipe.model.base
    if base is not None:
        folder = Path(base).expanduser()
        named = f"{base}@{recipe.model.revision or 'main'}"
        inputs = {**inputs, "base": folder_fingerprint(folder) if folder.is_dir() else named}
    manifest = Manifest(command="train", config=config, seeds={"seed": job.seed}, inputs=inputs)
    return Run(folder=job.folder, recipe=recipe, manifest=manifest, seed=job.seed, device=job.device)


@contextmanager
def training_cells(
    job: TrainJob, source: AnnData | Corpus, *, base: CellModel | None = None
) -> Iterator[TrainingCells]:
    """Give what is trained on; a corpus that is made of a file is gone afterwards.

    Parameters
    ----------
    base
        A model whose genes, ranking and split hold for the cells of a file.

    Raises
    ------
    InputError
        The cells or the label column cannot be used, or cannot be asked by a task that the recipe names.
    """
    if isinstance(source, Corpus):
        shares = shares_of(source, job.recipe)
        yield TrainingCells(
            corpus=source,
            shares=shares,
            weights=shares,
            visits=checked_sources(source, job.recipe.sources),
            sample=sample_cells(source, "train", n=_SAMPLE_CELLS, seed=job.seed),
            validation_weights=shares,
            facts={"corpus": corpus_facts(source)},
        )
        return
    check_file_tasks(job.recipe)
    with TemporaryDirectory(prefix="cytoglot-") as folder:
        yield _of_file(job, source, Path(folder) / "corpus", base)


def _of_file(job: TrainJob, adata: AnnData, folder: Path, base: CellModel | None) -> TrainingCells:
    recipe, sentence = job.recipe, job.recipe.sentence
    context = {**({} if base is None else base.spec.context), **recipe.context}
    split, rank = job.split, None
    messages: tuple[str, ...] = ()
    if base is not None:
        known = load_split(base.folder) if base.folder is not None else None
        if split is None and (job.split_by, job.fractions) == ("auto", FRACTIONS) and known is not None:
            content = content_of_cells(adata, base.spec.vocabulary)
            matched = match_cells(known, adata.obs_names, content, new_cells=known.content is not None)
            if (matched.part != "").all():
                split = matched.split_of(adata.obs_names, known)
                messages = ("cells are divided as when the base model was trained",)

        def rank(cells: AnnData) -> CellSentences:
            return base.sentences(cells, gene_options=AS_NAMED, min_overlap=recipe.model.min_known_genes)[0]

    options = CellOptions(
        hvg=sentence.hvg,
        hvg_flavor=sentence.hvg_flavor,
        hvg_batch_key=sentence.hvg_batch_key,
        ties=sentence.ties,
        qc=recipe.qc,
        train_share=recipe.train_share,
        shuffle_labels=recipe.control == "shuffled_labels",
        metadata=context,
    )
    made = corpus_of_cells(
        adata,
        folder,
        label=str(job.label),
        options=options,
        split=split,
        split_by=job.split_by,
        fractions=job.fractions,
        seed=job.seed,
        rank=rank,
    )
    shares = default_shares(recipe)
    n_known = int(np.count_nonzero(made.labels != None))  # noqa: E711 - elementwise
    weights, visits = weights_of_file(shares, n_labelled=n_known, n_unlabelled=len(made.labels) - n_known)
    annotation = "cell_type_annotation"
    return TrainingCells(
        corpus=made.corpus,
        shares=shares,
        weights=weights,
        visits={name: n for name, n in visits.items() if name in {s.name for s in made.corpus.description.sources}},
        sample=CellSample(
            sentences=made.sentences,
            metadata={name: np.full(len(made.labels), value, dtype=object) for name, value in context.items()}
            | {"cell_type": made.labels},
            tied=made.tied,
            log_ng=made.log_ng,
        ),
        metadata_share=1.0,
        # Many files have few cells: the loss of their types tells better when to stop than that of writing cells.
        validation_weights={annotation: 1.0} if annotation in shares else shares,
        packed=False,
        label_column=str(job.label),
        context=context,
        views=recipe.views,
        n_calibration=adata.n_obs,
        fits_generation=True,
        tie_rates=made.tie_rates,
        split=made.split,
        messages=(*messages, *made.messages),
    )


def default_shares(recipe: TrainRecipe) -> dict[str, float]:
    """Return the recipe's mixture for a file; reinforcement learning writes cells where the recipe names no task."""
    if recipe.kind == "grpo" and "tasks" not in recipe.model_fields_set:
        return {"cell_generation": 1.0}
    return dict(recipe.tasks)


def shares_of(corpus: Corpus, recipe: TrainRecipe) -> dict[str, float]:
    """Return the mixture for a corpus: what the recipe names, else equal shares of everything that it can ask.

    Raises
    ------
    InputError
        A task can ask nothing of the training part.
    """
    askable = available_tasks(corpus, "train")
    if "tasks" not in recipe.model_fields_set and recipe.kind != "grpo":
        return dict.fromkeys(askable, 1.0)
    shares = default_shares(recipe)
    absent = sorted(set(shares) - set(askable))
    if absent:
        raise InputError(
            f"{corpus.folder} holds nothing that the tasks {absent} could ask; it can ask: {', '.join(askable)}"
        )
    return shares


def check_file_tasks(recipe: TrainRecipe) -> None:
    """Refuse tasks that ask for more than a file of labelled cells tells, before it is ranked."""
    record = CellRecord(genes=("GENE1", "GENE2"), metadata={**recipe.context, "cell_type": "B"}, cell_id="c")
    for name in default_shares(recipe):
        if tasks[name].unit != "cell" or not tasks[name].can_ask(record):
            raise InputError(
                f"task {name!r} needs more than the genes and types of single cells; build a corpus with "
                "`cytoglot corpus build` and train on that"
            )


def weights_of_file(
    shares: Mapping[str, float], *, n_labelled: int, n_unlabelled: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return weights of the tasks and visits to labelled and unlabelled cells, so that examples have the shares.

    A cell without a label can be asked by some tasks alone. Visited as often as the others, cells without labels would
    give these tasks more than their share; so they are visited as often as these tasks ask of them, and cells with a
    label are asked by these tasks the less.
    """
    total, n = sum(shares.values()), n_labelled + n_unlabelled
    needs_label = {name: "cell_type" in tasks[name].required_metadata for name in shares}
    if n_labelled == 0:
        if all(needs_label.values()):
            raise InputError("expected training cells with a label, found none; pass another split, or other tasks")
        return {name: share for name, share in shares.items() if not needs_label[name]}, {UNLABELLED: 1.0}
    unlabelled_share = sum(s for name, s in shares.items() if not needs_label[name]) / total * n_unlabelled / n
    weights = {name: share if needs_label[name] else share * n_labelled / n for name, share in shares.items()}
    least = max(1.0, float(np.ceil(_LEAST_VISITS / n_labelled)))
    visits = {LABELLED: least}
    if n_unlabelled:
        visits[UNLABELLED] = least * unlabelled_share / (1 - unlabelled_share) * n_labelled / n_unlabelled
    return weights, visits


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
    metadata: dict[str, NDArray[np.object_]] = {"cell_type": np.full(len(block), None, dtype=object)}
    for name in block.metadata_columns:
        codes, texts = block.values(name)
        metadata[name] = np.array([*texts, None], dtype=object)[codes]
    sentences = CellSentences(
        cell_ids=np.array(block.cell_ids.to_pylist(), dtype=object),
        offsets=block.offsets,
        gene_ids=block.gene_ids,
        n_expressed=block.n_expressed,
        vocabulary=corpus.vocabulary,
        settings=corpus.description.settings,
    )
    return CellSample(sentences=sentences, metadata=metadata, tied=block.tied)


def spec_of(cells: TrainingCells, recipe: TrainRecipe, manifest: Manifest) -> CellModelSpec:
    """Return what a model that learned from these cells knows of them, not yet calibrated."""
    corpus, sample = cells.corpus, cells.sample
    # A file's column is known to the model whatever it was asked; of a corpus the types are where they were asked for.
    is_typed = cells.split is not None or "cell_type_annotation" in cells.shares
    table = corpus.count("cell_type", "train") if is_typed else {}
    top_genes = recipe.sentence.top_genes
    lengths = np.minimum(sample.sentences.lengths, top_genes or np.iinfo(np.int64).max)
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    return CellModelSpec(
        vocabulary=corpus.vocabulary,
        ranking=replace(corpus.description.settings, top_genes=top_genes),
        tie_rates=None if cells.tie_rates is None else tuple(float(rate) for rate in cells.tie_rates),
        rank_curve=corpus.rank_curve,
        label_column=cells.label_column if table else None,
        labels=tuple(table),
        label_counts=tuple(table.values()),
        label_ontology_ids={name: term for name, term in map_labels(list(table)).ids.items() if term is not None},
        words_per_label={
            str(name): tuple(int(q) for q in np.quantile(lengths[sample.labels == name], quantiles))
            for name in sorted(table)
            if np.any(sample.labels == name)
        },
        expressed_per_word=float(sample.sentences.n_expressed.sum() / max(int(lengths.sum()), 1)),
        context=cells.context,
        tasks=tuple(cells.shares),
        augment=recipe.augment,
        views=cells.views,
        manifest=manifest.to_dict(),
    )
