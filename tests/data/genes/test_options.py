"""What a user says about gene names: the mapping file, and how the options travel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cytoglot.data.genes.options import AS_NAMED, GeneOptions, read_gene_mapping
from cytoglot.data.genes.vocabulary import resolve_genes
from cytoglot.errors import InputError


def _written(folder: Path, content: str | bytes) -> Path:
    path = folder / "mapping.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "ENSG1\tCD3D\nENSG2\tNKG7\n",
        "ENSG1,CD3D\nENSG2,NKG7",
        "ENSG1;CD3D\r\nENSG2;NKG7\r\n",
        '\ufeff"ENSG1","CD3D"\n\n"ENSG2"," NKG7 "\nENSG1,CD3D\n',
    ],
)
def test_tabs_commas_and_semicolons_are_read(tmp_path: Path, content: str) -> None:
    assert read_gene_mapping(_written(tmp_path, content)) == {"ENSG1": "CD3D", "ENSG2": "NKG7"}


def test_a_comma_belongs_to_the_name_where_tabs_separate(tmp_path: Path) -> None:
    assert read_gene_mapping(_written(tmp_path, "H1,2\tH1-2\n")) == {"H1,2": "H1-2"}


def test_a_header_changes_no_gene_and_an_empty_name_drops_one(tmp_path: Path) -> None:
    mapping = read_gene_mapping(_written(tmp_path, "gene_id\tsymbol\nold\tNEW\njunk\t\n"))
    genes = resolve_genes(pd.DataFrame(index=["old", "junk", "kept"]), mapping=mapping)
    assert genes.vocabulary.symbols == ("NEW", "kept")
    assert genes.column_gene.tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; write one pair per line"),
        ("\n \n", "is empty; write one pair per line"),
        ("CD3D\n", r"line 1: expected two columns .* found 1; write one pair per line"),
        ("a\tA\nb\tB\textra\n", r"line 2: expected two columns .* found 3"),
        ("a\tA\n\n\tB\n", "line 3: expected a name in the first column, found none"),
        ("a\tA\na\tB\n", "line 2: 'a' is mapped to 'A' and to 'B'; keep one of the lines"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "cannot be read as UTF-8; save it as UTF-8 text"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_gene_mapping(_written(tmp_path, content))


def test_a_mapping_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.tsv does not exist; pass a text file with two columns"):
        read_gene_mapping(tmp_path / "nowhere.tsv")


def test_the_record_tells_options_apart_and_not_the_order_of_the_mapping() -> None:
    one, other = {"a": "A", "b": "B"}, {"b": "B", "a": "A"}
    assert GeneOptions(mapping=one).to_dict() == GeneOptions(mapping=other).to_dict()
    assert GeneOptions(mapping=one).to_dict() != GeneOptions(mapping={"a": "B", "b": "A"}).to_dict()
    assert GeneOptions(duplicates="first").to_dict() != GeneOptions().to_dict()


def test_var_names_stand_as_they_are_even_where_symbols_could_be_found() -> None:
    var = pd.DataFrame({"feature_name": ["CD3D", "NKG7"]}, index=["ENSG00000167286", "ENSG00000105374"])
    assert resolve_genes(var).vocabulary.symbols == ("CD3D", "NKG7")
    assert resolve_genes(var, gene_column=AS_NAMED.column).vocabulary.symbols == tuple(var.index)
