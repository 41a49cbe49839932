"""Files of sentences → files of expression (the command's tests cover what it refuses)."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
from anndata import AnnData

import cytoglot as cg
from cytoglot.applications.decoding import decode_file
from cytoglot.applications.reconstruction import reconstruct
from cytoglot.sentence.parquet import write_sentences


def test_a_file_of_ranks_is_what_the_sentences_say(cells: AnnData, tmp_path: Path) -> None:
    sentences = cg.encode(cells)
    write_sentences(sentences, tmp_path / "cells.parquet")
    summary = decode_file(tmp_path / "cells.parquet", tmp_path / "out.h5ad")
    assert (summary.cells, summary.genes, summary.empty_cells) == (240, 120, 0)
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.layers["rank"].toarray(), cg.decode(sentences).layers["rank"].toarray())


def test_curves_of_a_reconstruction_decode_files_and_texts_alike(cells: AnnData, tmp_path: Path) -> None:
    reconstruct(cells, out=tmp_path / "curves")
    sentences = cg.encode(cells[:5])
    write_sentences(sentences, tmp_path / "cells.parquet")
    (tmp_path / "cells.txt").write_text("\n".join(sentences.text().to_pylist()))
    found = {}
    for name in ("cells.parquet", "cells.txt"):
        decode_file(tmp_path / name, tmp_path / "out.h5ad", curves=tmp_path / "curves")
        found[name] = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(found["cells.txt"].X.toarray(), found["cells.parquet"].X.toarray(), atol=1e-6)
    assert (found["cells.txt"].X.toarray() > 0).any()
