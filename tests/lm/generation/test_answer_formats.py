"""Answer formats as users write them."""

from __future__ import annotations

import pytest

from cytoglot.answer_format import DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.generation.answer_formats import read_answer_format

GENES = ("ACTB", "B2M", "CD3D")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one_of: B cell | T cell, naive | NK/T", OneOf(options=("B cell", "T cell, naive", "NK/T"))),
        ("one_of: T cell #1 | state: 'on' | # | 50 %", OneOf(options=("T cell #1", "state: 'on'", "#", "50 %"))),
        ("one_of: 'A | B'", OneOf(options=("A", "B"))),
        ("free_text: {}", FreeText()),
        ("one_of: [B cell, 'T cell, naive']", OneOf(options=("B cell", "T cell, naive"))),
        ("distinct_words: 1..3", DistinctWords(words=GENES, min_words=1, max_words=3)),
        ("distinct_words: 2", DistinctWords(words=GENES, min_words=2, max_words=2)),
        ("number: 0..1", Number(low=0, high=1)),
        ("number: -1.5 .. 2e-3", Number(low=-1.5, high=0.002)),
        ("number: {low: 0, high: 10}", Number(low=0, high=10)),
        ("free_text", FreeText()),
        ("free_text: 64", FreeText(max_tokens=64)),
        ("free_text: {max_tokens: 7}", FreeText(max_tokens=7)),
    ],
)
def test_one_line(text, expected):
    assert read_answer_format(text, words=GENES) == expected


def test_files_lie_beside_the_yaml_file(tmp_path):
    (tmp_path / "panel.txt").write_text("GNLY\n\nLYZ \nNKG7\n", encoding="utf-8")
    (tmp_path / "labels.txt").write_text("B cell\nβ cell\n", encoding="utf-8")
    (tmp_path / "a.yaml").write_text("distinct_words:\n  words: panel.txt\n  min: 1\n  max: 2\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("one_of: labels.txt\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("distinct_words: 2..3 of panel.txt\n", encoding="utf-8")
    panel = ("GNLY", "LYZ", "NKG7")
    assert read_answer_format(str(tmp_path / "a.yaml")) == DistinctWords(words=panel, min_words=1, max_words=2)
    assert read_answer_format(str(tmp_path / "b.yaml")) == OneOf(options=("B cell", "β cell"))
    assert read_answer_format(str(tmp_path / "c.yaml")) == DistinctWords(words=panel, min_words=2, max_words=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oneof: A | B", "unknown answer format 'oneof'; did you mean 'one_of'"),
        ("A, B", "unknown answer format 'A, B'"),
        ("[1, 2]", "an answer format is one of one_of, distinct_words, number, free_text, found"),
        ("one_of: [A, A]", "options of one_of must be distinct, found ['A', 'A']"),
        ("one_of: absent.txt", "the file absent.txt does not exist"),
        ("distinct_words: 2..9", "impossible: need 1 <= min_words <= max_words <= number of words, found 2, 9, 3"),
        ("distinct_words: many", "distinct_words expects a range such as 5..10, found 'many'"),
        ("distinct_words: {words: [A], min: 1}", "lacks max"),
        ("distinct_words: {words: [A], min: 1, maximum: 1}", "unknown field of distinct_words 'maximum'"),
        ("number: 3", "number expects a range such as 0..1, found 3"),
        ("free_text: few", "max_tokens of free_text must be a whole number of at least 1, found 'few'"),
        ("absent.yaml", "the format file absent.yaml does not exist"),
        ("one_of: [A", "is not YAML"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("|", r"\|")):
        read_answer_format(text, words=GENES)


def test_words_must_come_from_somewhere():
    with pytest.raises(InputError, match="this model brings none"):
        read_answer_format("distinct_words: 5")
    assert issubclass(UnknownNameError, InputError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one_of: A | ", "must not be empty"),
        ("one_of: ['', A]", "must not be empty"),
        ("one_of: [yes, no]", "put them in quotes"),
        ("number: 0..1e400", "finite bounds"),
        ("number: {low: .nan, high: 3}", "finite bounds"),
        ("number: 2..1", "the lower one first"),
    ],
)
def test_what_no_model_could_answer_is_refused_before_one_is_loaded(text, message):
    with pytest.raises(InputError, match=message):
        read_answer_format(text)


def test_files_of_other_encodings(tmp_path):
    (tmp_path / "marked.txt").write_text("B cell\nT cell\n", encoding="utf-8-sig")
    assert read_answer_format(f"one_of: {tmp_path / 'marked.txt'}") == OneOf(options=("B cell", "T cell"))
    (tmp_path / "latin.txt").write_bytes(b"B cell\nT-Zelle \xe4\n")
    with pytest.raises(InputError, match=r"latin.txt cannot be read as UTF-8"):
        read_answer_format(f"one_of: {tmp_path / 'latin.txt'}")
