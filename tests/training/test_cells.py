"""What is learned of a file: its tasks have their shares, whatever its cells can be asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from cytoglot.cell_model.load import CellModel
from cytoglot.corpus.from_cells import LABELLED, UNLABELLED
from cytoglot.errors import InputError
from cytoglot.training.cells import TrainingCells, training_cells, weights_of_file
from cytoglot.training.job import TrainJob, settled
from cytoglot.training.loop.loss import loss_sum
from cytoglot.training.loop.trainer import n_averaged
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.train import training_batches, validation_batches

SHARES = {"cell_type_annotation": 0.5, "cell_generation": 0.3, "unconditional_generation": 0.2}


def _prompts(model: CellModel, cells: TrainingCells, recipe: TrainRecipe, n: int) -> list[str]:
    found: list[str] = []
    for batch in training_batches(model.lm, cells, recipe, seed=0, packed=False):
        for ids, weights in zip(batch["input_ids"], batch["weights"], strict=True):
            found.append(model.lm.tokenizer.decode(ids[: int((weights > 0).nonzero()[0])]))
        if len(found) >= n:
            return found
    raise AssertionError("a reader of training cells ends")


@pytest.mark.parametrize("every", [1, 2])
def test_tasks_have_their_shares_whatever_is_labelled(
    cells: AnnData, tiny_model: CellModel, tiny_recipe: TrainRecipe, every: int
) -> None:
    """With every second label missing, a task that needs none is asked no more often."""
    partly = cells.copy()
    partly.obs["cell_type"] = partly.obs["cell_type"].astype(object)
    if every > 1:
        partly.obs.loc[partly.obs_names[::every], "cell_type"] = "unknown"
    recipe = tiny_recipe.model_copy(update={"tasks": SHARES, "paraphrase_share": 0.0})
    job = settled(TrainJob(source=partly, label="cell_type", recipe=recipe), needs_folder=False)
    with training_cells(job, job.open()) as found:
        prompts = _prompts(tiny_model, found, recipe, 4000)
    asked = Counter(
        "annotation" if p.endswith("Cell type:") else "typed" if "ype: type " in p else "untyped" for p in prompts
    )
    shares = [asked[name] / len(prompts) for name in ("annotation", "typed", "untyped")]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.035)


def test_weights_by_hand() -> None:
    """Half of 200 cells have a label; the task without one (a fifth) goes to all of them alike."""
    weights, visits = weights_of_file(SHARES, n_labelled=4096, n_unlabelled=4096)
    assert weights == pytest.approx({**SHARES, "unconditional_generation": 0.1})
    assert visits == pytest.approx({LABELLED: 1.0, UNLABELLED: 0.1 / 0.9})
    assert weights_of_file({"unconditional_generation": 1.0}, n_labelled=0, n_unlabelled=9)[1] == {UNLABELLED: 1.0}
    with pytest.raises(InputError, match="expected training cells with a label, found none"):
        weights_of_file({"cell_generation": 1.0}, n_labelled=0, n_unlabelled=9)


def test_validation_asks_labels_of_cells_as_they_are(
    cells: AnnData, tiny_model: CellModel, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    job = settled(TrainJob(source=cells, label="cell_type", recipe=tiny_recipe, seed=3), needs_folder=False)
    with training_cells(job, job.open()) as found:
        batches = validation_batches(tiny_model.lm, found, tiny_recipe, seed=0, packed=False)
        assert found.split is not None
        n_validation = len(found.split.validation)
        folder = found.corpus.folder
        assert folder.is_dir()
    assert not folder.exists()
    assert sum(batch["n_examples"] for batch in batches) == n_validation
    for batch in batches:
        learned = [ids[w > 0] for ids, w in zip(batch["input_ids"], batch["weights"], strict=True)]
        assert {tiny_model.lm.tokenizer.decode(ids).strip()[:6] for ids in learned} <= {"type A", "type B", "type C"}
        assert set(np.unique(batch["weights"])) <= {0.0, 1.0}


def test_a_token_mean_weighs_every_learned_token_the_same(
    cells: AnnData, tiny_model: CellModel, tiny_recipe: TrainRecipe
) -> None:
    """The loss of a batch is then the mean over the tokens of all its answers, as published models have it."""
    optim = tiny_recipe.optim.model_copy(update={"loss": "token_mean"})
    recipe = tiny_recipe.model_copy(update={"optim": optim})
    job = settled(TrainJob(source=cells, label="cell_type", recipe=recipe), needs_folder=False)
    with training_cells(job, job.open()) as found:
        plain, mean = (
            next(iter(training_batches(tiny_model.lm, found, one, seed=0, packed=False)))
            for one in (tiny_recipe, recipe)
        )
    assert torch.equal(plain["input_ids"], mean["input_ids"])
    learned = plain["weights"] > 0
    assert torch.equal(mean["weights"], learned.float())
    assert n_averaged(mean) == int(learned.sum()) > n_averaged(plain) == plain["n_examples"]
    with torch.no_grad():
        logits = tiny_model.lm.model(input_ids=mean["input_ids"]).logits[:, :-1][learned[:, 1:]]
        expected = torch.nn.functional.cross_entropy(logits, mean["input_ids"][:, 1:][learned[:, 1:]])
        torch.testing.assert_close(loss_sum(tiny_model.lm.model, mean) / n_averaged(mean), expected)
