"""Training from a corpus: every task, the same weights after an interruption, and what cannot be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.examples import available_tasks
from cytoglot.corpus.read.loader import BatchSettings
from cytoglot.errors import InputError
from cytoglot.lm.model.scratch import ScratchSettings, scratch_model
from cytoglot.lm.model.tokenizer import build_tokenizer
from cytoglot.training.cells import sample_cells
from cytoglot.training.loop.loss import loss_sum
from cytoglot.training.recipe import ModelRecipe, OptimRecipe, SentenceRecipe, TrainRecipe
from cytoglot.training.run import train
from cytoglot.training.supervised.corpus_batches import CorpusBatches, CorpusDataset, gene_tokenizer

TASKS = {"cell_type_annotation": 3.0, "gene_masking": 1.0, "tissue_annotation": 1.0, "gene_set_naming": 1.0}


def recipe(**optim: object) -> TrainRecipe:
    scratch = ScratchSettings(hidden_size=32, n_layers=1, n_heads=2, feed_forward=64, context_length=256)
    settings = {"steps": 240, "batch_size": 6, "learning_rate": 1e-2, "weight_average": 0.8, "evaluate_every": 80}
    return TrainRecipe(
        sentence=SentenceRecipe(top_genes=24),
        model=ModelRecipe(scratch=scratch, word_vector_rank=16),
        tasks=TASKS,
        optim=OptimRecipe.model_validate(settings | {"patience": None} | optim),
    )


@pytest.fixture(scope="module")
def trained(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> CellModel:
    return train(small_corpus, out=tmp_path_factory.mktemp("m") / "model", recipe=recipe(), seed=1, device="cpu")


def test_a_model_of_several_tasks_knows_its_labels_and_is_found_again(trained: CellModel, small_corpus: Corpus) -> None:
    assert trained.folder is not None
    again = load_cell_model(trained.folder, device="cpu")
    assert again.spec.tasks == tuple(TASKS)
    assert again.spec.labels == tuple(small_corpus.count("cell_type", "train"))
    assert sum(again.spec.label_counts) == small_corpus.description.total("n_cells", "train")
    assert again.spec.vocabulary == small_corpus.vocabulary
    assert again.spec.ranking.top_genes == 24
    assert small_corpus.description.fingerprint in again.spec.manifest["inputs"].values()
    assert again.spec.calibration.n_validation > 10
    assert not (trained.folder / ".work").exists()


def test_it_has_learned_the_types_of_held_out_cells(trained: CellModel, small_corpus: Corpus) -> None:
    cells = sample_cells(small_corpus, "test", n=100, seed=0)
    best = trained.label_scores(cells.sentences, views=1).argmax(axis=1)
    right = np.mean(np.array(trained.spec.labels)[best] == cells.labels)
    assert right > 0.7  # a third by chance


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(
    trained: CellModel, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cytoglot.training.supervised.train as module

    class StoppedError(Exception): ...

    class StopsAt(module.CorpusDataset):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for number, batch in enumerate(super().__iter__()):
                if number == 130:
                    raise StoppedError
                yield batch

    with monkeypatch.context() as patch:
        patch.setattr(module, "CorpusDataset", StopsAt)
        with pytest.raises(StoppedError):
            train(small_corpus, out=tmp_path / "m", recipe=recipe(), seed=1, device="cpu")
    assert (tmp_path / "m" / ".work" / "checkpoint-80").is_dir()
    resumed = train(small_corpus, out=tmp_path / "m", recipe=recipe(), seed=1, device="cpu")
    for (name, whole), (_, other) in zip(
        trained.lm.model.named_parameters(), resumed.lm.model.named_parameters(), strict=True
    ):
        assert torch.equal(whole, other), name


def test_without_a_mixture_everything_that_can_be_asked_is_learned(small_corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(steps=2, evaluate_every=2).model_dump(exclude_unset=True)
    del settings["tasks"]
    model = train(small_corpus, out=tmp_path / "m", recipe=TrainRecipe.model_validate(settings), device="cpu")
    assert model.spec.tasks == available_tasks(small_corpus, "train")
    assert len(model.spec.tasks) > 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"development_stage_annotation": 1}}, r"holds nothing that the tasks \['development_stage_annot"),
        ({"sentence": {"hvg": 100}}, r"sentence.hvg cannot be set for a corpus"),
        ({"control": "shuffled_labels", "views": 2}, r"views, control cannot be set for a corpus"),
    ],
)
def test_what_a_corpus_cannot_do_is_refused_before_anything_is_written(
    small_corpus: Corpus, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(small_corpus, out=tmp_path / "m", recipe=TrainRecipe.model_validate(changes), device="cpu")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_command_trains_on_a_corpus_and_refuses_options_of_files(
    small_corpus: Corpus, tmp_path: Path, command: Callable[..., object]
) -> None:
    sets = ["optim.steps=2", "optim.evaluate_every=2", "model.scratch.hidden_size=32", "model.word_vector_rank=8"]
    options = [part for value in sets for part in ("--set", value)]
    done = command("train", small_corpus.folder, "-o", tmp_path / "m", "--json", "--device", "cpu", *options)
    assert done.result["labels"] == 3  # type: ignore[attr-defined]
    refused = command("train", small_corpus.folder, "-o", tmp_path / "n", "--label", "cell_type")
    assert "leave out --label" in refused.refusal  # type: ignore[attr-defined]


def test_examples_of_one_row_do_not_see_each_other(small_corpus: Corpus) -> None:
    """The loss of a packed batch is that of its examples alone, for either kind of attention."""
    tokenizer = build_tokenizer(small_corpus.vocabulary.symbols, ["genes. Cell type:"], context_length=256)
    made = scratch_model(tokenizer, recipe().model.scratch, seed=0)
    with torch.no_grad():  # a new model hardly attends to anything: another example would change its loss too little
        for weights in made.parameters():
            weights.mul_(4 if weights.ndim == 2 else 1)
    reader = CorpusDataset(
        small_corpus,
        tokenizer=gene_tokenizer(tokenizer, small_corpus.vocabulary),
        batches=BatchSettings(context=256, batch_size=3),
        tasks=TASKS,
    )
    batch = next(iter(CorpusBatches([reader])))
    assert batch["n_examples"] > 6
    for attention in ("sdpa", "eager"):
        made.set_attn_implementation(attention)
        with torch.no_grad():
            packed = loss_sum(made, batch)
            apart = torch.zeros(())
            for row in range(3):
                for segment in range(1, int(batch["segment_ids"][row].max()) + 1):
                    chosen = batch["segment_ids"][row] == segment
                    apart += loss_sum(made, {name: batch[name][row][chosen][None] for name in ("input_ids", "weights")})
            leaking = loss_sum(made, {name: batch[name] for name in ("input_ids", "weights")})
        assert packed == pytest.approx(float(apart), rel=1e-5)
        assert abs(float(leaking) - float(packed)) > 1e-3 * float(packed)


def test_an_unknown_source_cannot_be_weighed_and_a_file_has_none(
    small_corpus: Corpus, cells: AnnData, tmp_path: Path
) -> None:
    weighed = recipe(steps=2, evaluate_every=2).model_copy(update={"sources": {"synthetik": 0.5}})
    with pytest.raises(InputError, match="synthetik"):
        train(small_corpus, out=tmp_path / "m", recipe=weighed, device="cpu")
    assert not (tmp_path / "m").exists()
    with pytest.raises(InputError, match="sources can be weighed in a corpus only"):
        train(cells, label="cell_type", out=tmp_path / "n", recipe=TrainRecipe(sources={"a": 2}))
