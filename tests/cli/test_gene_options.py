"""`--gene-column`, `--gene-mapping` and `--duplicates` mean the same for every command that reads cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.cli.main import run
from cytoglot.resume import Parts
from cytoglot.sentence import encode_file

Command = Callable[..., Any]
READING = {
    "audit": ["audit", "{source}"],
    "encode": ["encode", "{source}", "-o", "{out}.parquet"],
    "reconstruct": ["reconstruct", "{source}", "-o", "{out}"],
    "train": ["train", "{source}", "--label", "cell_type", "-o", "{out}"],
    "annotate": ["annotate", "{source}", "--model", "{model}", "-o", "{out}.h5ad"],
    "embed": ["embed", "{source}", "--model", "{model}", "-o", "{out}.h5ad"],
    "evaluate": ["evaluate", "{source}", "--model", "{model}", "-o", "{out}"],
}


@pytest.fixture
def coded(cells: AnnData, tmp_path: Path) -> Path:
    """The cells with codes for names, the real names in a column that no rule would find."""
    adata = cells.copy()
    adata.var["real"] = adata.var_names.astype(str)
    adata.var_names = [f"code{i:03d}" for i in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "coded.h5ad")
    return tmp_path / "coded.h5ad"


@pytest.fixture
def mapping(cells: AnnData, tmp_path: Path) -> Path:
    """From the codes of `coded` to the names of `cells`, with a header."""
    lines = ["code\tname", *(f"code{i:03d}\t{name}" for i, name in enumerate(cells.var_names))]
    (tmp_path / "names.tsv").write_text("\n".join(lines))
    return tmp_path / "names.tsv"


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """Three cells of genes A, B and A again."""
    counts = np.array([[1, 2, 5], [4, 3, 0], [0, 1, 0]], dtype=np.float32)
    adata = AnnData(X=sparse.csr_matrix(counts))
    adata.obs_names, adata.var["name"] = ["x", "y", "z"], ["A", "B", "A"]
    adata.var_names = ["one", "two", "three"]
    adata.write_h5ad(tmp_path / "doubled.h5ad")
    return tmp_path / "doubled.h5ad"


def _sentences(path: Path) -> dict[str, str]:
    return {row["cell_id"]: row["sentence"] for row in pq.read_table(path).to_pylist()}


def _filled(arguments: list[str], **values: str | Path) -> list[str]:
    return [argument.format(**values) for argument in arguments]


@pytest.mark.parametrize("name", READING)
def test_every_command_that_reads_cells_takes_the_options(command: Command, name: str) -> None:
    shown = command(name, "--help").out
    assert all(option in shown for option in ("--gene-column", "--gene-mapping", "--duplicates"))


@pytest.mark.parametrize("name", READING)
def test_a_mapping_that_cannot_be_read(
    command: Command, name: str, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.tsv").write_text("a\tA\nb\n")
    before = sorted(tmp_path.rglob("*"))
    call = _filled(READING[name], source=cells_file, model=tiny_model_folder, out=tmp_path / "out")
    line = command(*call, "--gene-mapping", tmp_path / "bad.tsv").refusal
    assert "bad.tsv, line 2: expected two columns" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", READING)
def test_a_policy_for_duplicates_that_is_not_known(
    command: Command, name: str, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    call = _filled(READING[name], source=cells_file, model=tiny_model_folder, out=tmp_path / "out")
    line = command(*call, "--duplicates", "mean").refusal
    assert "'mean' is not one of 'sum', 'first', 'error'" in line


@pytest.mark.parametrize("name", [name for name in READING if name != "audit"])
def test_a_column_that_is_not_there(
    command: Command, name: str, coded: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    call = _filled(READING[name], source=coded, model=tiny_model_folder, out=tmp_path / "out")
    line = command(*call, "--gene-column", "reel").refusal
    assert line == "unknown column of var 'reel'; did you mean 'real'?"
    assert sorted(tmp_path.iterdir()) == [coded]


# audit


def test_audit_looks_at_the_genes_that_are_asked_for(command: Command, coded: Path, mapping: Path) -> None:
    def genes(*options: str | Path) -> list[str]:
        findings = command("audit", coded, "--json", *options).result["findings"]
        return [f["message"] for f in findings if f["check"] == "gene names"]

    assert genes() == ["120 symbols from var_names"]
    assert genes("--gene-column", "real") == ["120 symbols from var['real']"]
    assert genes("--gene-mapping", mapping) == ["120 symbols from var_names"]


def test_audit_tells_of_options_that_do_not_fit_the_file(command: Command, doubled: Path) -> None:
    def errors(*options: str) -> list[dict[str, str]]:
        findings = command("audit", doubled, "--json", *options).result["findings"]
        return [f for f in findings if f["level"] == "error"]

    assert errors() == []
    (absent,) = errors("--gene-column", "nome")
    assert absent["message"] == "unknown column of var 'nome'"
    assert absent["fix"] == "did you mean 'name'?"
    (repeated,) = errors("--gene-column", "name", "--duplicates", "error")
    assert "found 1 repeated columns in var['name']: 'A'" in repeated["message"]
    assert repeated["fix"] == "pass duplicates='sum' or duplicates='first' (--duplicates)"


def test_audit_names_options_that_exist(command: Command, doubled: Path) -> None:
    help_text = command("audit", "--help").out + command("encode", "--help").out
    findings = command("audit", doubled, "--json", "--gene-column", "name").result["findings"]
    (fix,) = [f["fix"] for f in findings if f["check"] == "gene columns"]
    named = [word.strip("(),") for f in findings for word in f["fix"].split() if word.strip("(),").startswith("--")]
    assert "(--duplicates sum" in fix
    assert all(option in help_text + "--split-by" for option in named)


# encode


def test_duplicates_are_summed_or_the_first_is_kept(command: Command, doubled: Path, tmp_path: Path) -> None:
    def sentences(policy: str) -> dict[str, str]:
        out = tmp_path / f"{policy}.parquet"
        options = ["--gene-column", "name", "--duplicates", policy, "--text", "--ties", "order", "--json"]
        assert command("encode", doubled, "-o", out, *options).result["genes"] == 2
        return _sentences(out)

    assert sentences("sum") == {"x": "A B", "y": "A B", "z": "B"}  # A: 6, 4, 0
    assert sentences("first") == {"x": "B A", "y": "A B", "z": "B"}  # A: 1, 4, 0
    refused = command(
        "encode", doubled, "-o", tmp_path / "e.parquet", "--gene-column", "name", "--duplicates", "error"
    ).refusal
    assert "expected one column per gene, found 1 repeated columns in var['name']: 'A'" in refused


def test_a_mapping_names_the_genes_of_sentences(
    command: Command, coded: Path, mapping: Path, cells_file: Path, tmp_path: Path
) -> None:
    for options, source, name in [((), cells_file, "plain"), (("--gene-mapping", mapping), coded, "mapped")]:
        command(
            "encode", source, "-o", tmp_path / f"{name}.parquet", "--text", "--hvg", "60", *options, "--json"
        ).result
    assert _sentences(tmp_path / "mapped.parquet") == _sentences(tmp_path / "plain.parquet")


def test_a_data_set_by_name_takes_them_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("HES4,MY-GENE\n")
    out = tmp_path / "out.parquet"
    options = ["--gene-mapping", tmp_path / "one.csv", "--json"]
    command("encode", "pbmc68k_reduced", "-o", out, *options).result
    symbols = json.loads(pq.read_schema(out).metadata[b"cytoglot"])["vocabulary"]["symbols"]
    assert "MY-GENE" in symbols
    assert "HES4" not in symbols


@pytest.mark.parametrize(("policy", "resumes"), [("sum", True), ("first", False)])
def test_an_unfinished_encoding_is_resumed_under_the_same_options_alone(
    command: Command, doubled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, resumes: bool
) -> None:
    out, written, resumed = tmp_path / "out.parquet", [], []
    write, read = encode_file._write_row_group, Parts.read

    def call(policy: str) -> list[str]:
        options = ["--gene-column", "name", "--duplicates", policy, "--chunk-cells", "1", "--text", "--ties", "order"]
        return ["encode", str(doubled), "-o", str(out), *options]

    def killed(*arguments: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    def counted(parts: Parts, number: int) -> object:
        resumed.append(number)
        return read(parts, number)

    with monkeypatch.context() as patch:
        patch.setattr(encode_file, "_write_row_group", killed)
        assert run(call("sum")) == 130
    assert not out.exists()
    monkeypatch.setattr(Parts, "read", counted)
    if not resumes:
        assert 'duplicates "sum" (now "first")' in command(*call(policy)).refusal
    assert command(*call(policy), *([] if resumes else ["--overwrite"])).code == 0
    assert bool(resumed) == resumes
    assert _sentences(out)["x"] == {"sum": "A B", "first": "B A"}[policy]


# models


def test_a_model_reads_cells_by_another_name(
    command: Command, coded: Path, mapping: Path, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    assert "genes" in command(*_filled(READING["embed"], source=coded, model=tiny_model_folder, out="x")).refusal
    for name, source, options in [
        ("plain", cells_file, []),
        ("column", coded, ["--gene-column", "real"]),
        ("mapping", coded, ["--gene-mapping", str(mapping)]),
    ]:
        out = tmp_path / f"{name}.h5ad"
        command("annotate", source, "--model", tiny_model_folder, "-o", out, *options, "--json").result
        both = tmp_path / f"{name}_both.h5ad"
        command("embed", out, "--model", tiny_model_folder, "-o", both, *options, "--json").result
    plain, column, mapped = (anndata.read_h5ad(tmp_path / f"{n}_both.h5ad") for n in ("plain", "column", "mapping"))
    for other in (column, mapped):
        np.testing.assert_array_equal(other.obs["cytoglot_cell_type"], plain.obs["cytoglot_cell_type"])
        np.testing.assert_allclose(other.obsm["X_cytoglot"], plain.obsm["X_cytoglot"], rtol=1e-5, atol=1e-6)
    assert column.var_names[0] == "code000"  # the file is kept as it was


@pytest.mark.slow
def test_training_and_evaluation_by_another_column(
    command: Command, coded: Path, cells: AnnData, tiny_cli: list[str], tmp_path: Path
) -> None:
    """The model speaks of the names asked for, and its evaluation reads the same ones throughout."""
    model, out = tmp_path / "model", tmp_path / "evaluation"
    steps = ["--set", "optim.steps=4", "--set", "optim.evaluate_every=2"]
    named = ["--gene-column", "real"]
    training = ["train", str(coded), "--label", "cell_type", "-o", str(model), *tiny_cli, *steps, "--json"]
    command(*training, *named).result
    spec = CellModelSpec.load(model)
    assert set(spec.vocabulary.symbols) <= set(cells.var_names)
    assert spec.manifest["config"]["gene_column"] == "real"
    assert "finished model with other config" in command(*training).refusal
    quick = ["--set", "generation=false", "--set", "maps=false", "--set", "probe=false"]
    results = command("evaluate", coded, "--model", model, "-o", out, *named, *quick, "--json").result["results"]
    assert {"cytoglot", "control: shuffled labels"} <= {row["method"] for row in results}


def test_reconstruction_records_them(command: Command, coded: Path, tmp_path: Path) -> None:
    command("reconstruct", coded, "-o", tmp_path / "out", "--gene-column", "real", "--json").result
    config = json.loads((tmp_path / "out" / "curves.json").read_text())["manifest"]["config"]
    assert config["gene_column"] == "real"
