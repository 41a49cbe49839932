"""The page holds the numbers, loads nothing, and survives odd names, many values and empty corpora."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cytoglot.corpus.format.folder import Corpus, write_corpus
from cytoglot.corpus.inspect.statistics import ColumnNumbers, CorpusStatistics, SourceNumbers, corpus_statistics
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.report.corpus_page import write_corpus_page

ODD = "<b>T&B</b> $x"  # markup, an entity and an unfinished formula
HEADINGS = ["Sources", "Cell types", "Other metadata", "Lengths", "Tasks", "Genes"]


@pytest.fixture(scope="module")
def numbers(small_corpus: Corpus) -> CorpusStatistics:
    return corpus_statistics(small_corpus)


@pytest.fixture(scope="module")
def page(numbers: CorpusStatistics, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(numbers, tmp_path_factory.mktemp("page"))


def _page(numbers: CorpusStatistics, folder: Path) -> str:
    written = write_corpus_page(numbers, folder / "stats.html")
    assert written == folder / "stats.html"
    return written.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Every opening tag with its attributes; closing tags must match."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "img", "link"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"


def _tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(page)
    return parser.found


def _drawn(page: str) -> list[str]:
    """Return the texts of all figures: matplotlib draws glyphs and keeps each text in a comment."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", page, re.DOTALL)]


def test_every_figure_and_table_is_there(page: str, numbers: CorpusStatistics) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page) == HEADINGS
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Tissues", "Diseases", "Organisms", "Sexes"]
    assert sum(tag == "svg" for tag, _ in _tags(page)) == 8 + 4
    drawn = _drawn(page)
    assert {"synthetic", "cell type annotation", numbers.genes.frequent[0]["gene"], "1,024", "lung"} <= set(drawn)
    assert "several parts" not in drawn, "no donor is in two parts"
    assert f"<b>{numbers.n_cells}</b>" in page
    assert "CC0" in page
    assert "no licence" not in page
    assert "organism annotation: a single possible answer" in page


def test_the_page_loads_nothing(page: str) -> None:
    for tag, attributes in _tags(page):
        assert tag not in {"script", "link", "img", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), f"{tag} loads {attributes[name]}"
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_same_numbers_give_the_same_page(page: str, numbers: CorpusStatistics, tmp_path: Path) -> None:
    assert _page(numbers, tmp_path) == page


def test_odd_names_are_text(numbers: CorpusStatistics, tmp_path: Path) -> None:
    (source,) = numbers.sources
    columns = [replace(column, values=[(ODD, column.values[0][1])]) for column in numbers.columns]
    page = _page(
        replace(
            numbers,
            columns=columns,
            sources=[replace(source, name=ODD, title=ODD, study=ODD, licence=ODD, removed={ODD: 3})],
            warnings=[ODD],
            skipped={ODD: ODD},
        ),
        tmp_path,
    )
    assert "<b>T&B" not in page
    assert page.count("&lt;b&gt;T&amp;B&lt;/b&gt; $x") >= 8
    _tags(page)


def test_many_values_and_sources_are_cut_and_counted(numbers: CorpusStatistics, tmp_path: Path) -> None:
    many = ColumnNumbers(
        column="tissue",
        n_values=5_000,
        n_known=240,
        values=[(f"tissue {i} " + "of a long name " * 4, {"train": 1, "validation": 0, "test": 0}) for i in range(200)],
        n_others=40,
    )
    (source,) = numbers.sources
    sources: list[SourceNumbers] = [
        replace(source, name=f"file {i}", cells={"train": i, "validation": 0, "test": 1}) for i in range(50)
    ]
    page = _page(replace(numbers, columns=[many], sources=sources), tmp_path)
    assert "5,000 value(s); 100.0 % of the cells have one; 4,990 more value(s) have 230 cells together." in page
    drawn = _drawn(page)
    assert "file 49" in drawn
    assert "file 19" not in drawn
    assert "20 other sources" in drawn
    assert "210" in drawn  # 0 + 1 + … + 19 cells of train and 20 of test
    assert max(map(len, drawn)) <= 40
    assert "Cell types" not in page


def test_a_corpus_without_cells_has_a_page(tmp_path: Path) -> None:
    empty = write_corpus(tmp_path / "corpus", {}, vocabulary=GeneVocabulary(("A", "B")), sources=[])
    page = _page(corpus_statistics(empty), tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Sources", "Tasks"]
    assert "no cells in the part(s) train, validation, test" in page
    assert "nothing to ask" in _drawn(page)
