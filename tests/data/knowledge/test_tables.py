"""Tables of knowledge: small ones written here, and the real ones where they are."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from cytoglot.data.knowledge.tables import read_cell_types, read_gmt, read_markers, readable_set_name
from cytoglot.errors import InputError


def test_gene_sets_are_read_plain_and_packed(tmp_path: Path) -> None:
    text = "SET_A\thttp://a\tCD3D\tCD3E\tCD3D\t\r\n\nSET_B\t\tMS4A1\n"
    (tmp_path / "sets.gmt").write_text(text)
    with gzip.open(tmp_path / "sets.gmt.gz", "wt") as handle:
        handle.write(text)
    for name in ("sets.gmt", "sets.gmt.gz"):
        first, second = read_gmt(tmp_path / name)
        assert (first.name, first.description, first.genes) == ("SET_A", "http://a", ("CD3D", "CD3E"))
        assert (second.name, second.description, second.genes) == ("SET_B", "", ("MS4A1",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tx\tG1\nB\tx\n", r"sets.gmt, line 2: expected name, description and genes between tabs, found 'B"),
        ("A\tx\tG1\nA\tx\tG2\n", r"sets.gmt, line 2: gene set 'A' is there twice"),
        ("\n", r"sets.gmt holds no gene set"),
    ],
)
def test_a_bad_line_of_gene_sets_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sets.gmt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_gmt(tmp_path / "sets.gmt")


def test_missing_and_damaged_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.gmt does not exist"):
        read_gmt(tmp_path / "none.gmt")
    (tmp_path / "cut.gmt.gz").write_bytes(gzip.compress(b"A\tx\tG1\n")[:-9])
    with pytest.raises(InputError, match=r"cut.gmt.gz is damaged gzip"):
        read_gmt(tmp_path / "cut.gmt.gz")
    (tmp_path / "terms.tsv").write_text("id\tlabel\nCL:1\tcell\n")
    with pytest.raises(InputError, match="definition, synonyms; definition, synonyms not found, but id, label"):
        read_cell_types(tmp_path / "terms.tsv")


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("HALLMARK_INTERFERON_GAMMA_RESPONSE", "interferon gamma response"),
        ("HALLMARK_TNFA_SIGNALING_VIA_NFKB", "TNFA signaling via NFKB"),
        ("HALLMARK_IL6_JAK_STAT3_SIGNALING", "IL6 JAK STAT3 signaling"),
        ("HALLMARK_UV_RESPONSE_DN", "UV response down"),
        ("REACTOME_DNA_REPAIR", "DNA repair"),
        ("'de novo' posttranslational protein folding (GO:0051084)", "'de novo' posttranslational protein folding"),
        ("My own Set", "My own Set"),
        ("cluster_7", "cluster 7"),
    ],
)
def test_the_name_of_a_gene_set_becomes_readable(name: str, readable: str) -> None:
    assert readable_set_name(name) == readable


def test_markers_are_sorted_by_support_and_negative_ones_left_out(tmp_path: Path) -> None:
    rows = [
        "species\tCL_ID\tmarker\tmarker_type\tECs_global\tSPs_global",
        "Human\tCL:1\tB\tpositive\t3\t0.1",
        "Human\tCL:1\tA\tpositive\t9\t0.1",
        "Human\tCL:1\tC\tpositive\t3\t0.8",
        "Human\tCL:1\tA\tpositive\t1\t0.1",
        "Human\tCL:1\tD\tnegative\t9\t0.9",
        "Mouse\tCL:1\tAa\tpositive\t9\t0.9",
    ]
    (tmp_path / "markers.tsv").write_text("\n".join(rows) + "\n")
    assert read_markers(tmp_path / "markers.tsv") == {"CL:1": ("A", "C", "B")}
    assert read_markers(tmp_path / "markers.tsv", species="mouse") == {"CL:1": ("Aa",)}
    with pytest.raises(InputError, match=r"has no markers of 'rat'; it knows Human, Mouse"):
        read_markers(tmp_path / "markers.tsv", species="rat")


@pytest.mark.data
def test_the_real_tables_are_read(data_path: Callable[[str], Path]) -> None:
    assert len(read_gmt(data_path("knowledge/msigdb_hallmark_v7.0.symbols.gmt.gz"))) == 50
    assert len(read_gmt(data_path("knowledge/msigdb_reactome_v6.2.symbols.gmt.gz"))) == 674
    terms = {entry.term_id: entry for entry in read_cell_types(data_path("knowledge/cell_ontology_cl_terms.tsv.gz"))}
    assert len(terms) == 3324
    assert terms["CL:0000540"].synonyms == ("nerve cell",)
    assert "MS4A1" in read_markers(data_path("knowledge/cellmarker_accordion_markers.tsv.gz"))["CL:0000236"][:3]
