"""Every input that cannot be used ends in exit code 2, one line that says what to do, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

Command = Callable[..., Any]

SOURCE_COMMANDS = {
    "audit": ["audit", "{source}"],
    "encode": ["encode", "{source}", "-o", "{out}.parquet"],
    "reconstruct": ["reconstruct", "{source}", "-o", "{out}"],
    "train": ["train", "{source}", "--label", "cell_type", "-o", "{out}"],
    "annotate": ["annotate", "{source}", "--model", "{model}", "-o", "{out}.h5ad"],
    "embed": ["embed", "{source}", "--model", "{model}", "-o", "{out}.h5ad"],
    "evaluate": ["evaluate", "{source}", "--model", "{model}", "-o", "{out}"],
}
READING = ["encode", "train", "annotate", "embed", "evaluate"]


@pytest.fixture
def refuse(command: Command, tiny_model_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused, and return the line after checking that no file has appeared."""

    def call(*arguments: str | Path, **values: str | Path) -> str:
        filled = [str(a).format(out=tmp_path / "out", model=tiny_model_folder, **values) for a in arguments]
        before = sorted(tmp_path.rglob("*"))
        line: str = command(*filled).refusal
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return line

    return call


@pytest.fixture
def save(tmp_path: Path) -> Callable[[AnnData], Path]:
    def write(adata: AnnData) -> Path:
        path = tmp_path / "in.h5ad"
        adata.write_h5ad(path)
        return path

    return write


def _with_matrix(cells: AnnData, change: Callable[[np.ndarray], np.ndarray]) -> AnnData:
    return AnnData(X=change(cells.X.toarray().astype(np.float32)), obs=cells.obs.copy(), var=cells.var.copy())


def _set(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[3, 5] = value
        return matrix

    return change


# Files that are no files of cells


@pytest.mark.parametrize("name", SOURCE_COMMANDS)
def test_a_file_that_is_missing(refuse: Callable[..., str], name: str, tmp_path: Path) -> None:
    line = refuse(*SOURCE_COMMANDS[name], source=tmp_path / "nowhere.h5ad")
    assert "nowhere.h5ad is neither a file or folder nor the name of a data set" in line


@pytest.mark.parametrize("name", [n for n in SOURCE_COMMANDS if n != "audit"])
def test_a_file_that_is_truncated(refuse: Callable[..., str], name: str, cells_file: Path, tmp_path: Path) -> None:
    content = cells_file.read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(content[: len(content) // 2])
    line = refuse(*SOURCE_COMMANDS[name], source=tmp_path / "cut.h5ad")
    assert re.search(r"cut.h5ad cannot be read, it is truncated or damaged .*; write or download it again", line)


@pytest.mark.parametrize("name", READING)
def test_a_file_that_is_not_hdf5(refuse: Callable[..., str], name: str, tmp_path: Path) -> None:
    (tmp_path / "page.h5ad").write_text("<html>404 Not Found</html>")
    line = refuse(*SOURCE_COMMANDS[name], source=tmp_path / "page.h5ad")
    assert re.search(r"is not an HDF5 file: it is a web page .*download the file again; expected an AnnData file", line)


def test_a_folder_that_holds_no_cells(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    line = refuse(*SOURCE_COMMANDS["encode"], source=tmp_path / "folder")
    assert re.search("neither zarr nor 10x; it holds: notes.txt; pass an AnnData file", line)


# Matrices that cannot be ranked


@pytest.mark.parametrize("name", READING)
def test_only_a_scaled_matrix(refuse: Callable[..., str], name: str, cells: AnnData, save: Any) -> None:
    scaled = _with_matrix(cells, lambda m: (m - m.mean(axis=0)) / (m.std(axis=0) + 1e-6))
    line = refuse(*SOURCE_COMMANDS[name], source=save(scaled))
    assert re.search(r"expected integer counts, log1p or other non-negative values, found X: .*pass a file with", line)


def test_a_scaled_layer_that_is_asked_for(refuse: Callable[..., str], cells: AnnData, save: Any) -> None:
    both = cells.copy()
    both.layers["scaled"] = both.X.toarray() - 1.5
    line = refuse(*SOURCE_COMMANDS["encode"], "--layer", "scaled", source=save(both))
    assert re.search(r"found layers\['scaled'\]: .*pass layer='X' \(integer counts", line)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN|nan"), (np.inf, "inf"), (-2.0, "negative|signed|-2")])
@pytest.mark.parametrize("name", ["encode", "train", "annotate"])
def test_values_that_have_no_rank(
    refuse: Callable[..., str], name: str, value: float, words: str, cells: AnnData, save: Any
) -> None:
    line = refuse(*SOURCE_COMMANDS[name], source=save(_with_matrix(cells, _set(value))))
    assert re.search(words, line)
    if not np.isfinite(value):
        assert "cell_3" in line
        assert "GENE5" in line


def test_cells_of_the_same_name(refuse: Callable[..., str], cells: AnnData, save: Any) -> None:
    twice = cells.copy()
    twice.obs_names = ["same", "same", *twice.obs_names[2:]]
    for name in READING:
        line = refuse(*SOURCE_COMMANDS[name], source=save(twice))
        assert re.search(r"found 1 repeated.*, such as 'same'; .*adata.obs_names_make_unique\(\)", line)


def test_a_layer_that_is_not_there(refuse: Callable[..., str], cells_file: Path) -> None:
    for name in READING:
        line = refuse(*SOURCE_COMMANDS[name], "--layer", "countz", source=cells_file)
        assert re.search("unknown layer 'countz'", line)


# Labels


def test_a_label_column_that_is_missing(refuse: Callable[..., str], cells_file: Path) -> None:
    columns = "'cell_type', 'donor', 'batch'"
    for arguments in (
        ["train", cells_file, "--label", "celltype", "-o", "{out}", "--set", "sentence.hvg=null"],
        ["evaluate", cells_file, "--model", "{model}", "--label", "celltype", "-o", "{out}"],
        ["reconstruct", cells_file, "--label", "celltype", "-o", "{out}"],
    ):
        line = refuse(*arguments)
        assert f"obs has no column 'celltype'; its columns are: {columns} (did you mean 'cell_type'?)" in line


def test_a_split_column_that_is_missing(refuse: Callable[..., str], cells_file: Path) -> None:
    line = refuse("train", cells_file, "--label", "cell_type", "--split-by", "donors", "-o", "{out}")
    assert re.search("'donors'.*donor", line)


@pytest.mark.parametrize(
    ("name", "nearest"), [("type D", "did you mean 'type A'|'type B'|'type C'"), ("hepatocyte", "known: 'type A'")]
)
def test_a_cell_type_that_the_model_never_saw(refuse: Callable[..., str], name: str, nearest: str) -> None:
    line = refuse("generate", "--model", "{model}", "--cell-type", name, "-n", "2", "-o", "{out}.h5ad")
    assert f"unknown cell type of this model '{name}'" in line
    assert re.search(nearest, line)


def test_label_files_that_say_too_little(refuse: Callable[..., str], cells_file: Path, tmp_path: Path) -> None:
    annotate = ["annotate", cells_file, "--model", "{model}", "-o", "{out}.h5ad", "--labels"]
    assert "labels.txt does not exist; pass a text file with one label per line" in refuse(
        *annotate, tmp_path / "labels.txt"
    )
    (tmp_path / "labels.txt").write_text("B cell\nB cell\n\n")
    assert "must hold at least two labels, one per line, found 1" in refuse(*annotate, tmp_path / "labels.txt")


# Genes


@pytest.mark.parametrize("name", ["annotate", "embed", "evaluate"])
def test_a_foreign_vocabulary(refuse: Callable[..., str], name: str, cells: AnnData, save: Any) -> None:
    foreign = cells.copy()
    foreign.var_names = [f"ENSMUSG{i:011d}" for i in range(foreign.n_vars)]
    line = refuse(*SOURCE_COMMANDS[name], source=save(foreign))
    assert re.search(
        r"0 of the model's \d+ genes are in the query \(0%\); the model does not use the other 120 of", line
    )
    assert re.search(
        r"the model knows GENE0, .*, the query has ENSMUSG00000000000, .*pass data with the same kind", line
    )


def test_too_few_shared_genes_for_the_stated_overlap(refuse: Callable[..., str], cells: AnnData, save: Any) -> None:
    half = cells[:, :60].copy()
    for name in ("annotate", "embed"):
        line = refuse(*SOURCE_COMMANDS[name], "--min-overlap", "0.9", source=save(half))
        assert re.search(r"\(50%\).*at least 90% of the model's genes are needed", line)


# Models


@pytest.mark.parametrize("name", ["annotate", "embed", "generate", "evaluate", "decode"])
def test_a_model_folder_without_its_spec(
    refuse: Callable[..., str], name: str, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(tiny_model_folder, tmp_path / "plain")
    (plain / "cytoglot.json").unlink()
    (tmp_path / "sentences.txt").write_text("GENE1 GENE2\n")
    source = tmp_path / "sentences.txt" if name == "decode" else cells_file
    arguments = [
        name,
        *([] if name == "generate" else [source]),
        "-o",
        "{out}" + (".h5ad" if name != "evaluate" else ""),
    ]
    assert "plain holds no cytoglot.json, so it is not a cytoglot model folder" in refuse(*arguments, "--model", plain)
    missing = refuse(*arguments, "--model", tmp_path / "nowhere")
    assert "nowhere does not exist; pass the folder that `cytoglot train -o` wrote" in missing
    (plain / ".work").mkdir()
    assert "its training was not finished: run the same `cytoglot train` again" in refuse(*arguments, "--model", plain)


def test_a_model_folder_of_a_newer_format_or_edited_by_hand(
    refuse: Callable[..., str], cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    spec = json.loads((copy / "cytoglot.json").read_text())
    embed = ["embed", cells_file, "--model", copy, "-o", "{out}.h5ad"]
    (copy / "cytoglot.json").write_text(json.dumps(spec | {"format_version": 99}))
    assert "has format version 99, this cytoglot reads 1; update cytoglot" in refuse(*embed)
    (copy / "cytoglot.json").write_text(json.dumps(spec | {"vocabulary_fingerprint": "0" * 16}))
    assert "does not match its fingerprint" in refuse(*embed)
    (copy / "cytoglot.json").write_text("{ broken")
    assert re.search("cytoglot.json is not valid JSON", refuse(*embed))


def test_weights_that_are_missing_or_cut(
    refuse: Callable[..., str], cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    line = refuse("embed", cells_file, "--model", copy, "-o", "{out}.h5ad")
    assert str(copy) in line


# Options


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.step=5", "unknown key 'optim.step', did you mean 'steps'"),
        ("optim.steps=many", "optim.steps: .*found 'many'"),
        ("optim.steps", "must look like a.b=value"),
        ("views.a=1", "views"),
    ],
)
def test_a_setting_that_is_misspelt(refuse: Callable[..., str], setting: str, message: str, cells_file: Path) -> None:
    assert re.search(message, refuse(*SOURCE_COMMANDS["train"], "--set", setting, source=cells_file))


def test_a_recipe_that_cannot_be_used(refuse: Callable[..., str], cells_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    train = [*SOURCE_COMMANDS["train"], "--recipe", recipe]
    assert "recipe.yaml does not exist; pass the path of a YAML file" in refuse(*train, source=cells_file)
    recipe.write_text("optim: {stepz: 3}\n")
    assert "recipe.yaml: unknown key 'optim.stepz', did you mean 'steps'" in refuse(*train, source=cells_file)
    recipe.write_text("optim: [unclosed\n")
    assert "recipe.yaml is not valid YAML" in refuse(*train, source=cells_file)
    recipe.write_text("- a\n- b\n")
    assert "must hold a mapping, found list" in refuse(*train, source=cells_file)


def test_an_evaluation_setting_that_is_misspelt(refuse: Callable[..., str], cells_file: Path) -> None:
    line = refuse(*SOURCE_COMMANDS["evaluate"], "--set", "controll=false", source=cells_file)
    assert "unknown key 'controll', did you mean 'control'" in line


@pytest.mark.parametrize("context", ["human", "organism=", "=human", "organism=human, blood"])
def test_a_context_without_names(refuse: Callable[..., str], context: str, cells_file: Path) -> None:
    for name in ("annotate", "embed"):
        line = refuse(*SOURCE_COMMANDS[name], "--context", context, source=cells_file)
        assert '--context expects "name=value, name=value", found' in line


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (["encode", "{source}", "-o", "{out}.csv"], ".parquet"),
        (["annotate", "{source}", "--model", "{model}", "-o", "{out}.tsv"], ".h5ad or .csv"),
        (["embed", "{source}", "--model", "{model}", "-o", "{out}"], ".h5ad or .parquet"),
        (["generate", "--model", "{model}", "-o", "{out}.txt"], ".h5ad"),
        (["decode", "{source}", "-o", "{out}.txt"], ".h5ad"),
        (["import-c2s", "{source}", "-o", "{out}.txt"], ".parquet"),
    ],
)
def test_an_output_with_another_ending(
    refuse: Callable[..., str], arguments: list[str], ending: str, cells_file: Path
) -> None:
    assert f"the output must end in {ending}, found 'out" in refuse(*arguments, source=cells_file)


def test_an_output_that_is_a_folder(refuse: Callable[..., str], cells_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").mkdir()
    assert "is a folder; pass a file name ending in .parquet" in refuse(*SOURCE_COMMANDS["encode"], source=cells_file)


@pytest.mark.parametrize("name", ["evaluate", "reconstruct", "train"])
def test_a_folder_of_other_things_is_left_alone(
    refuse: Callable[..., str], name: str, cells_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    line = refuse(*SOURCE_COMMANDS[name], source=cells_file)
    assert re.search("out (holds other things|is not empty and holds no run)", line)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_names_that_are_not_known(refuse: Callable[..., str], cells_file: Path, tmp_path: Path) -> None:
    encode = SOURCE_COMMANDS["encode"]
    assert "'rare' is not one of" in refuse(*encode, "--ties", "rare", source=cells_file).replace(";", ",")
    line = refuse(*SOURCE_COMMANDS["embed"], "--device", "abacus", source=cells_file)
    assert "device must be auto, cpu, cuda, cuda:N or mps, found 'abacus'" in line
    line = refuse(*SOURCE_COMMANDS["annotate"], "--method", "guess", source=cells_file)
    assert "'guess' is not one of 'auto', 'score', 'head', 'hybrid', 'generate'" in line
    line = refuse("decode", tmp_path / "x.txt", "--repeated", "last", "-o", "{out}.h5ad")
    assert "'last' is not one of 'mean', 'first'" in line


def test_tie_rates_that_are_not_there(
    refuse: Callable[..., str], command: Command, cells_file: Path, tmp_path: Path
) -> None:
    without = tmp_path / "order.parquet"
    command("encode", cells_file, "-o", without, "--ties", "order", "--json")
    encode = [*SOURCE_COMMANDS["encode"], "--ties", "rare_first", "--tie-rates"]
    assert "holds no tie rates; encode it with --ties rare_first" in refuse(*encode, without, source=cells_file)
    assert "nowhere.parquet does not exist" in refuse(*encode, tmp_path / "nowhere.parquet", source=cells_file)


@pytest.mark.parametrize("folder", ["nowhere", "wrong"])
def test_a_report_on_a_folder_of_something_else(refuse: Callable[..., str], folder: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    line = refuse("report", tmp_path / folder)
    assert re.search(
        f"{folder} (does not exist|holds no results.json); pass the folder that `cytoglot evaluate -o` wrote", line
    )


def test_text_without_a_language(refuse: Callable[..., str], tmp_path: Path) -> None:
    text = tmp_path / "cells.txt"
    assert "pass --model or --curves" in refuse("decode", text, "-o", "{out}.h5ad")
    assert "cells.txt does not exist" in refuse("decode", text, "--model", "{model}", "-o", "{out}.h5ad")
    text.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as UTF-16-LE; save it as UTF-8 text" in refuse(
        "decode", text, "--model", "{model}", "-o", "{out}.h5ad"
    )
    text.write_text("GENE1\n")
    assert "holds no rank_curves.json" in refuse("decode", text, "--curves", tmp_path, "-o", "{out}.h5ad")
    line = refuse("decode", text, "--curves", tmp_path, "--model", "{model}", "-o", "{out}.h5ad")
    assert "expected a model or a folder of curves, found both" in line


def test_a_parquet_file_of_something_else(refuse: Callable[..., str], cells: AnnData, tmp_path: Path) -> None:
    cells.obs.to_parquet(tmp_path / "other.parquet")
    line = refuse("decode", tmp_path / "other.parquet", "-o", "{out}.h5ad")
    assert "no cytoglot metadata; expected a file written by `cytoglot encode`" in line
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    assert "is not a readable Parquet file" in refuse("decode", tmp_path / "damaged.parquet", "-o", "{out}.h5ad")


def test_a_cell2sentence_folder_that_is_none(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder" in refuse("import-c2s", tmp_path / "folder", "-o", "{out}.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["encode"], "Missing argument"),
        (["encode", "x", "-o", "y.parquet", "--bogus"], "No such option: --bogus"),
        (["generate", "--model", "m", "-o", "o.h5ad", "-n", "0"], "Invalid value for '-n'"),
        (["train", "x", "-o", "m"], "pass --label, the column of obs with the cell types"),
        (["encode", "x", "-o", "y.parquet", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_a_command_line_that_is_not_one(refuse: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refuse(*arguments)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_matrix_without_cells(refuse: Callable[..., str], name: str, cells: AnnData, save: Any) -> None:
    empty = AnnData(X=sparse.csr_matrix((0, cells.n_vars)), obs=cells.obs.iloc[:0].copy(), var=cells.var.copy())
    line = refuse(*SOURCE_COMMANDS[name], source=save(empty))
    assert "0 cells" in line or "no cell" in line or "no label" in line


@pytest.mark.parametrize("n_genes", [0, 30])
def test_no_cells_are_counted_or_refused(command: Command, cells: AnnData, tmp_path: Path, n_genes: int) -> None:
    """Commands that need no model say zero of a file without cells, and refuse one without genes."""
    empty = AnnData(
        X=sparse.csr_matrix((0 if n_genes else cells.n_obs, n_genes), dtype=np.float32),
        obs=cells.obs.iloc[:0].copy() if n_genes else cells.obs.copy(),
        var=cells.var.iloc[:n_genes].copy(),
    )
    empty.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.parquet"
    for more in ([], ["--dry-run"], ["--ties", "rare_first", "--dry-run"]):
        run = command("encode", tmp_path / "in.h5ad", "-o", out, "--json", *more)
        if n_genes:
            assert run.result["cells"] == 0
        else:
            assert "expected gene names in var_names, found none among 0 columns" in run.refusal
    assert command("audit", tmp_path / "in.h5ad", "--json").result["n_cells"] == empty.n_obs


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            lambda name, i: name.capitalize() + "m" if i > 5 else name,
            "the query looks like mouse, the model like human",
        ),
        (lambda name, i: f"OTHER{i}" if i > 10 else name, "pass --min-overlap 0."),
    ],
)
def test_too_few_genes_of_the_model_say_why_and_what_to_do(
    command: Command, cells: AnnData, tiny_model_folder: Path, tmp_path: Path, names: Any, message: str
) -> None:
    changed = cells[:20].copy()
    changed.var_names = [names(name, i) for i, name in enumerate(changed.var_names)]
    changed.write_h5ad(tmp_path / "query.h5ad")
    arguments = ["annotate", tmp_path / "query.h5ad", "--model", tiny_model_folder, "-o", tmp_path / "o.h5ad"]
    assert message in command(*arguments).refusal
