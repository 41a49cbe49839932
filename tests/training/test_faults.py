"""What happens to a model folder when the base changes, the disk is full, or the numbers fail."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.cell_model.spec import SPEC_FILE
from cytoglot.errors import InputError
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train


class StoppedError(Exception): ...


@pytest.fixture
def base(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))


def adapting(tiny_recipe: TrainRecipe, base: Path, **optim: Any) -> TrainRecipe:
    settings = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "patience": None, "learning_rate": 1e-2}
    values = tiny_recipe.model_dump(exclude_unset=True)
    values |= {"model": {"base": str(base)}, "lora": {"rank": 2}, "optim": {**settings, **optim}}
    return TrainRecipe.model_validate(values)


def stop(*_: object, **__: object) -> None:
    raise StoppedError


def test_a_folder_of_an_adapted_model_holds_merged_weights_and_the_adapter(
    cells: AnnData, tiny_recipe: TrainRecipe, base: Path, tmp_path: Path
) -> None:
    recipe = adapting(tiny_recipe, base)
    model = train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, seed=1, device="cpu")
    ids = AutoTokenizer.from_pretrained(tmp_path / "m")("Cell: GENE1 GENE2.", return_tensors="pt").input_ids
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base)
        assert (plain(input_ids=ids).logits - merged).abs().max() > 1e-2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks by it
            adapted = PeftModel.from_pretrained(plain, str(tmp_path / "m" / "adapter")).eval()
        torch.testing.assert_close(adapted(input_ids=ids).logits, merged, rtol=0, atol=1e-5)
    assert model.spec.manifest["inputs"]["base"]
    again = load_cell_model(tmp_path / "m", device="cpu")
    sentences, _ = model.sentences(cells[:5])
    np.testing.assert_allclose(again.label_scores(sentences), model.label_scores(sentences), atol=1e-5)


def test_an_unfinished_run_is_not_resumed_on_another_base(
    cells: AnnData, tiny_recipe: TrainRecipe, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = adapting(tiny_recipe, base)
    with monkeypatch.context() as patch:
        patch.setattr("cytoglot.training.loop.fit.AnswerTrainer.train", stop)
        with pytest.raises(StoppedError):
            train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    changed = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    changed.save_pretrained(base)
    with pytest.raises(InputError, match="an unfinished run with other inputs"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")


def test_a_folder_that_cannot_be_written_is_named(
    cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("cytoglot.training.loop.run_folder.write_json", refuse)
    with pytest.raises(InputError, match=r"expected a folder that can be written, found .*/m: Permission denied"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=tiny_recipe, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "spec"])
def test_a_disk_that_is_full_at_the_end_leaves_an_unfinished_run_that_the_same_call_ends(
    cells: AnnData,
    tiny_recipe: TrainRecipe,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = adapting(tiny_recipe, base)
    place = {
        "weights": "transformers.PreTrainedModel.save_pretrained",
        "spec": "cytoglot.cell_model.spec.CellModelSpec.save",
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(InputError, match=r"cannot be written into .*/m: .*No space left.* run the same command"):
            train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    assert not (tmp_path / "m" / SPEC_FILE).exists()
    with pytest.raises(InputError, match="was not finished"):
        load_cell_model(tmp_path / "m")
    assert (tmp_path / "m" / ".work" / "checkpoint-6").is_dir()
    model = train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    assert not (tmp_path / "m" / ".work").exists()
    whole = train(cells, label="cell_type", out=tmp_path / "whole", recipe=recipe, device="cpu")
    for mine, other in zip(model.lm.model.parameters(), whole.lm.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_command_says_in_one_line_where_the_examples_of_a_loss_that_is_no_number_are(
    command: Callable[..., Any], cells_file: Path, tiny_model: CellModel, base: Path, tmp_path: Path
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        broken.get_input_embeddings().weight[:] = float("inf")
    broken.save_pretrained(base)
    sets = [f"model.base={base}", "optim.steps=2", "optim.learning_rate=0.001"]
    options = [part for value in sets for part in ("--set", value)]
    done = command("train", cells_file, "--label", "cell_type", "-o", tmp_path / "m", "--device", "cpu", *options)
    assert done.code == 1
    (line,) = [one for one in done.err.splitlines() if one.startswith("cytoglot: ")]
    assert "expected a finite loss and gradient at step 1" in line
    assert (tmp_path / "m" / ".work" / "not_finite-step-1-process-0.json").is_file()
