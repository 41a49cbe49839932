"""The order of the genes in a file changes nothing: the same commands on the same cells, their columns reordered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from anndata import AnnData
from safetensors.torch import load_file

from cytoglot.cell_model.load import load_cell_model
from cytoglot.cell_model.spec import load_split
from cytoglot.corpus.format.folder import PARTS, open_corpus
from cytoglot.sentence.encode import encode
from cytoglot.sentence.parquet import read_sentences, write_sentences

Command = Callable[..., Any]


@dataclass(frozen=True)
class Pair:
    """The same cells twice, and what commands made of either."""

    straight: Path
    reordered: Path
    folder: Path

    def outputs(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"straight_{name}", self.folder / f"reordered_{name}"


@pytest.fixture(scope="module")
def pair(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two genes have equal counts, so that variable genes are tied too; names are no help to their order."""
    folder = tmp_path_factory.mktemp("gene_order")
    rng = np.random.default_rng(5)
    adata = cells.copy()
    adata.X = adata.X[:, np.concatenate([np.arange(60), np.arange(60)])]  # every gene has an equal
    adata.var_names = [f"G{number}" for number in rng.permutation(adata.n_vars)]
    adata.write_h5ad(folder / "straight.h5ad")
    adata[:, rng.permutation(adata.n_vars)].copy().write_h5ad(folder / "reordered.h5ad")
    return Pair(folder / "straight.h5ad", folder / "reordered.h5ad", folder)


@pytest.fixture(scope="module")
def models(pair: Pair) -> tuple[Path, Path]:
    """A model of each file. The names of both files are one while they are trained on: a model knows its source."""
    from cytoglot.cli.main import run

    small = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "feed_forward": 16, "context_length": 256}
    settings = [f"model.scratch.{name}={value}" for name, value in small.items()]
    settings += ["model.word_vector_rank=8", "sentence.hvg=41", "sentence.top_genes=20", "optim.steps=8"]
    settings += ["optim.batch_size=4", "optim.evaluate_every=4", "views=2"]
    folders = pair.outputs("model")
    for source, folder in zip((pair.straight, pair.reordered), folders, strict=True):
        options = [word for setting in settings for word in ("--set", setting)]
        assert run(["train", str(source), "--label", "cell_type", "-o", str(folder), *options, "--json"]) == 0
    return folders


@pytest.fixture(scope="module")
def curves(pair: Pair) -> tuple[Path, Path]:
    """What `reconstruct` makes of each file."""
    from cytoglot.cli.main import run

    folders = pair.outputs("curves")
    for source, folder in zip((pair.straight, pair.reordered), folders, strict=True):
        options = ["--hvg", "41", "--label", "cell_type", "-o", str(folder), "--json"]
        assert run(["reconstruct", str(source), *options]) == 0
    return folders


def both(command: Command, pair: Pair, name: str, *arguments: Any, suffix: str = "") -> tuple[Path, Path]:
    """Run a command on either file; return what it wrote."""
    outputs = pair.outputs(name + suffix)
    for source, out in zip((pair.straight, pair.reordered), outputs, strict=True):
        assert command(name, source, "-o", out, *arguments, "--json").code == 0
    return outputs


def assert_same_cells(left: AnnData, right: AnnData) -> None:
    """Equal values of equal names, wherever their columns are."""
    assert set(left.var_names) == set(right.var_names)
    right = right[:, left.var_names].copy()
    np.testing.assert_allclose(left.X.toarray(), right.X.toarray(), atol=1e-6)
    for name in left.layers:
        np.testing.assert_allclose(left.layers[name].toarray(), right.layers[name].toarray(), atol=1e-6)
    for name in left.obsm:
        np.testing.assert_array_equal(left.obsm[name], right.obsm[name])
    pd.testing.assert_frame_equal(left.obs, right.obs)


def test_encode_in_memory(pair: Pair) -> None:
    straight, reordered = (anndata.read_h5ad(path) for path in (pair.straight, pair.reordered))
    assert list(encode(straight)) == list(encode(reordered))
    assert list(encode(straight, top_genes=7)) == list(encode(reordered, top_genes=7))
    assert list(encode(straight, ties="order")) != list(encode(reordered, ties="order"))  # it is asked for by name


@pytest.mark.parametrize("options", [("--top-genes", "7"), ("--hvg", "41", "--top-genes", "7")])
def test_encode(command: Command, pair: Pair, options: tuple[str, ...]) -> None:
    encoded = both(command, pair, "encode", *options, "--text", suffix=f"{'_'.join(options)}.parquet")
    first, second = (pq.read_table(path)["sentence"].to_pylist() for path in encoded)
    assert first == second


def test_reconstruct_and_decode(command: Command, pair: Pair, curves: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (json.loads((folder / "curves.json").read_text())["curves"] for folder in curves)
    for left, right in zip(first, second, strict=True):
        for name, value in left.items():
            assert right[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    encoded = both(command, pair, "encode", suffix=".parquet")
    for source, curve, name in zip(encoded, curves, "ab", strict=True):
        assert command("decode", source, "--curves", curve, "-o", tmp_path / f"{name}.h5ad", "--json").code == 0
    assert_same_cells(*(anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "ab"))


def test_audit(command: Command, pair: Pair) -> None:
    first, second = (command("audit", path, "--json").result for path in (pair.straight, pair.reordered))
    assert first["findings"] == second["findings"]
    assert first["facts"] == second["facts"]


def test_corpus_build(command: Command, pair: Pair, tmp_path: Path) -> None:
    corpora = []
    for path in (pair.straight, pair.reordered):
        out = tmp_path / f"of {path.stem}"
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"sources: [{{name: cells, path: {path}}}]\ngenes: {{repair: false}}\n")
        assert command("corpus", "build", recipe, "-o", out, "--json").code == 0
        corpora.append(open_corpus(out))
    first, second = corpora
    assert first.vocabulary == second.vocabulary
    for part in PARTS:
        for left, right in zip(first.blocks(part), second.blocks(part), strict=True):
            assert left.cell_ids.equals(right.cell_ids)
            np.testing.assert_array_equal(left.gene_ids, right.gene_ids)
    assert first.rank_curve is not None
    np.testing.assert_allclose(first.rank_curve["offsets"], second.rank_curve["offsets"], atol=1e-9)


def test_train(pair: Pair, models: tuple[Path, Path]) -> None:
    first, second = (load_cell_model(folder, device="cpu") for folder in models)
    assert first.spec.vocabulary == second.spec.vocabulary
    assert len(first.spec.vocabulary) == 41  # half of a pair of equal genes is left out
    for name in ("ranking", "tie_rates", "labels", "label_counts", "words_per_label", "calibration", "views"):
        assert getattr(first.spec, name) == getattr(second.spec, name), name
    left, right = (load_split(folder) for folder in models)
    assert left == right is not None
    weights = [load_file(folder / "model.safetensors") for folder in models]
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1][name], err_msg=name)


@pytest.mark.parametrize("name", ["annotate", "embed"])
def test_annotate_and_embed(command: Command, pair: Pair, models: tuple[Path, Path], name: str) -> None:
    outputs = both(command, pair, name, "--model", models[0], suffix=".h5ad")
    assert_same_cells(*(anndata.read_h5ad(path) for path in outputs))


def test_generate(command: Command, models: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, name in zip(models, "ab", strict=True):
        command("generate", "--model", folder, "-n", "3", "-o", tmp_path / f"{name}.h5ad", "--json").result
    assert_same_cells(*(anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "ab"))


def test_a_checkpoint_without_training(command: Command, pair: Pair, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Its sentences are made of the genes of the query itself."""
    plain = shutil.copytree(models[0], tmp_path / "plain")
    (plain / "cytoglot.json").unlink()
    outputs = both(command, pair, "embed", "--model", plain, "--checkpoint", suffix="_plain.h5ad")
    assert_same_cells(*(anndata.read_h5ad(path) for path in outputs))


def test_stored_sentences_keep_the_rule_they_were_made_with(pair: Pair, tmp_path: Path) -> None:
    write_sentences(encode(anndata.read_h5ad(pair.straight), ties="order"), tmp_path / "old.parquet")
    assert read_sentences(tmp_path / "old.parquet").settings.ties == "order"
