"""A run in this Python: what the script is given, what is checked of its answer, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.benchmark.embedders import EMBEDDERS
from cytoglot.benchmark.runners import RunnerEmbedder, find_runner
from cytoglot.errors import InputError, ResourceError, UnknownNameError
from cytoglot.protocols import CellEmbedder

Write = Callable[..., Path]


@pytest.fixture
def embedder(write_runner: Write) -> Callable[..., RunnerEmbedder]:
    folder = write_runner()
    return lambda **settings: RunnerEmbedder(runner=find_runner("first-counts", [folder]), **settings)


def test_the_vectors_are_those_of_the_script_in_the_order_of_the_cells(
    embedder: Callable[..., RunnerEmbedder], counts: AnnData
) -> None:
    before = counts.copy()
    plain = embedder()
    assert isinstance(plain, CellEmbedder)
    vectors_nd = plain.embed(counts)
    assert vectors_nd.dtype == np.float32
    np.testing.assert_array_equal(vectors_nd, counts.X.toarray()[:, :3])
    np.testing.assert_array_equal(embedder(options={"fault": "shuffled"}).embed(counts), vectors_nd)
    np.testing.assert_array_equal(embedder(options=["n_genes=2"]).embed(counts), vectors_nd[:, :2])
    assert (counts.X != before.X).nnz == 0
    assert counts.obs.equals(before.obs)
    assert not counts.uns


def test_the_second_run_on_the_same_cells_starts_no_process(
    embedder: Callable[..., RunnerEmbedder], counts: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embedder().run(counts)
    assert not first.was_kept
    assert first.record.model == "first-counts"
    assert first.record.weights == {}
    assert first.record.seconds > 0
    assert not (first.folder / "input.h5ad").exists()
    changed = counts.copy()
    changed.X[0, 0] += 1
    renamed = counts.copy()
    renamed.obs_names = [f"other {i}" for i in range(12)]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    again = embedder().run(counts.copy())
    assert again.was_kept
    np.testing.assert_array_equal(again.vectors_nd, first.vectors_nd)
    others = [(embedder(), changed), (embedder(), renamed), (embedder(seed=1), counts)]
    others += [(embedder(options={"n_genes": 2}), counts), (embedder(batch_column="plate"), counts)]
    for another, cells in others:
        with pytest.raises(AssertionError, match="a process was started"):
            another.embed(cells)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "'first-counts' is NaN or infinite for the cell 'cell 3'"),
        ("missing", r"'first-counts' has no row for 2 cells \('cell 10', 'cell 11'\)"),
        ("twice", "'first-counts' has more than one row for the cell 'cell 0'"),
        ("unknown", "has rows for the cell 'cell 999' that are not in the input"),
        ("silent", r"'first-counts' wrote no embedding\.parquet"),
        ("no record", r"'first-counts' wrote no run\.json"),
    ],
)
def test_an_answer_that_does_not_fit_the_cells_is_refused_and_not_kept(
    embedder: Callable[..., RunnerEmbedder], counts: AnnData, cache: Path, fault: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embedder(options={"fault": fault}).embed(counts)
    assert not [path for path in cache.rglob("*") if path.name == "embedding.parquet"]


def test_a_script_that_fails_or_takes_too_long_is_named_with_what_it_printed(
    embedder: Callable[..., RunnerEmbedder], counts: AnnData
) -> None:
    with pytest.raises(ResourceError, match=r"'first-counts' failed with exit code 1: .*the model is too large"):
        embedder(options={"fault": "crash"}).embed(counts)
    with pytest.raises(ResourceError, match=r"'first-counts' was ended after 2 s"):
        embedder(options={"fault": "slow"}, timeout_seconds=2).embed(counts)


def test_the_script_sees_the_columns_that_it_reads_and_no_label(
    embedder: Callable[..., RunnerEmbedder], counts: AnnData, cache: Path
) -> None:
    embedder(batch_column="plate").embed(counts)
    (log,) = (cache / "runners" / "logs").glob("*.log")
    assert log.read_text().strip() == "columns: batch"
    with pytest.raises(InputError, match="'first-counts' reads no label"):
        embedder(label_column="cell_type").embed(counts)
    with pytest.raises(InputError, match="no column 'plaet'"):
        embedder(batch_column="plaet").embed(counts)


def test_cells_without_counts_are_refused(embedder: Callable[..., RunnerEmbedder], counts: AnnData) -> None:
    logs = counts.copy()
    logs.X = logs.X.astype(np.float64)
    logs.X.data = np.log1p(logs.X.data)
    with pytest.raises(InputError, match="needs raw counts, found log1p"):
        embedder().embed(logs)
    with pytest.raises(InputError, match="needs raw counts, found no cells"):
        embedder().embed(counts[:0].copy())


def test_an_unknown_option_or_one_of_another_type_is_refused(embedder: Callable[..., RunnerEmbedder]) -> None:
    runner = embedder().runner
    assert runner.with_options(["n_genes=5"]) == {"n_genes": 5, "fault": ""}
    with pytest.raises(UnknownNameError, match=r"option of the runner 'first-counts' 'n_gene'.*did you mean 'n_genes'"):
        runner.with_options(["n_gene=5"])
    with pytest.raises(InputError, match=r"'n_genes' .* must be of the type of its default 3, found 'many'"):
        runner.with_options({"n_genes": "many"})
    with pytest.raises(InputError, match=r"must look like a\.b=value"):
        runner.with_options(["n_genes"])


def test_a_recipe_names_a_runner_like_any_embedder(write_runner: Write, counts: AnnData, tmp_path: Path) -> None:
    counts.obs["batch"] = counts.obs["plate"]
    made = EMBEDDERS["runner"](name="first-counts", runners=[write_runner()], options={"n_genes": 2})
    assert isinstance(made, CellEmbedder)
    np.testing.assert_array_equal(made.embed(counts), counts.X.toarray()[:, :2])
    with pytest.raises(UnknownNameError, match="first-count"):
        EMBEDDERS["runner"](name="first-count", runners=[tmp_path / "runners"])
