"""Training: the folder it writes, what it refuses, and that a killed run ends as an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cytoglot.applications.annotation import label_probabilities
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.cell_model.spec import SPEC_FILE, load_split
from cytoglot.corpus.read.examples import sample_examples
from cytoglot.errors import InputError
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.training.cells import training_cells
from cytoglot.training.job import TrainJob, settled
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train
from cytoglot.training.supervised.train import new_model


@pytest.fixture(scope="module")
def trained(tiny_model: CellModel) -> CellModel:
    return tiny_model


def _test_accuracy(model: CellModel, cells: AnnData) -> float:
    assert model.folder is not None
    split = load_split(model.folder)
    assert split is not None
    held_out = cells[split.mask(cells.obs_names, "test")]
    sentences, _ = model.sentences(held_out)
    return float((label_probabilities(model, sentences).best == held_out.obs["cell_type"].to_numpy()).mean())


def test_a_trained_model_knows_the_types_of_held_out_donors(trained: CellModel, cells: AnnData) -> None:
    assert _test_accuracy(trained, cells) > 0.9


def test_a_model_from_nothing_starts_with_the_labels_at_their_frequencies(
    cells: AnnData, tiny_recipe: TrainRecipe
) -> None:
    named = cells.copy()  # labels of one first token, as in `cells`, would leave nothing to tell
    names = dict(zip(sorted(set(named.obs["cell_type"])), ("Neuron", "Basal", "Platelet"), strict=False))
    named.obs["cell_type"] = named.obs["cell_type"].map(names)
    job = settled(TrainJob(source=named, label="cell_type", recipe=tiny_recipe), needs_folder=False)
    with training_cells(job, job.open()) as found:
        model, tokenizer = new_model(found, tiny_recipe, seed=3)
        asked = sample_examples(found.corpus, "validation", 40, task="cell_type_annotation", top_genes=40)
    answers = np.array([ids[0] for ids in encode_completions(tokenizer, [one.completion for one in asked])])
    with torch.no_grad():
        ends = [
            model(torch.from_numpy(ids)[None]).logits[0, -1]
            for ids in encode_prompts(tokenizer, [one.prompt for one in asked])
        ]
    loss = torch.nn.functional.cross_entropy(torch.stack(ends), torch.from_numpy(answers)).item()
    frequencies = np.unique(answers, return_counts=True)[1] / len(answers)
    entropy = -(frequencies * np.log(frequencies)).sum()
    assert entropy > 0.5
    assert loss < entropy + 0.3  # of all tokens alike: the logarithm of their number


@pytest.mark.slow
def test_shuffled_labels_leave_it_at_chance(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe.model_copy(update={"control": "shuffled_labels"})
    control = train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, seed=3, device="cpu")
    assert _test_accuracy(control, cells) < 0.6


def test_the_folder_loads_with_plain_transformers(trained: CellModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    model = AutoModelForCausalLM.from_pretrained(trained.folder)
    ids = tokenizer("Cell: GENE1 GENE2.", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = trained.lm.model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_a_reloaded_model_answers_the_same(trained: CellModel, cells: AnnData) -> None:
    assert trained.folder is not None
    again = load_cell_model(trained.folder, device="cpu")
    sentences, _ = trained.sentences(cells[:10])
    np.testing.assert_allclose(again.label_scores(sentences), trained.label_scores(sentences), atol=1e-5)
    assert again.spec == trained.spec


def test_the_split_is_by_donor_and_stored_by_cell(trained: CellModel, cells: AnnData) -> None:
    assert trained.folder is not None
    split = load_split(trained.folder)
    assert split is not None
    donors = [set(cells.obs["donor"][split.mask(cells.obs_names, part)]) for part in ("train", "validation", "test")]
    assert not (donors[0] & donors[2])
    assert sum(len(split.cells(part)) for part in ("train", "validation", "test")) == cells.n_obs


def test_test_cells_are_never_read(
    cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path, trained: CellModel
) -> None:
    """Garbage in the test cells must not change a single weight."""
    assert trained.folder is not None
    split = load_split(trained.folder)
    assert split is not None
    garbled = cells.copy()
    test = split.mask(cells.obs_names, "test")
    matrix = garbled.X.toarray()
    matrix[test] = np.random.default_rng(0).permutation(matrix[test], axis=1)
    garbled.X = type(cells.X)(matrix)
    other = train(garbled, label="cell_type", out=tmp_path / "m", recipe=tiny_recipe, split=split, seed=3, device="cpu")
    for mine, theirs in zip(trained.lm.model.parameters(), other.lm.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert other.spec.tie_rates == trained.spec.tie_rates
    assert other.spec.rank_curve == trained.spec.rank_curve
    assert other.spec.calibration == trained.spec.calibration


def test_a_finished_folder_is_returned_as_it_is(trained: CellModel, cells: AnnData, tiny_recipe: TrainRecipe) -> None:
    assert trained.folder is not None
    before = (trained.folder / SPEC_FILE).stat().st_mtime_ns
    train(cells, label="cell_type", out=trained.folder, recipe=tiny_recipe, seed=3, device="cpu")
    assert (trained.folder / SPEC_FILE).stat().st_mtime_ns == before
    assert not (trained.folder / ".work").exists()


def test_labels_that_are_missing_are_not_learned(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    partly = cells.copy()
    partly.obs["cell_type"] = partly.obs["cell_type"].astype(object)
    partly.obs.loc[partly.obs_names[::4], "cell_type"] = np.nan
    partly.obs.loc[partly.obs_names[1::4], "cell_type"] = "unassigned"
    recipe = tiny_recipe.model_copy(update={"optim": tiny_recipe.optim.model_copy(update={"steps": 10})})
    model = train(partly, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    assert set(model.spec.labels) == {"type A", "type B", "type C"}


@pytest.mark.parametrize(
    ("label", "message"),
    [("celltype", "has no column 'celltype'.*cell_type"), ("empty", "holds no label at all")],
)
def test_a_label_column_that_cannot_be_used(
    cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path, label: str, message: str
) -> None:
    bad = cells.copy()
    bad.obs["empty"] = "unknown"
    with pytest.raises(InputError, match=message):
        train(bad, label=label, out=tmp_path / "m", recipe=tiny_recipe, device="cpu")
    assert not (tmp_path / "m" / SPEC_FILE).exists()


def test_a_folder_of_something_else_is_left_alone(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        train(cells, label="cell_type", out=tmp_path, recipe=tiny_recipe, device="cpu", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


_SCRIPT = """
import sys
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train
import torch; torch.set_num_threads(1)
train(sys.argv[3], label="cell_type", out=sys.argv[1],
      recipe=TrainRecipe.model_validate_json(sys.argv[2]), seed=3, device="cpu")
"""


def _run(folder: Path, recipe: TrainRecipe, cells_file: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SCRIPT, str(folder), recipe.model_dump_json(), str(cells_file)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tiny_recipe: TrainRecipe, cells_file: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe
    assert _run(tmp_path / "whole", recipe, cells_file).wait() == 0
    broken = _run(tmp_path / "broken", recipe, cells_file)
    work = tmp_path / "broken" / ".work"
    deadline = time.monotonic() + 120
    while not any(work.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert not (tmp_path / "broken" / SPEC_FILE).exists()
    with pytest.raises(InputError, match="was not finished"):
        load_cell_model(tmp_path / "broken")
    assert _run(tmp_path / "broken", recipe, cells_file).wait() == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    histories = [json.loads((tmp_path / n / "training.json").read_text())["history"] for n in ("whole", "broken")]
    assert [row["validation_loss"] for row in histories[0]] == [row["validation_loss"] for row in histories[1]]
    assert histories[0][-1]["tokens"] == histories[1][-1]["tokens"]


def test_an_unfinished_run_with_other_settings_is_not_resumed(
    cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cytoglot.training.loop.fit.AnswerTrainer.train", stop)
    with pytest.raises(KeyboardInterrupt):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=tiny_recipe, seed=3, device="cpu")
    with pytest.raises(InputError, match="unfinished run with other seeds"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=tiny_recipe, seed=4, device="cpu")
