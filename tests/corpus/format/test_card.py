"""The data set card: what is counted in it, for whom, and that it is the same for the same corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from cytoglot.corpus.format.card import corpus_card
from cytoglot.corpus.format.folder import Corpus, SourceInfo


def test_the_card_counts_what_the_corpus_holds(small_corpus: Corpus) -> None:
    description = small_corpus.description
    card = corpus_card(description, warnings=["whole donors do not fit the fractions"])
    assert card == corpus_card(description, warnings=["whole donors do not fit the fractions"])
    assert (
        f"240 cells of 1 source(s), each as its expressed genes from highest to lowest: {description.total('n_ids'):,}"
        in card
    )
    assert f"| train | {description.total('n_cells', 'train')} | {description.total('n_groups', 'train')} |" in card
    assert "| synthetic |  | human | CC0 |" in card
    assert "Cells by licence: CC0: 0." in card
    for value, n in description.counts["tissue"].items():
        assert f"| {value} | {n} |" in card
    assert "`donor_id`: 6 value(s), known of 100.0 % of the cells; 40 to 40 cells each" in card
    assert "- whole donors do not fit the fractions" in card
    assert description.fingerprint in card


def test_what_was_left_out_is_told(small_corpus: Corpus) -> None:
    source = SourceInfo(name="a|b", n_cells=9, n_kept=7, removed={"too few genes": 2}, messages=("read X: counts",))
    description = replace(small_corpus.description, sources=(source,), skipped={"lost": "is not there"})
    card = corpus_card(description)
    assert "| a\\|b |" in card
    assert "read X: counts. left out: 2 too few genes" in card
    assert "source 'lost' was left out: is not there" in card
    assert "Cells by licence: not stated: 7." in card


def test_the_head_names_the_files_of_every_part(small_corpus: Corpus, tmp_path: Path) -> None:
    head = yaml.safe_load(corpus_card(small_corpus.description).split("---\n")[1])
    (config,) = head["configs"]
    assert [entry["split"] for entry in config["data_files"]] == ["train", "validation", "test"]
    for entry in config["data_files"]:
        assert list(small_corpus.folder.glob(entry["path"]))


def test_a_column_of_many_values_is_cut(small_corpus: Corpus) -> None:
    many = {f"type {i}": 100 - i for i in range(40)}
    description = replace(small_corpus.description, counts={**small_corpus.description.counts, "cell_type": many})
    card = corpus_card(description)
    assert "| type 24 | 76 |" in card
    assert "| type 25 |" not in card
    assert f"and 15 more with {sum(100 - i for i in range(25, 40)):,} cells." in card
