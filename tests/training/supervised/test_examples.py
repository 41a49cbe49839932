"""Examples: which tokens count in the loss, what is cut, and that an example depends on its number alone."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from transformers import PreTrainedTokenizerBase

from cytoglot.cell_model.load import CellModel
from cytoglot.data.readers.read import read
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.examples import ExamplePlan, Examples, collate, least_genes, plan_training
from cytoglot.training.supervised.prepare import PreparedCells, prepare_cells


@pytest.fixture(scope="module")
def prepared(cells: AnnData, tiny_recipe: TrainRecipe) -> PreparedCells:
    return prepare_cells(read(cells), label="cell_type", recipe=tiny_recipe, split=None, split_by="auto", seed=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: CellModel) -> PreTrainedTokenizerBase:
    return tiny_model.lm.tokenizer


def _examples(
    prepared: PreparedCells,
    tokenizer: PreTrainedTokenizerBase,
    recipe: TrainRecipe,
    task: str,
    *,
    max_tokens: int = 512,
    augmented: bool = False,
) -> Examples:
    rows = prepared.rows("train", labelled=True)[:6]
    plan = ExamplePlan(task=np.full(len(rows), task, dtype=object), row=rows)
    return Examples(prepared, plan, tokenizer, recipe, seed=0, augmented=augmented, max_tokens=max_tokens)


def _answer(tokenizer: PreTrainedTokenizerBase, item: dict[str, np.ndarray]) -> str:
    return str(tokenizer.decode(item["input_ids"][item["weights"] > 0], skip_special_tokens=False))


def test_label_tokens_weigh_one_each_and_the_prompt_nothing(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    examples = _examples(prepared, tokenizer, tiny_recipe, "cell_type_annotation")
    for item, row in zip((examples[i] for i in range(6)), prepared.rows("train", labelled=True), strict=False):
        assert _answer(tokenizer, item) == f" {prepared.labels[row]}.<eos>"
        assert set(item["weights"].tolist()) == {0.0, 1.0}


def test_a_written_cell_weighs_the_generation_weight_in_all(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    item = _examples(prepared, tokenizer, tiny_recipe, "cell_generation")[0]
    assert item["weights"].sum() == pytest.approx(tiny_recipe.optim.generation_weight, rel=1e-5)
    row = prepared.rows("train", labelled=True)[0]
    genes = prepared.sentences.words(int(row))[: tiny_recipe.sentence.top_genes]
    assert _answer(tokenizer, item) == f" {' '.join(genes)}.<eos>"


def test_everything_can_be_learned(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    optim = tiny_recipe.optim.model_copy(update={"loss_on": "everything"})
    recipe = tiny_recipe.model_copy(update={"optim": optim})
    item = _examples(prepared, tokenizer, recipe, "cell_type_annotation")[0]
    assert (item["weights"] > 0).all()


def test_a_long_sample_loses_genes_and_never_its_answer(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    whole = _examples(prepared, tokenizer, tiny_recipe, "cell_type_annotation")[0]
    cut = _examples(prepared, tokenizer, tiny_recipe, "cell_type_annotation", max_tokens=30)[0]
    assert len(cut["input_ids"]) <= 30 < len(whole["input_ids"])
    assert _answer(tokenizer, cut) == _answer(tokenizer, whole)


def test_an_example_depends_on_its_number_alone(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    one, other = (_examples(prepared, tokenizer, tiny_recipe, "cell_type_annotation", augmented=True) for _ in range(2))
    assert len(other[5]) == len(other[0])  # asked for first, they change nothing
    np.testing.assert_array_equal(one[3]["input_ids"], other[3]["input_ids"])
    assert one[3]["input_ids"].tolist() != one[2]["input_ids"].tolist()


def test_the_plan_deals_tasks_by_their_shares_and_cells_without_replacement(
    prepared: PreparedCells, tiny_recipe: TrainRecipe
) -> None:
    plan = plan_training(prepared, tiny_recipe, n_examples=4000, seed=0)
    shares = {name: float((plan.task == name).mean()) for name in set(plan.task)}
    assert shares["cell_type_annotation"] == pytest.approx(tiny_recipe.tasks["cell_type_annotation"], abs=0.03)
    assert set(plan.row) <= set(prepared.rows("train", labelled=False))
    times = np.bincount(plan.row[plan.task == "cell_type_annotation"])
    times = times[prepared.rows("train", labelled=True)]
    assert times.max() - times.min() <= 1


def test_padding_has_no_weight(
    prepared: PreparedCells, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    examples = _examples(prepared, tokenizer, tiny_recipe, "cell_type_annotation")
    batch = collate([examples[i] for i in range(6)], pad_token_id=2)
    lengths = [len(examples[i]["input_ids"]) for i in range(6)]
    for b, length in enumerate(lengths):
        assert (batch["weights"][b, length:] == 0).all()
        assert (batch["input_ids"][b, length:] == 2).all()


def test_a_cell_with_too_few_genes_for_a_task_is_not_asked(
    cells: AnnData, tokenizer: PreTrainedTokenizerBase, tiny_recipe: TrainRecipe
) -> None:
    few = cells[:60].copy()
    counts = few.X.toarray()
    counts[:20], counts[:20, 5] = 0, 3  # one gene each
    counts[20:25] = 0
    few.X = csr_matrix(counts)
    mixed = tiny_recipe.model_copy(update={"tasks": {"gene_masking": 1.0, "cell_completion": 1.0}})
    prepared = prepare_cells(read(few), label="cell_type", recipe=mixed, split=None, split_by="cell", seed=0)
    plan = plan_training(prepared, mixed, n_examples=400, seed=0)
    assert prepared.n_words[plan.row].min() >= 2
    assert [least_genes(name) for name in ("cell_type_annotation", "cell_generation", "gene_masking")] == [0, 1, 2]
    examples = Examples(prepared, plan, tokenizer, mixed, seed=0, augmented=True, max_tokens=512)
    assert all((examples[i]["weights"] > 0).any() for i in range(100))
