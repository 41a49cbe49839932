"""The runners of the package: readable, refused without their weights, and run as far as weights are here."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.benchmark.runners import RunnerEmbedder, find_runner, runner_folders
from cytoglot.benchmark.runners.environment import built_environment
from cytoglot.benchmark.runners.find import MODELS, load_runner
from cytoglot.errors import InputError


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(MODELS.glob("*/runner.toml"))])
def test_a_runner_can_be_read_and_names_the_files_that_it_lacks(name: str, counts: AnnData) -> None:
    runner = find_runner(name)
    compile(runner.script.read_text(encoding="utf-8"), str(runner.script), "exec")
    assert runner.settings.tested
    if runner.settings.files:
        with pytest.raises(InputError, match=f"runner '{name}' needs files that are not in .*--weights"):
            RunnerEmbedder(runner=runner).embed(counts)


def test_a_rank_value_encoder_with_random_weights_runs(counts: AnnData, tmp_path: Path) -> None:
    """The script of Geneformer, in this Python, with a BERT of two layers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, weights = tmp_path / "geneformer", tmp_path / "weights"
    shutil.copytree(find_runner("geneformer").folder, folder)
    text = (folder / "runner.toml").read_text().replace('python = "3.11"', 'python = "host"')
    (folder / "runner.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("sha256")))
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=10, max_position_embeddings=16, pad_token_id=0, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(weights)
    ids = counts.var["gene_ids"].tolist()
    tables = {
        "token_dictionary": {"<pad>": 0, "<mask>": 1, **{gene: i + 2 for i, gene in enumerate(ids[:5])}},
        "gene_median_dictionary": {gene: 0.5 + i for i, gene in enumerate(ids)},
        "gene_name_id_dict": dict(zip(counts.var_names, ids, strict=True)),
    }
    for name, table in tables.items():
        (weights / f"{name}.pkl").write_bytes(pickle.dumps(table))
    result = RunnerEmbedder(runner=load_runner(folder), weights=weights).run(counts)
    assert result.vectors_nd.shape == (12, 8)
    assert result.vectors_nd.std(axis=0).min() > 0
    assert len(result.record.weights["model.safetensors"]) == 64
    (weights / "config.json").write_text((weights / "config.json").read_text() + "\n")
    assert not RunnerEmbedder(runner=load_runner(folder), weights=weights).run(counts).was_kept
    # ids that come from names give the same vectors as ids of the file
    named = AnnData(X=counts.X.copy(), obs=counts.obs.copy(), var=counts.var[[]].copy())
    np.testing.assert_allclose(
        RunnerEmbedder(runner=load_runner(folder), weights=weights).embed(named), result.vectors_nd, atol=1e-6
    )


def test_weights_of_another_checksum_are_refused(counts: AnnData, tmp_path: Path) -> None:
    for file in find_runner("geneformer").settings.files:
        (tmp_path / file.name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.safetensors must have the SHA-256 a5e33a75"):
        RunnerEmbedder(runner=find_runner("geneformer"), weights=tmp_path).embed(counts)


@pytest.mark.slow
@pytest.mark.data
def test_scvi_and_scanvi_are_fitted_on_real_cells(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    import cytoglot as cg

    kept = os.environ.get("CYTOGLOT_TEST_RUNNERS_CACHE")
    data = Path(os.environ.get("CYTOGLOT_DATA", pytestconfig.rootpath.parent / "shared" / "data"))
    if kept is None or not (data / "pbmc3k_counts_labeled.h5ad").is_file():
        pytest.skip("needs CYTOGLOT_DATA, and CYTOGLOT_TEST_RUNNERS_CACHE: a cache with the environment of scvi-tools")
    monkeypatch.setenv("CYTOGLOT_CACHE", kept)
    runner = find_runner("scvi-tools")
    if built_environment(runner) is None:
        pytest.skip("the environment is not built; run: cytoglot runner build scvi-tools")
    cells = cg.read(data / "pbmc3k_counts_labeled.h5ad")[:200].copy()
    is_train = np.arange(200) % 2 == 0
    cells.obs["known"] = np.where(is_train, cells.obs["cell_type"].astype(str), "unknown")
    scvi = RunnerEmbedder(runner=runner, options=["epochs=2"])
    scanvi = RunnerEmbedder(
        runner=runner, options=["method=scanvi", "epochs=2", "scanvi_epochs=2"], label_column="known"
    )
    assert scvi.sees_all_cells
    for embedder in (scvi, scanvi):
        vectors_nd = embedder.embed(cells)
        assert vectors_nd.shape == (200, 10)
        assert vectors_nd.std(axis=0).max() > 0
        assert embedder.run(cells).was_kept


def test_folders_of_the_user_come_first(write_runner: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_runner("geneformer")
    assert runner_folders()["geneformer"].parent == MODELS
    assert runner_folders([folder])["geneformer"].parent == folder
    monkeypatch.setenv("CYTOGLOT_RUNNERS", str(folder))
    assert find_runner("geneformer").settings.version == "1"
    monkeypatch.setenv("CYTOGLOT_RUNNERS", str(folder / "none"))
    with pytest.raises(InputError, match="is no folder"):
        runner_folders()
