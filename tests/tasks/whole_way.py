"""What every task about cells can do, whatever its unit is made of: asked from a file and from a corpus, trained on,
sampled, scored and rewarded. Tests of a new task call `check_the_whole_way`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cytoglot.corpus.format.folder import Corpus, write_corpus
from cytoglot.corpus.format.shard_file import make_block
from cytoglot.corpus.read.records import RecordReader, source_of_cells
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.relations import read_relations
from cytoglot.data.schema import recognize_obs, tidy_values
from cytoglot.sentence.encode import encode
from cytoglot.tasks import CellsSource, Task, TaskInstance, record_sources, tasks

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.cell_model.load import CellModel


def corpus_of(adata: AnnData, folder: Path, *, relations: tuple[str, ...] = (), **options: Any) -> Corpus:
    """Return cells as a corpus whose shards are donors: two thirds training, then validation and test."""
    vocabulary = options.pop("vocabulary", None) or GeneVocabulary(tuple(map(str, adata.var_names)))
    donors = adata.obs["donor"].astype(str).to_numpy()
    names = sorted(set(donors))

    def block(donor: str) -> Any:
        rows = np.flatnonzero(donors == donor)
        part = adata[rows]
        sentences = encode(part, genes=vocabulary)
        return make_block(
            cell_ids=sentences.cell_ids,
            offsets=sentences.offsets,
            gene_ids=sentences.gene_ids,
            n_genes=len(vocabulary),
            source=["made"] * len(rows),
            metadata={name: tidy_values(name, part.obs[column]) for name, column in recognize_obs(part.obs).items()},
            group=np.arange(len(rows)) // 3,
            relations=read_relations(part, relations),
        )

    blocks = [block(name) for name in names]
    parts = {"train": blocks[:-2], "validation": blocks[-2:-1], "test": blocks[-1:]}
    return write_corpus(folder, parts, vocabulary=vocabulary, **options)  # type: ignore[arg-type]


def instances_of_corpus(corpus: Corpus, task: Task[Any, Any], *, top_genes: int | None) -> dict[str, TaskInstance]:
    """Return what a task asks of every record of a corpus, all that is known told, by the record's key."""
    found = {}
    for part in ("train", "validation", "test"):
        for shard in corpus.shards(part):  # type: ignore[arg-type]
            with corpus.open(shard) as file:
                cells = RecordReader(corpus).open(file.row_group(0), shard)
            source = source_of_cells(task.unit)
            for row in source.rows(cells).tolist():
                record = source.record(cells, row, cells.draws(row), top_genes=top_genes).with_variant(0)
                if task.has_content(record):
                    found[record.key] = TaskInstance(task, record, task.short_template(record))
    return found


def check_the_whole_way(name: str, adata: AnnData, folder: Path, *, reward: str, steps: int = 30) -> CellModel:
    """Ask a task of a file and of a corpus, train on it, sample, score and reward its answers, and align a model."""
    from cytoglot.benchmark.corpus_tasks import CorpusTaskSettings, evaluate_corpus
    from cytoglot.cell_model.task_answers import ModelAnswers
    from cytoglot.cell_model.task_scores import EvalTask, scores_of
    from cytoglot.lm.model.scratch import ScratchSettings
    from cytoglot.training.cells import training_cells
    from cytoglot.training.job import TrainJob, settled
    from cytoglot.training.recipe import GrpoRecipe, ModelRecipe, OptimRecipe, SentenceRecipe, TrainRecipe
    from cytoglot.training.rl.prompts import plan_prompts, reward_prompts, source_of_corpus
    from cytoglot.training.rl.rewards import RewardInputs, make_reward
    from cytoglot.training.run import train

    task = tasks[name]
    source = record_sources[task.unit]
    assert isinstance(source, CellsSource)
    corpus = corpus_of(adata, folder / "corpus", relations=() if source.relation is None else (source.relation,))
    scratch = ScratchSettings(hidden_size=32, n_layers=1, n_heads=2, feed_forward=64, context_length=192)
    recipe = TrainRecipe(
        sentence=SentenceRecipe(top_genes=12),
        model=ModelRecipe(scratch=scratch, word_vector_rank=16),
        tasks={name: 1.0},
        optim=OptimRecipe(steps=steps, batch_size=8, learning_rate=1e-2, evaluate_every=steps // 2, patience=None),
    )
    model = train(corpus, out=folder / "model", recipe=recipe, seed=1, device="cpu")
    of_corpus = instances_of_corpus(corpus, task, top_genes=12)
    of_file = {one.record.key: one for one in model.ask(adata, name)}
    assert of_file.keys() == of_corpus.keys()
    assert len(of_file) > 20
    for key, one in of_file.items():
        assert one.prompt().text == of_corpus[key].prompt().text
        assert one.answer() == of_corpus[key].answer()

    answerer = ModelAnswers(model.lm, model.spec.vocabulary)
    labels = tuple(sorted({one.answer() for one in of_file.values()})) if task.closed_answer else ()
    fitted = [answerer.fitted(one, labels) for one in list(of_file.values())[:12]]
    asked = EvalTask(task=task, vocabulary=model.spec.vocabulary, records=tuple(filter(None, fitted)), labels=labels)
    answers = answerer.answers(asked, [64] * len(asked.records))
    assert len(answers) == len(asked.records) == 12
    scores = scores_of(asked, answers)
    assert scores
    assert set(scores) <= set(task.metrics)
    settings = CorpusTaskSettings(tasks=(name,), n_per_task=20)
    judged = evaluate_corpus(corpus, model, out=folder / "evaluation", settings=settings)
    assert {row.task for row in judged.table} == {name}

    grpo = {
        "rewards": {reward: {"weight": 1.0}}, "group_size": 4, "prompts_per_step": 2, "max_answer_tokens": 16,
        "held_out_prompts": 4, "held_out_samples": 2, "probes": "off", "constrained": True,
    }  # fmt: skip
    align = TrainRecipe(
        kind="grpo",
        model=ModelRecipe(base=str(folder / "model")),
        sentence=SentenceRecipe(top_genes=12),
        tasks={name: 1.0},
        optim=OptimRecipe(steps=1, learning_rate=1e-4, evaluate_every=1),
        grpo=GrpoRecipe(**grpo),
    )
    job = settled(TrainJob(source=corpus, recipe=align, out=folder / "aligned", seed=3, device="cpu"))
    with training_cells(job, corpus) as known:
        prompts = plan_prompts(source_of_corpus(known, align, n_training=8, seed=1), model.lm, n=8, seed=1)
    columns = reward_prompts(prompts).as_columns()
    rated = make_reward({reward: {"weight": 1.0}}, RewardInputs(genes=model.spec.vocabulary.symbols, labels=labels))
    assert rated([f" {answer}." for answer in columns["answer"]], **columns) == [1.0] * 8
    return train(corpus, out=folder / "aligned", recipe=align, seed=3, device="cpu")
