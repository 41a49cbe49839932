"""A causal language model from elsewhere, with a tokenizer that knows no genes, takes the same road."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from cytoglot.applications.annotation import annotate
from cytoglot.applications.generation import generate
from cytoglot.cell_model.load import load_checkpoint
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX of random weights with byte-level BPE, saved as the hub has it: no pad token, nothing of ours."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["The genes of a cell: GENE1 GENE20 GENE33. Cell type: type A."] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("hub") / "neox"
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_is_trained_and_the_long_samples_keep_their_answers(
    hub_folder: Path, cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    """Forty genes of several tokens each do not fit 256 positions: genes are cut off, never the label."""
    recipe = tiny_recipe.model_copy(
        update={
            "model": tiny_recipe.model.model_copy(update={"base": str(hub_folder)}),
            "optim": tiny_recipe.optim.model_copy(update={"steps": 30, "learning_rate": 3e-3, "batch_size": 8}),
        }
    )
    model = train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, seed=0, device="cpu")
    history = (tmp_path / "m" / "training.json").read_text()
    assert '"train_loss": 0.0' not in history
    annotated = annotate(cells[:12], model, copy=True)
    assert set(annotated.obs["cytoglot_cell_type_best"]) <= set(model.spec.labels)
    generated = generate(model, "type A", n=2, n_genes=5, seed=0)
    assert (np.diff(generated.X.indptr) == 5).all()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").config.hidden_size == 32


def test_a_checkpoint_annotates_with_labels_and_context_alone(hub_folder: Path, cells: AnnData) -> None:
    vocabulary = GeneVocabulary(symbols=tuple(cells.var_names))
    model = load_checkpoint(
        hub_folder,
        vocabulary,
        labels=["T cell", "B cell"],
        context={"organism": "human", "tissue": "blood"},
        top_genes=20,
        device="cpu",
    )
    assert "human blood cell" in model.cell_prompts(model.sentences(cells[:1])[0])[0].text
    annotated = annotate(cells[:4], model, copy=True)
    assert set(annotated.obs["cytoglot_cell_type"]) <= {"T cell", "B cell"}
    np.testing.assert_allclose(annotated.obsm["cytoglot_probabilities"].sum(axis=1), 1, atol=1e-6)
