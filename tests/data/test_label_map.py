"""Label maps: tables and YAML say the same, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytoglot.data.label_map import read_label_map
from cytoglot.errors import InputError

MAP = {"CD4+ T, naive": "T", "1": "B", "doublet": "", "yes": "NK"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", '"CD4+ T, naive",T\n1,B\ndoublet,\nyes,NK\n'),
        ("m.tsv", "CD4+ T, naive\tT\n1\tB\n\ndoublet\t\nyes\tNK\n"),
        ("m.yaml", "'CD4+ T, naive': T\n1: B\ndoublet:\nyes: NK\n"),
        ("m.yml", "{'CD4+ T, naive': T, 1.0: B, doublet: '', yes: NK}"),
    ],
)
def test_tables_and_yaml_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_label_map(tmp_path / name) == MAP


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "a,b,c\n", r"label map .*m.csv, line 1: expected two columns .*, found 3"),
        ("m.csv", "a,T\na,B\n", r"line 2: 'a' is mapped to 'T' and to 'B'"),
        ("m.csv", "", r"label map .*m.csv is empty"),
        ("m.yaml", "", r"one label of the model, found nothing"),
        ("m.yaml", "- a\n", r"must hold a mapping, found list"),
        ("m.yaml", "a: [T, B]\n", r"one label of the model, found list for 'a'"),
    ],
)
def test_what_is_no_label_map_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_label_map(tmp_path / name)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    for name in ("none.csv", "none.yaml"):
        with pytest.raises(InputError, match=f"label map .*{name} does not exist"):
            read_label_map(tmp_path / name)
