"""Gene names of many files under one set: what is repaired, what is left, what is refused."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.data.genes.harmonize import (
    BUILT_IN,
    HgncTable,
    check_namespace,
    check_overlap,
    harmonize,
    namespace_of,
    read_gene_list,
    read_hgnc,
    read_orthologs,
)
from cytoglot.errors import InputError

HGNC = """\
symbol\tprev_symbol\talias_symbol\tensembl_gene_id\tname
RACK1\tGNB2L1\tGnb2-rs1|H12.3\tENSG00000204628\ta
CXCL8\tIL8\tSCYB8|NAP-1\tENSG00000169429\tb
NAP1L1\t\tNRP|NAP-1\tENSG00000187109\tc
HLA-A\t\t\tENSG00000206503\td
NKX6-1\tNKX6A\t\tENSG00000163623\te
NKX6-2\t\tNKX6.1\tENSG00000148826\tf
DELEC1\tDEC1\t\tENSG00000173077\tg
BHLHE40\t\tDEC1|STRA13\tENSG00000134107\th
CENPX\t\tSTRA13\tENSG00000169689\ti
MT1\tOLD\t\t\tj
MT2\tOLD\t\t\tk
IL6\t\tBSF2|HSF\tENSG00000136244\tl
"""


@pytest.fixture
def hgnc(tmp_path: Path) -> HgncTable:
    path = tmp_path / "hgnc.tsv.gz"
    path.write_bytes(gzip.compress(HGNC.encode()))
    return read_hgnc(path)


@pytest.mark.parametrize(
    ("names", "symbols"),
    [
        (["RACK1", "CXCL8"], ["RACK1", "CXCL8"]),
        (["GNB2L1", "IL8"], ["RACK1", "CXCL8"]),
        (["GNB2L1", "RACK1"], ["RACK1", "RACK1"]),  # one gene by HGNC: summed
        (["BSF2"], ["IL6"]),
        (["BSF2", "IL6"], ["BSF2", "IL6"]),  # an alias is no proof
        (["BSF2", "ENSG00000136244"], ["BSF2", "IL6"]),  # the symbol comes by another way
        (["BSF2", "HSF"], ["BSF2", "HSF"]),  # two aliases claim it
        (["BSF2", "BSF2"], ["IL6", "IL6"]),  # the same alias twice is one claim
        (["OLD"], ["OLD"]),  # was the symbol of two genes
        (["STRA13", "NAP-1"], ["STRA13", "NAP-1"]),  # aliases of two genes
        (["DEC1"], ["DELEC1"]),  # a former symbol is stronger than an alias
        (["HLA.A", "NKX6.1"], ["HLA-A", "NKX6-1"]),  # dots of R before aliases
        (["ENSG00000206503.15", "ENSG00000206503_PAR_Y", "ENSG00000999999.1"], ["HLA-A", "HLA-A", "ENSG00000999999"]),
        (["il8", "Rack1"], ["il8", "Rack1"]),  # names are compared exactly
        ([], []),
    ],
)
def test_human_names_become_approved_symbols(hgnc: HgncTable, names: list[str], symbols: list[str]) -> None:
    assert list(harmonize(names, hgnc=hgnc).symbols) == symbols


def test_the_report_counts_every_kind_and_gives_examples(hgnc: HgncTable) -> None:
    names = ["RACK1", "GNB2L1", "IL8", "BSF2", "HLA.A", "ENSG00000163623", "ENSG00000999999", "STRA13", "XYZ"]
    report = harmonize([*names, "NRP", "NAP1L1"], hgnc=hgnc).report
    assert (report.n_columns, report.n_approved) == (11, 2)
    assert (report.previous.n, report.previous.examples) == (2, ("GNB2L1 → RACK1", "IL8 → CXCL8"))
    assert report.merged.examples == ("GNB2L1 → RACK1",)
    assert report.aliases.examples == ("BSF2 → IL6",)
    assert report.kept_aliases.examples == ("NRP → NAP1L1",)
    assert report.dotted.examples == ("HLA.A → HLA-A",)
    assert report.ensembl.examples == ("ENSG00000163623 → NKX6-1",)
    assert report.kept_ensembl.examples == ("ENSG00000999999",)
    assert report.unknown.examples == ("STRA13", "XYZ")
    assert "2 previous symbol(s) replaced by the approved (GNB2L1 → RACK1, IL8 → CXCL8)" in report.messages()
    assert harmonize(["RACK1"], hgnc=hgnc).report.messages() == []


NAMES = ["GNB2L1", "RACK1", "IL8", "CXCL8", "BSF2", "IL6", "HLA.A", "DEC1", "XYZ", "SEPT2"]


@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_harmonized_names_stay_as_they_are(names: list[str]) -> None:
    table = HgncTable(
        approved=frozenset({"RACK1", "CXCL8", "IL6", "HLA-A", "DELEC1"}),
        previous={"GNB2L1": "RACK1", "IL8": "CXCL8", "DEC1": "DELEC1"},
        aliases={"BSF2": "IL6"},
        ensembl={},
    )
    for known in (table, BUILT_IN):
        once = harmonize(names, hgnc=known).symbols
        assert len(once) == len(names)
        assert harmonize([str(s) for s in once], hgnc=known).symbols == once


def test_the_order_of_the_columns_does_not_matter(hgnc: HgncTable) -> None:
    names = ["GNB2L1", "BSF2", "HSF", "IL8", "CXCL8", "STRA13", "NRP"]
    forward = dict(zip(names, harmonize(names, hgnc=hgnc).symbols, strict=True))
    backward = dict(zip(names[::-1], harmonize(names[::-1], hgnc=hgnc).symbols, strict=True))
    assert forward == backward


def test_without_a_table_common_renamings_are_known() -> None:
    found = harmonize(["SEPT2", "GNB2L1", "NOT-A-GENE"])
    assert found.symbols == ("SEPTIN2", "RACK1", "NOT-A-GENE")
    assert found.report.unknown.n == 0  # the short list cannot tell


def test_mouse_names_stay_or_become_human(hgnc: HgncTable, tmp_path: Path) -> None:
    names = ["Rack1", "Il6", "Cxcl1", "ENSMUSG00000025746.5"]
    assert harmonize(names, organism="mouse", hgnc=hgnc).symbols == (*names[:3], "ENSMUSG00000025746")
    table = tmp_path / "orthologs.tsv"
    table.write_text(
        "human_symbol\tmouse_symbol\nGNB2L1\tRack1\nIL6\tIl6\nIL6\tIl6\nCXCL1\tCxcl1\nCXCL2\tCxcl1\nA\tBb\nA\tCc\n"
    )
    orthologs = read_orthologs(table)
    assert orthologs == {"Rack1": "GNB2L1", "Il6": "IL6"}  # pairs that are one to one
    found = harmonize(names, organism="mouse", hgnc=hgnc, orthologs=orthologs)
    assert found.symbols == ("RACK1", "IL6", None, None)
    assert (found.report.orthologs.n, found.report.dropped.n) == (2, 2)


def test_names_of_other_organisms_stay(hgnc: HgncTable) -> None:
    assert harmonize(["GNB2L1"], organism="macaque", hgnc=hgnc).symbols == ("GNB2L1",)


def numbered(form: str) -> list[str]:
    return [form.format(i) for i in range(20)]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (numbered("ENSG{:011d}"), "Ensembl ids of human"),
        (numbered("ENSMUSG{:011d}.3"), "Ensembl ids of mouse"),
        (numbered("ENSDARG{:011d}"), r"Ensembl ids of another species \(ENSDARG…\)"),
        (numbered("{}"), "Entrez numbers"),
        (numbered("1{:03d}_s_at"), "probe ids of a microarray"),
        (numbered("ILMN_{:07d}"), "probe ids of a microarray"),
        (numbered("NM_{:06d}.2"), "RefSeq ids"),
        (numbered("{}-Sep"), "dates and numbers"),
        (numbered("Actb{}"), "mouse symbols.*organism: mouse"),
    ],
)
def test_a_foreign_namespace_is_named(names: list[str], kind: str) -> None:
    with pytest.raises(InputError, match=f"found 0.0%.*look like {kind}"):
        check_overlap(names, ["CD3E", "CD8A"], min_overlap=0.5)
    with pytest.raises(InputError, match=f"symbols of human genes.*look like {kind}"):
        check_namespace(names, organism="human")


def test_overlap_is_of_the_smaller_side() -> None:
    assert check_overlap(["A", "B"], [*"ABCDEFGH"], min_overlap=1.0) == 1.0  # a panel
    assert check_overlap([*"ABCDEFGH"], ["A", "B"], min_overlap=1.0) == 1.0  # a short vocabulary
    assert check_overlap(["A", "X", "Y", "Z"], [*"ABCD"], min_overlap=0.25) == 0.25
    assert check_overlap(["A"], [], min_overlap=1.0) == 1.0
    with pytest.raises(InputError, match=r"at least 50% of the genes in the vocabulary of 4, found 25\.0%"):
        check_overlap(["A", "X", "Y", "Z"], [*"ABCD"], min_overlap=0.5)


def test_names_that_tell_nothing_are_let_pass() -> None:
    names = [f"gene_{i}" for i in range(5)]
    assert namespace_of(names) is None
    check_namespace(names, organism="human")
    check_namespace(["Cd3e", "Cd8a"], organism="macaque")
    check_namespace([], organism="human")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol\tname\nA\tx\n", "must have the columns symbol, prev_symbol; prev_symbol not found, but symbol, name"),
        ("", "must have the columns symbol, prev_symbol; symbol, prev_symbol not found"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hgnc.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_hgnc(path)


def test_a_table_that_is_not_there_or_is_no_gzip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; pass HGNC"):
        read_hgnc(tmp_path / "none.tsv")
    (tmp_path / "x.tsv.gz").write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(InputError, match=r"x\.tsv\.gz is damaged gzip"):
        read_hgnc(tmp_path / "x.tsv.gz")
    (tmp_path / "o.tsv").write_text("human_symbol\tmouse_symbol\nA\tBb\nA\tCc\n")
    with pytest.raises(InputError, match="no pair that is one to one"):
        read_orthologs(tmp_path / "o.tsv")


def test_a_changed_table_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "hgnc.tsv"
    path.write_text("symbol\tprev_symbol\nA\tB\n")
    assert dict(read_hgnc(path).previous) == {"B": "A"}
    path.write_text("symbol\tprev_symbol\nA\tB|CC\n")
    assert dict(read_hgnc(path).previous) == {"B": "A", "CC": "A"}


def test_a_list_of_genes(tmp_path: Path) -> None:
    path = tmp_path / "genes.txt"
    path.write_text("# mine\nCD3E\tx\n\nCD8A\n")
    assert read_gene_list(path) == ("CD3E", "CD8A")
    (tmp_path / "vocabulary.json").write_text('{"symbols": ["B", "A"]}')
    assert read_gene_list(tmp_path / "vocabulary.json") == ("B", "A")
    path.write_text("CD3E\nCD3E\n")
    with pytest.raises(InputError, match="each gene once, found 'CD3E' twice"):
        read_gene_list(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="found nothing"):
        read_gene_list(path)
    (tmp_path / "broken.json").write_text("[1]")
    with pytest.raises(InputError, match=r"broken\.json cannot be read"):
        read_gene_list(tmp_path / "broken.json")
    with pytest.raises(InputError, match="does not exist"):
        read_gene_list(tmp_path / "none.txt")


def columns_of(path: Path) -> list[str]:
    with h5py.File(path) as handle:
        return [name.decode() for name in handle["var"]["_index"][:]]


@pytest.mark.data
def test_real_names_of_2010_become_those_of_today(data_path: Callable[[str], Path]) -> None:
    hgnc = read_hgnc(data_path("knowledge/hgnc_symbols_aliases.tsv.gz"))
    kang = columns_of(data_path("kang_ifnb_pbmc_832_fullgenes.h5ad"))
    found = harmonize(kang, hgnc=hgnc)
    today = dict(zip(kang, found.symbols, strict=True))
    assert {name: today[name] for name in ("GNB2L1", "SEPT7", "IL8", "CD3E", "SEP15")} == {
        "GNB2L1": "RACK1",
        "SEPT7": "SEPTIN7",
        "IL8": "CXCL8",
        "CD3E": "CD3E",
        "SEP15": "SELENOF",
    }
    assert found.report.previous.n > 900
    approved = sum(symbol in hgnc.approved for symbol in found.symbols)
    assert (
        approved == found.report.n_approved + found.report.previous.n + found.report.aliases.n + found.report.dotted.n
    )
    cellbench = columns_of(data_path("cellbench_mixology_5batches.h5ad"))
    assert harmonize(cellbench, hgnc=hgnc).report.n_approved == len(cellbench)  # was brought to HGNC already


@pytest.mark.data
def test_real_mouse_names_find_their_orthologs(data_path: Callable[[str], Path]) -> None:
    names = columns_of(data_path("paul15_myeloid_2730.h5ad"))
    orthologs = read_orthologs(data_path("knowledge/human_mouse_orthologs_mgi.tsv.gz"))
    found = harmonize(names, organism="mouse", orthologs=orthologs)
    assert dict(zip(names, found.symbols, strict=True))["Gata1"] == "GATA1"
    assert 0.75 < found.report.orthologs.n / len(names) < 0.9
    with pytest.raises(InputError, match="look like mouse symbols"):
        check_namespace(names, organism="human")
