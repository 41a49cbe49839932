"""Files of any size → Parquet: the same as in memory, and whole or absent whatever happens on the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cytoglot import resume
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import fingerprint_file
from cytoglot.resume import Parts
from cytoglot.sentence.cell_sentence import RankSettings
from cytoglot.sentence.encode import encode
from cytoglot.sentence.encode_file import EncodeSummary, encode_file
from cytoglot.sentence.parquet import read_sentences
from cytoglot.sentence.ranker import detection_rates


def cells(n_cells: int = 100, n_genes: int = 60, form: Any = sp.csr_matrix) -> AnnData:
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(rng.gamma(0.4, 2.0, (n_cells, n_genes))).astype(np.float32)
    counts_ng[[3, 50]] = 0
    obs = pd.DataFrame(index=[f"cell_{cell}" for cell in range(n_cells)])
    return AnnData(form(counts_ng), obs=obs, var=pd.DataFrame(index=[f"GENE{gene}" for gene in range(n_genes)]))


@pytest.fixture
def h5ad(tmp_path: Path) -> Path:
    cells().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "cells.h5ad")


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("ties", ["symbol", "order", "random", "rare_first", "common_first"])
def test_a_file_gives_what_memory_gives(tmp_path: Path, form: Any, ties: Any) -> None:
    adata = cells(form=form)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    settings = RankSettings(top_genes=9, ties=ties, seed=5)
    summary = encode_file(tmp_path / "cells.h5ad", tmp_path / "s.parquet", settings=settings, chunk_cells=17)
    assert summary == EncodeSummary(cells=100, genes=60, empty_cells=2, output=str(tmp_path / "s.parquet"))
    found = read_sentences(tmp_path / "s.parquet")
    expected = encode(adata, top_genes=9, ties=ties, seed=5)
    assert list(found) == list(expected)
    assert found.cell_ids.tolist() == adata.obs_names.tolist()
    assert found.n_expressed.tolist() == expected.n_expressed.tolist()
    assert found.settings == settings
    if settings.needs_tie_rates:
        np.testing.assert_array_equal(found.tie_rates, detection_rates(adata.X))
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 6
    assert left_over(tmp_path) == ["s.parquet"]


def test_text_genes_and_rates_reach_the_file(h5ad: Path, tmp_path: Path) -> None:
    genes = ["GENE5", "GENE2", "GENE40"]
    rates = {"GENE5": 0.5, "GENE2": 0.1, "GENE40": 0.25}
    settings = RankSettings(ties="rare_first")
    encode_file(h5ad, tmp_path / "s.parquet", genes=genes, tie_rates=rates, settings=settings, text=True)
    found = read_sentences(tmp_path / "s.parquet")
    assert found.vocabulary.symbols == tuple(genes)
    assert found.tie_rates.tolist() == np.float32([0.5, 0.1, 0.25]).tolist()
    assert list(found) == list(encode(cells(), genes=genes, tie_rates=rates, ties="rare_first"))
    assert pq.read_table(tmp_path / "s.parquet")["sentence"].to_pylist() == [" ".join(words) for words in found]
    assert found.manifest.inputs == {"cells.h5ad": fingerprint_file(h5ad)}
    assert found.manifest.config["ties"] == "rare_first"


def test_the_same_file_gives_the_same_bytes_over_an_older_output(h5ad: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    out.write_text("older")
    encode_file(h5ad, out, chunk_cells=30)
    first = out.read_bytes()
    encode_file(h5ad, out, chunk_cells=30)
    assert out.read_bytes() == first


def test_chunks_shrink_where_cells_express_many_genes(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytoglot.data.readers.cell_rows.BLOCK_VALUES", 1)
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._FEW_CELLS", 10)
    encode_file(h5ad, tmp_path / "s.parquet")
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 10


def test_a_file_without_cells_gives_a_file_without_sentences(tmp_path: Path) -> None:
    cells()[:0].copy().write_h5ad(tmp_path / "cells.h5ad")
    try:
        summary = encode_file(tmp_path / "cells.h5ad", tmp_path / "s.parquet")
    except InputError:
        assert left_over(tmp_path) == []  # the reader may refuse an empty file; then nothing is left
        return
    assert summary.cells == 0
    assert list(read_sentences(tmp_path / "s.parquet")) == []


def test_highly_variable_genes_are_chosen_from_the_file(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_genes(adata: AnnData, *, n_top: int) -> list[str]:
        assert adata.shape == (100, 60)
        return list(adata.var_names[:n_top])

    monkeypatch.setattr("cytoglot.data.hvg.select_hvg", first_genes)
    summary = encode_file(h5ad, tmp_path / "s.parquet", hvg=7)
    assert summary.genes == 7
    found = read_sentences(tmp_path / "s.parquet")
    assert found.vocabulary.symbols == tuple(f"GENE{gene}" for gene in range(7))


# Faults


def test_genes_and_hvg_exclude_each_other(h5ad: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass either genes or hvg, found 1 genes and hvg=5"):
        encode_file(h5ad, tmp_path / "s.parquet", genes=["GENE1"], hvg=5)


def test_a_bad_value_in_a_late_chunk_leaves_nothing(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytoglot.data.readers.matrix_choice.sample_positions", lambda n: np.arange(20))
    with h5py.File(h5ad, "r+") as file:
        file["X/data"][file["X/indptr"][90]] = -1.0
    with pytest.raises(InputError, match=r"cell_90.*GENE"):
        encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=20)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("place", ["part", "row group", "end"])
def test_a_full_disk_leaves_no_output_and_the_same_command_goes_on(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    encode_file(h5ad, tmp_path / "expected.parquet", chunk_cells=10)
    expected = (tmp_path / "expected.parquet").read_bytes()
    (tmp_path / "expected.parquet").unlink()
    out = tmp_path / "s.parquet"
    out.write_text("older")
    calls = 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 or place == "end":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)

    owner, name = {
        "part": (Parts, "write"),
        "row group": (pq.ParquetWriter, "write_table"),
        "end": (resume, "put_in_place"),
    }[place]
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(
            ResourceError, match=r"no space left for .*s.parquet; free some and run the same command again"
        ):
            encode_file(h5ad, out, chunk_cells=10)
    assert out.read_text() == "older"
    (work,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert not (work / "output.parquet").exists()
    summary = encode_file(h5ad, out, chunk_cells=10)
    assert summary.resumed_cells >= {"part": 30, "row group": 20, "end": 100}[place]
    assert out.read_bytes() == expected
    assert left_over(tmp_path) == ["s.parquet"]


def test_other_errors_of_the_system_pass_through(h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Parts, "write", denied)
    with pytest.raises(PermissionError):
        encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=10)


def test_parts_of_another_input_or_other_settings_are_refused_by_name(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume, "put_in_place", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=10)
    with pytest.raises(InputError, match=r"unfinished s.parquet, made with top_genes null \(now 5\);"):
        encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=10, settings=RankSettings(top_genes=5))
    with h5py.File(h5ad, "r+") as file:
        file["X/data"][0] = 99.0
    with pytest.raises(InputError, match=r"made with another data; repeat .* or pass --overwrite"):
        encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=10)
    assert not (tmp_path / "s.parquet").exists()
    assert encode_file(h5ad, tmp_path / "s.parquet", chunk_cells=10, overwrite=True).resumed_cells == 0
    assert left_over(tmp_path) == ["s.parquet"]


def test_two_processes_do_not_write_one_output(h5ad: Path, tmp_path: Path) -> None:
    with (
        Parts(tmp_path / "s.parquet", {}).opened(),
        pytest.raises(InputError, match=r"another process is writing .*s.parquet"),
    ):
        encode_file(h5ad, tmp_path / "s.parquet")


def test_rates_found_before_an_interrupt_are_not_counted_again(
    h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        if given[1:2] != ("tie_rates",):
            raise KeyboardInterrupt
        write(*given)

    write = Parts.write
    settings = RankSettings(ties="common_first")
    encode_file(h5ad, tmp_path / "expected.parquet", settings=settings, chunk_cells=10)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode_file(h5ad, tmp_path / "s.parquet", settings=settings, chunk_cells=10)
    monkeypatch.setattr("cytoglot.sentence.encode.rates_of_blocks", interrupted)
    encode_file(h5ad, tmp_path / "s.parquet", settings=settings, chunk_cells=10)
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


KILLED = """
    import os, signal, sys
    import pyarrow.parquet as pq
    from cytoglot import resume
    from cytoglot.sentence.encode_file import encode_file

    place, calls = sys.argv[3], 0
    def killing(original, before):
        def call(*arguments, **options):
            global calls
            calls += 1
            if before and calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **options)
            if not before and calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        return call
    if place == "within a part":
        calls = -1  # the settings come first
        os.fsync = killing(os.fsync, True)
    elif place == "after a part":
        resume.Parts.write = killing(resume.Parts.write, False)
    elif place == "within a row group":
        pq.ParquetWriter.write_table = killing(pq.ParquetWriter.write_table, False)
    elif place == "before the rename":
        calls = 3
        resume.put_in_place = killing(resume.put_in_place, True)
    encode_file(sys.argv[1], sys.argv[2], chunk_cells=10, text=True)
"""


@pytest.mark.parametrize(
    "place",
    [
        "after a part",
        pytest.param("within a part", marks=pytest.mark.slow),
        pytest.param("within a row group", marks=pytest.mark.slow),
        pytest.param("before the rename", marks=pytest.mark.slow),
    ],
)
def test_the_same_command_after_a_kill_ends_with_the_same_bytes(h5ad: Path, tmp_path: Path, place: str) -> None:
    encode_file(h5ad, tmp_path / "expected.parquet", chunk_cells=10, text=True)
    out = tmp_path / "s.parquet"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(h5ad), str(out), place]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not out.exists()
    summary = encode_file(h5ad, out, chunk_cells=10, text=True)
    assert summary.resumed_cells >= 20  # the part behind is written in the background
    assert out.read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert left_over(tmp_path) == ["expected.parquet", "s.parquet"]
