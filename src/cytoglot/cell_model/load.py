"""A language model and what it knows of cells, as one object: cells in, prompts and scores out.

Axes: n cells, k labels, d embedding dimensions.
"""

from __future__ import annotations

import logging
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from cytoglot.answer_format import AnswerFormat, DistinctWords
from cytoglot.cell_model.cell_prompt import CellPrompt
from cytoglot.cell_model.file_cells import FileCells
from cytoglot.cell_model.sentence_head import HEAD_FILE, SentenceHead
from cytoglot.cell_model.spec import SPEC_FILE, SPLIT_FILE, Calibration, CellModelSpec
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.readers.stream import CellStream, open_cells
from cytoglot.data.relations import read_relations
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.embedding.embed import Pooling, Precision, embed_texts
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.model.language_model import LanguageModel, html_card
from cytoglot.lm.model.load import Dtype, load_model
from cytoglot.lm.model.sources import commit_of, find_file, is_hub_name
from cytoglot.lm.model.tokenizer import encode_pairs
from cytoglot.lm.scoring.distinct_words import AnswerWords
from cytoglot.lm.scoring.score import score_answers
from cytoglot.sentence.augment import answering_view
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.decode import decode_texts
from cytoglot.sentence.encode import encode, ranked_chunks, ranker_for
from cytoglot.sentence.profile import PROFILE_FILE, CellProfile
from cytoglot.sentence.rank_curve import RankCurve, rank_curve_from_dict
from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.c2s_templates import templates_for
from cytoglot.tasks.instance import TaskInstance, truncate_to_fit
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.record_source import CellsSource, Draws, record_sources
from cytoglot.tasks.segments import Genes, Segments
from cytoglot.tasks.task import Task, check_context, tasks

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

CellPooling = Literal["mean", "last", "sentence"]
AnnotationMethod = Literal["auto", "score", "head", "hybrid"]
"""how a cell gets its label: by what the model was calibrated to be best with, by the likelihood of each label, by the
linear head on its sentence, or by the average of both"""

MIN_OVERLAP = 0.3
"""A query that has fewer than this share of the model's genes is refused unless the caller lowers it."""


@dataclass(frozen=True, kw_only=True)
class VocabularyOverlap:
    """How a query's genes and a model's genes meet."""

    n_model: int
    n_query: int
    n_shared: int

    @classmethod
    def of(cls, model: GeneVocabulary, query: GeneVocabulary) -> VocabularyOverlap:
        """Count the genes of the model, of the query, and of both."""
        return cls(n_model=len(model), n_query=len(query), n_shared=int((query.index_of(model.symbols) >= 0).sum()))

    @property
    def share_of_model(self) -> float:
        """Share of the model's genes that the query has."""
        return self.n_shared / self.n_model if self.n_model else 0.0

    @property
    def share_out_of_vocabulary(self) -> float:
        """Share of the query's genes that the model does not know."""
        return 1 - self.n_shared / self.n_query if self.n_query else 0.0

    def __str__(self) -> str:
        return (
            f"{self.n_shared} of the model's {self.n_model} genes are in the query ({self.share_of_model:.0%}); "
            f"the model does not use the other {self.n_query - self.n_shared} of the query's {self.n_query} genes"
        )


@dataclass(frozen=True, kw_only=True)
class SentenceStream:
    """The cells of a file or an AnnData over a model's genes, whatever their number."""

    spec: CellModelSpec
    cells: CellStream
    overlap: VocabularyOverlap
    chunk_cells: int

    def chunks(self, first_cell: int = 0) -> Iterator[CellSentences]:
        """Yield the sentences of the cells from `first_cell` on, `chunk_cells` at a time.

        They are those of `CellModel.sentences`, whatever the chunks: whole, since a view may drop genes before the cut.
        """
        spec, cells = self.spec, self.cells
        settings = RankSettings(ties=spec.ranking.ties, seed=spec.ranking.seed)
        ranker = ranker_for(cells, genes=spec.vocabulary, settings=settings, tie_rates=spec.tie_rates_g)
        ranked = ranked_chunks(cells, ranker, chunk_cells=self.chunk_cells, first_cell=first_cell)
        return (ranker.sentences(block, cells.cell_ids[place]) for place, block in ranked)


@dataclass(frozen=True, kw_only=True, repr=False)
class CellModel:
    """A language model with the genes, labels and calibration that make it one of cells.

    `cytoglot.load_cell_model` and `cytoglot.train` return it, and the verbs take it.

    Examples
    --------
    >>> import cytoglot as cg
    >>> model = cg.load_cell_model("model")
    >>> model.labels[0], model.genes[:3]
    ('type A', ('GENE0', 'GENE1', 'GENE10'))
    """

    lm: LanguageModel
    spec: CellModelSpec
    folder: Path | None = None
    profile: CellProfile | None = None
    """what cells are written with: the weights of the genes for each cell type; None for a pure language model"""
    head: SentenceHead | None = None
    """the linear head that the hybrid averages with the language model; None for a model without one"""
    templates_of_tasks: Mapping[str, Task[Any, Any]] = field(default_factory=dict)
    """task → the same in other wordings, such as those that a released checkpoint was trained with"""

    def __repr__(self) -> str:
        return f"<CellModel: {', '.join(self._facts)}>"

    def _repr_html_(self) -> str:
        shown = ", ".join(self.labels[:20]) + (", …" if len(self.labels) > 20 else "")
        return html_card("CellModel", [*self._facts, *([f"labels: {shown}"] if shown else [])])

    @property
    def _facts(self) -> list[str]:
        size = f"{self.lm.model.num_parameters() / 1e6:,.1f} M parameters"
        place = [] if self.folder is None else [f"{self.folder}/"]
        return [f"{len(self.labels):,} labels", f"{len(self.genes):,} genes", size, *place]

    @property
    def labels(self) -> tuple[str, ...]:
        """The cell types that it assigns, in the order of its probabilities."""
        return self.spec.labels

    @property
    def genes(self) -> tuple[str, ...]:
        """The symbols of the genes that it reads and writes, in the order of its vocabulary."""
        return tuple(self.spec.vocabulary.symbols)

    @property
    def card(self) -> str:
        """The text of the model card, `README.md` of its folder; empty where there is none."""
        path = None if self.folder is None else self.folder / "README.md"
        return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""

    def task(self, name: str) -> Task[Any, Any]:
        """Return a task in the wordings of this model.

        Parameters
        ----------
        name
            Of the registry, such as "cell_type_annotation".
        """
        return self.templates_of_tasks.get(name) or tasks[name]

    def with_templates(self, source: str | Path) -> CellModel:
        """Return the model with prompts of its own for annotation and, where the source has them, for generation.

        Parameters
        ----------
        source
            As in `cytoglot.tasks.c2s_templates.templates_for`: "cell2sentence" for those of the installed package,
            a folder of its JSON files, or one TOML or JSON file, which is for annotation.
        """
        names = ["cell_type_annotation"]
        if Path(source).suffix not in {".json", ".toml"}:
            names.append("cell_generation")
        changed = {name: tasks[name].with_templates(templates_for(name, source)) for name in names}
        return replace(self, templates_of_tasks={**self.templates_of_tasks, **changed})

    def truncate(self, sentences: CellSentences) -> CellSentences:
        """Return the sentences at the length that the model writes: as in training, and as its context has room for.

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        """
        limits = [] if self.spec.ranking.top_genes is None else [self.spec.ranking.top_genes]
        if self.lm.context_length is not None:
            # Words of any kind that fit after the prompt of any type; at least 1.
            words = self.spec.vocabulary.symbols
            constraint = constrain(DistinctWords(words=words, min_words=1, max_words=len(words)), self.lm.tokenizer)
            types: list[Mapping[str, str]] = [
                {**self.spec.context, "cell_type": label} for label in self.spec.labels
            ] or [self.spec.context]
            task = self.task("cell_generation" if self.spec.labels else "unconditional_generation")
            prompts = [task.prompt(CellRecord(num_genes=len(words), metadata=metadata)) for metadata in types]
            room = self.lm.context_length - max(len(ids) for ids in self.lm.tokenizer(prompts)["input_ids"])
            limits.append(max(1, bisect_right(range(1, len(words) + 1), room, key=constraint.enough_tokens)))
        return sentences.truncate(min(limits)) if limits else sentences

    @property
    def rank_curve(self) -> RankCurve:
        """The curve from ranks to expression, fitted on training cells.

        Raises
        ------
        InputError
            The model has none (a checkpoint that was not trained here).
        """
        if self.spec.rank_curve is None:
            raise InputError("this model has no rank curve; fit one with `cytoglot reconstruct` on your own cells")
        return rank_curve_from_dict(self.spec.rank_curve)

    def with_calibration(self, calibration: Calibration) -> CellModel:
        """Return the model with another temperature and threshold.

        Parameters
        ----------
        calibration
            The temperature that label scores are divided by, and the confidence below which a cell is `unassigned`.
        """
        return replace(self, spec=replace(self.spec, calibration=calibration))

    def sentences(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        gene_options: GeneOptions = DEFAULT_GENES,
        min_overlap: float = MIN_OVERLAP,
    ) -> tuple[CellSentences, VocabularyOverlap]:
        """Rank the cells of `adata` over the model's genes, as in training; labels are neither needed nor read.

        The sentences are whole: `records` cuts them off at the model's length, after a view has dropped its genes.

        Parameters
        ----------
        adata
            Cells; counts or log values.
        layer
            Matrix to rank: "X", "raw" or the name of a layer; None finds it.
        gene_options
            How columns become genes: see `cytoglot.read`.
        min_overlap
            Share of the model's genes, 0 to 1, that the cells must have.

        Raises
        ------
        VocabularyMismatchError
            The query has fewer than `min_overlap` of the model's genes.
        InputError
            As for `cytoglot.read`.

        Examples
        --------
        >>> import cytoglot as cg
        >>> sentences, overlap = cg.load_cell_model("model").sentences(cg.read("cells.h5ad"))
        >>> len(sentences), overlap.share_of_model
        (240, 1.0)
        """
        with self.open_sentences(adata, layer=layer, gene_options=gene_options, min_overlap=min_overlap) as stream:
            ranking = self.spec.ranking
            sentences = encode(
                stream.cells,
                genes=self.spec.vocabulary,
                ties=ranking.ties,
                seed=ranking.seed,
                tie_rates=self.spec.tie_rates_g,
            )
        return sentences, stream.overlap

    @contextmanager
    def open_sentences(
        self,
        source: AnnData | str | Path,
        *,
        layer: str | None = None,
        gene_options: GeneOptions = DEFAULT_GENES,
        min_overlap: float = MIN_OVERLAP,
        chunk_cells: int = 1024,
    ) -> Iterator[SentenceStream]:
        """Open cells to rank them by chunks; of a file `obs`, the names of genes and one chunk are in memory.

        Parameters
        ----------
        source
            An AnnData, or a file that `cytoglot.read` takes.
        layer
            Matrix to rank: "X", "raw" or the name of a layer; None finds it.
        gene_options
            How columns become genes: see `cytoglot.read`.
        min_overlap
            Share of the model's genes, 0 to 1, that the cells must have.
        chunk_cells
            Cells ranked at a time.

        Raises
        ------
        VocabularyMismatchError, InputError
            As for `sentences`.
        """
        with open_cells(source, layer=layer, **gene_options.keywords) as cells:
            overlap = self.overlap_with(cells.vocabulary, min_overlap=min_overlap)
            logger.info("%s", overlap)
            yield SentenceStream(spec=self.spec, cells=cells, overlap=overlap, chunk_cells=chunk_cells)

    def overlap_with(self, query: GeneVocabulary, *, min_overlap: float = MIN_OVERLAP) -> VocabularyOverlap:
        """Return how a query's genes meet those of the model.

        Parameters
        ----------
        query
            The genes of the cells.
        min_overlap
            Share of the model's genes, 0 to 1, that the query must have.

        Raises
        ------
        VocabularyMismatchError
            The query has fewer than `min_overlap` of the model's genes, or none.
        """
        known = self.spec.vocabulary
        overlap = VocabularyOverlap.of(known, query)
        if overlap.share_of_model < min_overlap or overlap.n_shared == 0:
            found, wanted = _species_of(query.symbols), _species_of(known.symbols)
            if found is not None and wanted is not None and found != wanted:
                fix = (
                    f"the query looks like {found}, the model like {wanted}: rename the genes to {wanted} orthologs "
                    "with --gene-mapping FILE (gene_options in Python), or take a model of the same species"
                )
            elif overlap.n_shared == 0:
                fix = "pass data with the same kind of gene names and of the same species"
            else:
                fix = (
                    "if names and species are the same and genes are only missing, such as after a choice of "
                    f"variable genes, pass --min-overlap {np.floor(100 * overlap.share_of_model) / 100:g} "
                    "(min_overlap in Python); confidence falls with fewer genes"
                )
            raise VocabularyMismatchError(
                f"{overlap}; at least {min_overlap:.0%} of the model's genes are needed: the model knows "
                f"{_examples(known.symbols)}, the query has {_examples(query.symbols)}; {fix}"
            )
        return overlap

    def records(
        self, sentences: CellSentences, *, context: Mapping[str, str] | None = None, view: int = 0
    ) -> Iterator[CellRecord]:
        """Yield one record per cell, without a label.

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        view
            0: the cell as it is; others leave out some genes, the same ones each time.
        """
        check_context(context)
        metadata = {**self.spec.context, **(context or {})}
        words = sentences.vocabulary.names
        for i, cell_id in enumerate(sentences.cell_ids):
            gene_ids: NDArray[Any] = sentences.ids(i)
            gene_ids = answering_view(gene_ids, cell_id=str(cell_id), view=view, settings=self.spec.augment)
            genes = Genes(gene_ids[: self.spec.ranking.top_genes], words)
            yield CellRecord(cell_id=str(cell_id), genes=genes, metadata=metadata)

    def ask(
        self,
        adata: AnnData,
        task: str,
        *,
        layer: str | None = None,
        gene_options: GeneOptions = DEFAULT_GENES,
        min_overlap: float = MIN_OVERLAP,
        template: int | str | None = None,
    ) -> list[TaskInstance]:
        """Return what a task asks of the records of `adata`, whatever they are made of: cells, groups, related cells.

        What `obs` knows of the cells under recognized names is told; cell groups are the cells of one value of
        `obs["cell_group"]`, relations as in `cytoglot.data.relations.read_relations`. A record that the task cannot ask
        without its answer is left out only if it has no content: labels are not needed.

        Parameters
        ----------
        adata
            Cells; counts or log values.
        task
            Name of a task of the registry.
        layer
            Matrix to rank: "X", "raw" or the name of a layer; None finds it.
        gene_options
            How columns become genes: see `cytoglot.read`.
        min_overlap
            Share of the model's genes, 0 to 1, that the cells must have.
        template
            Number or name of the prompt template; None takes the shortest that fits.

        Raises
        ------
        VocabularyMismatchError, InputError
            As for `sentences`; or the records of the task are no cells.
        """
        chosen = self.task(task)
        source = record_sources[chosen.unit]
        if not isinstance(source, CellsSource):
            raise InputError(f"task {task!r} asks about a {source.words}, which is not made of cells; ask a corpus")
        sentences, _ = self.sentences(adata, layer=layer, gene_options=gene_options, min_overlap=min_overlap)
        relations = read_relations(adata, [] if source.relation is None else [source.relation])
        cells = FileCells(sentences, adata.obs, relations, metadata=self.spec.context)
        draws, top_genes = Draws(0), self.spec.ranking.top_genes
        records = (source.record(cells, row, draws, top_genes=top_genes) for row in source.rows(cells).tolist())
        return [
            TaskInstance(chosen, record, chosen.short_template(record) if template is None else template)
            for record in (one.with_variant(0) for one in records)
            if chosen.has_content(record)
        ]

    def cell_prompts(
        self,
        sentences: CellSentences,
        *,
        task: str = "cell_type_annotation",
        context: Mapping[str, str] | None = None,
        view: int = 0,
        template: int | str | None = None,
        n_reserved: int = 1,
    ) -> list[CellPrompt]:
        """Return the task's prompt for each cell.

        A sentence too long for the model's context loses its last genes, as in training, so that `n_reserved` tokens
        are left for an answer.

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        task
            Name of a task of the registry about one cell.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        view
            As in `records`.
        template
            Number or name of the prompt template; None takes the default one.
        n_reserved
            Tokens to leave for the answer.
        """
        chosen: Task[CellRecord, Any] = self.task(task)
        records = list(self.records(sentences, context=context, view=view))
        asked = [TaskInstance(chosen, record, template) for record in records]
        prompts = [CellPrompt(segments=one.prompt(), record=record) for one, record in zip(asked, records, strict=True)]
        room = None if self.lm.context_length is None else self.lm.context_length - n_reserved
        # A token has a byte at least, so most models need no counting.
        if room is None or max((len(prompt.text.encode()) for prompt in prompts), default=0) <= room:
            return prompts

        def with_lengths(some: Sequence[TaskInstance]) -> list[tuple[Segments, int]]:
            shown = [one.prompt() for one in some]
            ids = self.lm.tokenizer([prompt.text for prompt in shown])["input_ids"]
            return list(zip(shown, map(len, ids), strict=True))

        fitting = truncate_to_fit(asked, [room] * len(asked), with_lengths)
        n_long = sum(one is None or one[0] is not whole for one, whole in zip(fitting, asked, strict=True))
        if n_long:
            logger.info("%d of %d sentences are cut to the model's context of %d tokens", n_long, len(prompts), room)
        # Where not even a prompt without genes fits, the model is asked that and says itself that it is too long.
        shown = [0 if one is None else one[0].record.longest for one in fitting]
        return [
            prompt
            if one is not None and one[0] is whole
            else CellPrompt(segments=replace(whole, record=cut).prompt(), record=cut)
            for prompt, one, whole, cut in zip(
                prompts, fitting, asked, (r.truncate(n) for r, n in zip(records, shown, strict=True)), strict=True
            )
        ]

    def label_scores(
        self,
        sentences: CellSentences,
        *,
        labels: Sequence[str] | None = None,
        views: int | None = None,
        context: Mapping[str, str] | None = None,
        template: int | str | None = None,
    ) -> NDArray[np.float64]:
        """Return log p(label | cell) in nats, shape (n, k), a mean over views; not normalized over the labels.

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        labels
            k labels; None: the model's own.
        views
            Augmented views of a cell to average; None: the model's number.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        template
            Number or name of the prompt template; None takes the default one.

        Examples
        --------
        >>> import cytoglot as cg
        >>> model = cg.load_cell_model("model")
        >>> sentences, _ = model.sentences(cg.read("cells.h5ad")[:2])
        >>> model.label_scores(sentences).shape
        (2, 3)
        """
        annotation = self.task("cell_type_annotation")
        assert isinstance(annotation, LabelAnswer)
        answers = annotation.label_completions(self.spec.labels if labels is None else labels)
        n_views = self.spec.views if views is None else views
        total = np.zeros((len(sentences), len(answers)))
        n_reserved = 2 + max(len(ids) for ids in self.lm.tokenizer(list(answers))["input_ids"])
        for view in range(n_views):
            prompts = self.cell_prompts(sentences, context=context, view=view, template=template, n_reserved=n_reserved)
            total += score_answers(self.lm, [prompt.text for prompt in prompts], answers)
        return total / n_views

    def label_log_probabilities(
        self,
        sentences: CellSentences,
        *,
        labels: Sequence[str] | None = None,
        method: AnnotationMethod = "auto",
        views: int | None = None,
        context: Mapping[str, str] | None = None,
        template: int | str | None = None,
    ) -> NDArray[np.float64]:
        """Return calibrated log p(label | cell) in nats, shape (n, k), normalized over the labels.

        Parameters
        ----------
        sentences
            Cells over the model's genes, whole, as `sentences` returns them.
        labels, views, context, template
            As in `label_scores`.
        method
            "score": the likelihood of each label; "head": the linear head on the sentence; "hybrid": their average;
            "auto": as `annotation_method` says.

        Raises
        ------
        InputError
            The model has no head, or other labels than its own are asked for with one.
        """
        chosen, fitted = self.annotation_method(method, labels=labels), self.spec.calibration
        if chosen == "head":
            assert self.head is not None
            return self.head.log_probabilities(sentences)
        scores_nk = self.label_scores(sentences, labels=labels, views=views, context=context, template=template)
        log_p_nk: NDArray[np.float64] = log_softmax(scores_nk / fitted.temperature, axis=1)
        return log_p_nk if chosen == "score" else self.hybrid_log_probabilities(log_p_nk, sentences)

    def hybrid_log_probabilities(self, scored_nk: NDArray[np.float64], sentences: CellSentences) -> NDArray[np.float64]:
        """Return the hybrid's log p(label | cell) in nats, (n, k), from what scoring has found already.

        Parameters
        ----------
        scored_nk
            What `label_log_probabilities` returns for these cells with the method "score".
        sentences
            Cells over the model's genes, whole.

        Raises
        ------
        InputError
            The model has no head.
        """
        self.annotation_method("hybrid")
        fitted = self.spec.calibration.hybrid
        assert self.head is not None
        assert fitted is not None
        mixed_nk = (1 - fitted.head_weight) * scored_nk + fitted.head_weight * self.head.log_probabilities(sentences)
        return np.asarray(log_softmax(mixed_nk / fitted.temperature, axis=1))

    def annotation_method(
        self, method: AnnotationMethod = "auto", *, labels: Sequence[str] | None = None
    ) -> Literal["score", "head", "hybrid"]:
        """Return how cells are annotated: what is asked for, or by default what had the lower loss on validation cells.

        Parameters
        ----------
        method
            As in `label_log_probabilities`.
        labels
            The labels to choose from; the head knows only the model's own.

        Raises
        ------
        InputError
            The model has no head, or other labels than its own are asked for with one.
        """
        if method not in get_args(AnnotationMethod):
            raise InputError(f"method must be one of {', '.join(get_args(AnnotationMethod))}, found {method!r}")
        own = labels is None or tuple(labels) == self.spec.labels
        can_mix = own and self.head is not None and self.spec.calibration.hybrid is not None
        if method == "auto":
            return self.spec.calibration.method if can_mix else "score"
        if method != "score" and not can_mix:
            why = (
                "of its own labels alone" if self.head is not None else "not of this model, which has no sentence head"
            )
            raise InputError(f"method {method!r} is {why}; pass method 'score'")
        return method

    def write(
        self,
        cell_type: str | None,
        lengths: NDArray[np.integer],
        *,
        temperature: float,
        top_p: float = 1.0,
        context: Mapping[str, str] | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> list[str]:
        """Return one new cell sentence per length: every word a gene of the vocabulary, none twice.

        The type and number of a cell, counted from `first`, are the key of its noise, so it does not depend on others.

        Parameters
        ----------
        cell_type
            One of the model's labels; None is any type.
        lengths
            Genes of each sentence, shape (n,).
        temperature, top_p
            Of the sampling; temperature 0 takes the most likely gene.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        seed
            Of the noise.
        first
            Number of the first cell.
        """
        prompts, formats = self.generation_prompts(cell_type, lengths, context=context)
        answers = generate_answers(
            self.lm,
            prompts,
            formats,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            # Cell 3 of one type must not have the noise of cell 3 of another: together they would not be independent.
            keys=[f"{cell_type or ''}\0{first + i}" for i in range(len(lengths))],
        )
        return [text for (text, *_) in answers]

    def generation_prompts(
        self, cell_type: str | None, lengths: NDArray[np.integer], *, context: Mapping[str, str] | None = None
    ) -> tuple[list[str], list[DistinctWords]]:
        """Return the prompt for a new cell sentence of each length, and the format of its answer.

        Parameters
        ----------
        cell_type, lengths, context
            As in `write`.
        """
        task: Task[CellRecord, Any] = self.task("unconditional_generation" if cell_type is None else "cell_generation")
        check_context(context)
        known = {} if cell_type is None else {"cell_type": cell_type}
        metadata = {**self.spec.context, **(context or {}), **known}
        words, weights = self.spec.vocabulary.symbols, None if self.profile is None else self.profile.weights(metadata)
        return (
            [task.prompt(CellRecord(num_genes=int(length), metadata=metadata)) for length in lengths],
            [
                DistinctWords(words=words, min_words=int(length), max_words=int(length), weights=weights)
                for length in lengths
            ],
        )

    def sentence_nats(
        self,
        sentences: CellSentences,
        labels: Sequence[str | None],
        *,
        context: Mapping[str, str] | None = None,
        batch_size: int = 16,
    ) -> NDArray[np.float64]:
        """Return −log p of each cell sentence given its type and its length, in nats a word, shape (n,).

        It is the probability with which `generate` writes the sentence: every word among those not yet written, with
        the profile's weights if the model has a profile. Sentences are cut to the length that the model writes. NaN
        for a cell without genes.

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        labels
            (n,) cell type of each, None for any type.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        batch_size
            Cells at a time.
        """
        cut = self.truncate(sentences)
        words = AnswerWords.of(
            self.lm.tokenizer,
            tuple(self.spec.vocabulary.symbols),
            log_weights_cw=None if self.profile is None else self.profile.log_weights_cg,
        )
        names, nats = cut.vocabulary.names, np.full(len(cut), np.nan)
        filled = np.flatnonzero(cut.lengths > 0)
        for start in range(0, len(filled), batch_size):
            rows = filled[start : start + batch_size]
            prompts, answers, conditions = [], [], []
            for i in rows.tolist():
                asked, _ = self.generation_prompts(labels[i], np.array([cut.lengths[i]]), context=context)
                known = {
                    **self.spec.context,
                    **(context or {}),
                    **({} if labels[i] is None else {"cell_type": labels[i]}),
                }
                prompts += asked
                answers.append(" " + " ".join(names[cut.ids(i)]))
                conditions.append(0 if self.profile is None else self.profile.row(known))
            pairs = encode_pairs(self.lm.tokenizer, prompts, answers, eos=False)
            width = max(len(ids) for ids, _ in pairs)
            ids_bt = torch.full((len(rows), width), self.lm.pad_id)
            n_words_bt, conditions_bt = torch.zeros((2, len(rows), width), dtype=torch.int64)
            for b, (ids, n_prompt) in enumerate(pairs):
                ids_bt[b, : len(ids)] = torch.from_numpy(ids)
                n_words_bt[b, n_prompt : len(ids)] = int(cut.lengths[rows[b]])
                conditions_bt[b, n_prompt : len(ids)] = conditions[b]
            device, predicts_bt = self.lm.device, n_words_bt > 0
            with self.lm.inference():
                logits_btv = self.lm.model(input_ids=ids_bt.to(device), use_cache=False).logits
                loss_n = words.losses(
                    logits_btv[:, :-1][predicts_bt[:, 1:].to(device)],
                    predicts_bt.to(device),
                    ids_bt.to(device),
                    n_words_bt.to(device),
                    conditions_bt.to(device),
                )
            nats[rows] = np.bincount(
                predicts_bt.nonzero(as_tuple=True)[0].numpy(),
                weights=loss_n.cpu().double().numpy(),
                minlength=len(rows),
            )
        return nats / np.maximum(cut.lengths, 1)

    def generate_ids(
        self, cell_type: str | None, lengths: NDArray[np.integer], *, temperature: float, seed: int = 0
    ) -> list[NDArray[np.int64]]:
        """Return the gene ids of one new sentence per length, highest first.

        Parameters
        ----------
        cell_type, lengths, temperature, seed
            As in `write`.
        """
        texts = self.write(cell_type, lengths, temperature=temperature, seed=seed)
        sentences, _ = decode_texts(texts, self.spec.vocabulary)
        return [sentences.ids(i).astype(np.int64) for i in range(len(sentences))]

    @property
    def language(self) -> LanguageModel:
        """The language model alone; the old name of `lm`."""
        warnings.warn("CellModel.language is CellModel.lm now", FutureWarning, stacklevel=2)
        return self.lm

    def generate(
        self, prompts: Sequence[str], answer_format: AnswerFormat | str = "free_text", n_samples: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Return `n_samples` answers for each prompt, as `LanguageModel.generate` does.

        Parameters
        ----------
        prompts, answer_format, n_samples, seed
            As in `LanguageModel.generate`.

        Examples
        --------
        >>> import cytoglot as cg
        >>> model = cg.load_cell_model("model")
        >>> prompts = ["Genes of a cell: GENE8 GENE3. Its type is"]
        >>> answers = model.generate(prompts, "one_of: B cell | Monocyte", n_samples=3)
        >>> len(answers), len(answers[0])
        (1, 3)
        """
        return self.lm.generate(prompts, answer_format, n_samples=n_samples, seed=seed)

    def log_likelihood(
        self, prompts: Sequence[str], answers: Sequence[str], *, terminator: bool = True
    ) -> NDArray[np.float64]:
        """Return log p(answer | prompt) in nats, shape (n_prompts, n_answers), as `LanguageModel.log_likelihood` does.

        Parameters
        ----------
        prompts, answers, terminator
            As in `LanguageModel.log_likelihood`.

        Examples
        --------
        >>> import cytoglot as cg
        >>> model = cg.load_cell_model("model")
        >>> model.log_likelihood(["Genes of a cell: GENE8 GENE3. Its type is"], model.labels).shape
        (1, 3)
        """
        return self.lm.log_likelihood(prompts, answers, terminator=terminator)

    def embed(
        self,
        texts: Sequence[str],
        layer: int = -1,
        pooling: Pooling = "mean",
        *,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per text, shape (n_texts, d), as `LanguageModel.embed` does.

        Parameters
        ----------
        texts, layer, pooling, spans
            As in `LanguageModel.embed`.

        Examples
        --------
        >>> import cytoglot as cg
        >>> cg.load_cell_model("model").embed(["GENE8 GENE3", "GENE5"]).shape
        (2, 32)
        """
        return self.lm.embed(texts, layer=layer, pooling=pooling, spans=spans)

    def embeddings(
        self,
        sentences: CellSentences,
        *,
        context: Mapping[str, str] | None = None,
        layer: int = -1,
        pooling: CellPooling = "mean",
        batch_tokens: int | None = None,
        dtype: Precision = "auto",
    ) -> NDArray[np.float32]:
        """Return one vector per cell from the hidden states of its prompt, shape (n, d).

        Parameters
        ----------
        sentences
            Cells over the model's genes, as `sentences` returns them.
        context
            Metadata for the prompts besides the model's own, such as {"tissue": "blood"}.
        layer
            Hidden state: 0 the token vectors, 1 the first layer, …, -1 the last.
        batch_tokens
            Most tokens of a batch; None: what suits the device.
        dtype
            What to compute with: "float32", "bfloat16", or "auto": float32 on a CPU and bfloat16 on CUDA.
        pooling
            "mean" over all tokens of the prompt, "last" token, or "sentence": mean over the tokens of the genes alone
            (an empty cell has none, and gets the mean over its prompt).

        Examples
        --------
        >>> import cytoglot as cg
        >>> model = cg.load_cell_model("model")
        >>> sentences, _ = model.sentences(cg.read("cells.h5ad")[:2])
        >>> model.embeddings(sentences).shape
        (2, 32)
        """
        check_pooling(pooling)
        prompts = self.cell_prompts(sentences, context=context)
        return embed_texts(
            self.lm,
            [prompt.text for prompt in prompts],
            layer=layer,
            pooling="last" if pooling == "last" else "mean",
            spans=[prompt.sentence_span for prompt in prompts] if pooling == "sentence" else None,
            batch_tokens=batch_tokens,
            dtype=dtype,
        )


def load_cell_model(
    name_or_folder: str | Path, *, device: str = "auto", dtype: Dtype = "auto", revision: str | None = None
) -> CellModel:
    """Load a model that `cytoglot.train` wrote, with its genes, labels and calibration.

    Parameters
    ----------
    name_or_folder
        A model folder, or the name of one on the Hugging Face hub ("OWNER/NAME"). A folder that exists wins.
    device
        "auto" takes cuda, else mps, else cpu; anything else is given to torch.
    dtype
        What the weights are held in: "auto" is float32 on a CPU, and else the type they were saved in.
    revision
        Branch, tag or commit on the hub.

    Raises
    ------
    InputError
        The folder is missing, it or the repository holds no `cytoglot.json` (the message says how to use such a
        checkpoint), or its weights cannot be read.

    Examples
    --------
    >>> import cytoglot as cg
    >>> model = cg.load_cell_model("model")
    >>> len(model.labels), len(model.genes)
    (3, 119)
    """
    found = _spec_folder(name_or_folder, revision)
    if found is None and is_hub_name(name_or_folder) and "/" in str(name_or_folder):
        raise InputError(
            f"there is no {SPEC_FILE} in {name_or_folder} on the hub, so it is no cytoglot model (or it cannot be "
            "reached); load it with cytoglot.load_model, and pass labels= to annotate with it"
        )
    folder = found or Path(name_or_folder)
    spec, lm = CellModelSpec.load(folder), load_model(name_or_folder, device=device, dtype=dtype, revision=revision)
    return _with_parts(lm, spec, folder)


def as_cell_model(
    model: CellModel | LanguageModel | str | Path,
    *,
    labels: Sequence[str] | None = None,
    cells: AnnData | str | Path | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    context: Mapping[str, str] | None = None,
    device: str = "auto",
) -> CellModel:
    """Return the cell model that a verb was given, loaded if it is a folder or a name.

    A language model that was not trained here, or its name, becomes an annotator of `labels` over the genes of `cells`
    (see `load_checkpoint`); one that was loaded from a folder of `cytoglot.train` is that folder's cell model.

    Parameters
    ----------
    model
        A cell model, a language model, a folder, or a name on the hub.
    labels, cells, layer, gene_options, context
        For a language model that knows no genes: its labels (none for a task without labels), the cells whose genes it
        is asked about, how they are read, and metadata that every prompt states.
    device
        Of a model that is loaded here.

    Raises
    ------
    InputError
        The model cannot be loaded, or it has no genes of its own and `labels` or `cells` are missing.
    """
    if isinstance(model, CellModel):
        return model
    if isinstance(model, LanguageModel):
        folder = None if model.source is None else _spec_folder(model.source, model.revision)
        if folder is not None:
            spec = CellModelSpec.load(folder)
            return _with_parts(model, spec, folder)
    elif labels is None or _spec_folder(model, None) is not None:
        return load_cell_model(model, device=device)
    if labels is None or cells is None:
        raise InputError(
            f"{model} was not trained by cytoglot, so it has no genes and no labels of its own; pass labels=[...] to "
            "annotate cells with it"
        )
    with open_cells(cells, layer=layer, **gene_options.keywords) as stream:
        vocabulary = stream.vocabulary
    return load_checkpoint(model, vocabulary, labels=labels, context=context, device=device)


def load_checkpoint(
    model: LanguageModel | str | Path,
    vocabulary: GeneVocabulary,
    *,
    labels: Sequence[str],
    context: Mapping[str, str] | None = None,
    top_genes: int = 200,
    device: str = "auto",
    dtype: Dtype = "auto",
    revision: str | None = None,
) -> CellModel:
    """Return any causal language model, or load it, as an annotator of the given labels, without training.

    Cells are ranked over the query's own genes, ties by the default rule; probabilities are not calibrated.
    """
    if not isinstance(model, LanguageModel):
        model = load_model(model, device=device, dtype=dtype, revision=revision)
    spec = CellModelSpec(
        vocabulary=vocabulary,
        ranking=RankSettings(top_genes=top_genes),
        labels=tuple(labels),
        label_counts=(0,) * len(labels),
        context=dict(context or {}),
        tasks=("cell_type_annotation",),
    )
    return CellModel(lm=model, spec=spec, folder=None)


def _spec_folder(source: str | Path, revision: str | None) -> Path | None:
    """Return the folder, or the cached one of a hub repository, that holds a `cytoglot.json`; None without one."""
    if is_model_folder(source):
        return Path(source)
    if not is_hub_name(source) or "/" not in str(source):
        return None
    commit = commit_of(str(source), revision) or revision
    found = [find_file(str(source), file, commit) for file in (SPEC_FILE, SPLIT_FILE, PROFILE_FILE, HEAD_FILE)]
    return None if found[0] is None else found[0].parent


def _with_parts(lm: LanguageModel, spec: CellModelSpec, folder: Path) -> CellModel:
    """Return the cell model of a folder, with the parts beside the language model that the folder holds."""
    profile = CellProfile.load(folder, vocabulary_fingerprint=spec.vocabulary.fingerprint)
    head = SentenceHead.load(folder, n_labels=len(spec.labels), n_genes=len(spec.vocabulary))
    return CellModel(lm=lm, spec=spec, folder=folder, profile=profile, head=head)


def check_pooling(pooling: str) -> None:
    """Refuse a way of pooling that there is not."""
    if pooling not in get_args(CellPooling):
        raise InputError(f"pooling must be one of {', '.join(get_args(CellPooling))}, found {pooling!r}")


def is_model_folder(name_or_folder: str | Path) -> bool:
    """Return whether the folder holds a `cytoglot.json`."""
    return (Path(name_or_folder) / SPEC_FILE).is_file()


def check_same_genes(base: str | Path, vocabulary: GeneVocabulary, *, min_share: float = MIN_OVERLAP) -> None:
    """Refuse to train a cell model on genes of which it knows too few; any other base may learn any genes.

    Parameters
    ----------
    base
        Folder or hub name of the model that training starts from.
    vocabulary
        The genes that sentences will be made of.
    min_share
        Share of them that the base must know.

    Raises
    ------
    VocabularyMismatchError
        The base holds a `cytoglot.json` and knows a smaller share.
    """
    if not is_model_folder(base):
        return
    known = CellModelSpec.load(base).vocabulary
    n_shared = VocabularyOverlap.of(known, vocabulary).n_shared
    if n_shared < min_share * len(vocabulary):
        raise VocabularyMismatchError(
            f"{base} knows {n_shared} of the {len(vocabulary)} genes to train on, fewer than {min_share:.0%}: it knows "
            f"{_examples(known.symbols)}, the data have {_examples(vocabulary.symbols)}; pass data with the same kind "
            "of gene names and of the same species, or lower model.min_known_genes"
        )


def _species_of(symbols: Sequence[str]) -> str | None:
    """Tell mouse (Actb) from human (ACTB) by how most symbols are written; None for identifiers and mixtures."""
    names = [name for name in symbols if not name.startswith("ENS")]
    mouse = sum(name[:1].isupper() and name[1:].islower() for name in names)
    for species, n in (("mouse", mouse), ("human", sum(name.isupper() for name in names))):
        if 2 * n > len(symbols):
            return species
    return None


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", …"
