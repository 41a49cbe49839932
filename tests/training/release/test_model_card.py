"""The card of a model folder says what the folder holds, and nothing that depends on when or where."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData
from huggingface_hub import ModelCard

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import CellModelSpec, load_split
from cytoglot.corpus.format.folder import Corpus
from cytoglot.errors import InputError
from cytoglot.training.release.model_card import CARD, corpus_facts, write_model_card


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    (tmp_path / "model" / CARD).unlink()
    return tmp_path / "model"


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _evaluation(folder: Path, spec: CellModelSpec, **results: Any) -> Path:
    row = {"task": "annotation", "metric": "accuracy", "low": 0.5, "high": 0.75, "n": 40, "unit": "donor"}
    rows = [
        {**row, "method": "cytoglot", "value": 0.625},
        {**row, "method": "logistic regression", "value": 0.7},
        {**row, "method": "cytoglot - majority", "metric": "accuracy_difference", "value": 0.31},
        {**row, "method": "no answer", "value": None},
    ]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"results": rows, **results}))
    (folder / "manifest.json").write_text(json.dumps({"config": {"model": dict(spec.manifest)}}))
    return folder


def test_the_code_of_the_card_runs(
    folder: Path, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", write_model_card(folder).read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    cells[:6].write_h5ad("cells.h5ad")
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace("FOLDER", str(folder)), names)
        if "annotated" in names:
            assert "cytoglot_cell_type" in names["annotated"].obs
            assert "X_cytoglot" in names["embedded"].obsm


def test_the_card_tells_the_facts_of_the_folder(folder: Path, tiny_model: CellModel) -> None:
    text = write_model_card(folder).read_text()
    split, spec = load_split(folder), tiny_model.spec
    assert split is not None
    n_parameters = sum(p.numel() for p in tiny_model.lm.model.parameters())
    assert f"(llama, {n_parameters:,} parameters)" in text
    assert "It was trained from nothing." in text
    for part in ("train", "validation", "test"):
        assert f"| {part} | {len(split.cells(part))} |" in text  # type: ignore[arg-type]
    assert "divided by `donor`, each value in one part only" in text
    for label, n in zip(spec.labels, spec.label_counts, strict=True):
        assert f"| {label} | {n} |" in text
    assert "| cell_type_annotation | 50.0 % |" in text
    assert "`{num_genes} genes: {cell_sentence}. Cell type:`" in text
    assert "| optim.steps | 160 |" in text
    fitted = spec.calibration.in_use
    assert f"{fitted.validation_loss:.3f} nats per cell at a temperature of {fitted.temperature:.3g}" in text
    assert "the 40 highest genes of a cell" in text
    assert "not for diagnosis or any other clinical use" in text
    assert "nothing is claimed of how well it does" in text
    assert "species of its training cells is not stated" in text


def test_it_is_the_same_at_another_time(folder: Path) -> None:
    first = write_model_card(folder).read_text()
    manifest = json.loads((folder / "cytoglot.json").read_text())["manifest"]
    assert manifest["created"] not in first
    _change(folder / "cytoglot.json", manifest={**manifest, "created": "2001-01-01T00:00:00+00:00"})
    history = json.loads((folder / "training.json").read_text())["history"]
    _change(folder / "training.json", history=[{**row, "seconds": 7.0} for row in history])
    assert write_model_card(folder).read_text() == first


def test_the_hub_can_read_its_head(folder: Path) -> None:
    head = ModelCard.load(write_model_card(folder)).data.to_dict()
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert head["license"] == "unknown"
    assert "base_model" not in head
    assert "cytoglot" in head["tags"]


@pytest.mark.parametrize(
    ("base", "named"), [("EleutherAI/pythia-160m", True), ("models/of mine", False), ("../pythia", False)]
)
def test_a_base_is_named_in_the_head_if_the_hub_has_it(folder: Path, base: str, named: bool) -> None:
    manifest = json.loads((folder / "cytoglot.json").read_text())["manifest"]
    manifest["config"]["recipe"]["model"] |= {"base": base, "revision": "0123abc"}
    manifest["config"]["recipe"]["lora"] = {"rank": 8, "alpha": 16.0}
    _change(folder / "cytoglot.json", manifest=manifest)
    card = write_model_card(folder)
    head = ModelCard.load(card).data.to_dict()
    assert head.get("base_model") == (base if named else None)
    assert f"fine-tuned from `{base if named else Path(base).name}` (revision `0123abc`): low-rank" in card.read_text()
    assert "| lora.rank | 8 |" in card.read_text()


@pytest.mark.parametrize(
    ("licences", "head"),
    [
        (["MIT", "mit "], "mit"),
        (["CC BY 4.0", "CC BY 4.0"], "cc-by-4.0"),
        (["MIT", ""], "other"),
        (["", ""], "unknown"),
        (["own"], "other"),
    ],
)
def test_sources_of_a_corpus_and_their_licence(
    folder: Path, small_corpus: Corpus, licences: list[str], head: str
) -> None:
    facts = corpus_facts(small_corpus)
    assert facts["sources"][0]["licence"] == "CC0"
    facts["sources"] = [{**facts["sources"][0], "name": f"s{i}", "licence": one} for i, one in enumerate(licences)]
    _change(folder / "training.json", corpus=facts)
    (folder / "split.json").unlink()
    card = write_model_card(folder)
    text = card.read_text()
    assert ModelCard.load(card).data.license == head
    assert f"| s0 |  | human | {licences[0].strip() or 'not stated'} |" in text
    assert f"| train | {small_corpus.description.total('n_cells', 'train')} |" in text
    assert "trained on cells of human; others were never shown" in text


def test_validation_scores_come_from_the_training(folder: Path) -> None:
    path = folder / "training.json"
    history = json.loads(path.read_text())["history"]
    history[-1] |= {"cell_type_annotation.macro_f1": 0.4321}
    _change(path, history=history, validation={})
    assert "| cell_type_annotation | macro_f1 | 0.432 |" in write_model_card(folder).read_text()
    _change(path, validation={"cell_generation.gene_overlap": 0.25})
    text = write_model_card(folder).read_text()
    assert "| cell_generation | gene_overlap | 0.250 |" in text
    assert "0.432" not in text


def test_test_metrics_stand_with_interval_and_baselines(folder: Path, tiny_model: CellModel, tmp_path: Path) -> None:
    evaluation = _evaluation(tmp_path / "ev", tiny_model.spec, not_shown={"sex_annotation": "nothing to ask"})
    text = write_model_card(folder, evaluation).read_text()
    assert "| annotation | accuracy | cytoglot | 0.625 (0.500 to 0.750) | 40 | donor |" in text
    assert "| annotation | accuracy | logistic regression | 0.700 (0.500 to 0.750) | 40 | donor |" in text
    assert "no answer" not in text
    assert "- sex_annotation is not shown: nothing to ask" in text
    assert "nothing is claimed" not in text


def test_the_evaluation_of_another_model_is_refused(folder: Path, tiny_model: CellModel, tmp_path: Path) -> None:
    evaluation = _evaluation(tmp_path / "ev", tiny_model.spec)
    _change(evaluation / "manifest.json", config={"model": {**tiny_model.spec.manifest, "seeds": {"seed": 99}}})
    with pytest.raises(InputError, match="holds the evaluation of another model"):
        write_model_card(folder, evaluation)
    with pytest.raises(InputError, match="is no result of `cytoglot evaluate`"):
        write_model_card(folder, tmp_path)
    assert not (folder / CARD).exists()


def test_a_folder_without_a_finished_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    with pytest.raises(InputError, match="training was not finished"):
        write_model_card(tmp_path)


def test_damaged_weights_are_told(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"model\.safetensors are damaged .* copy the model folder again"):
        write_model_card(folder)
