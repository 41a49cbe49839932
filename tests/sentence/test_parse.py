from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.sentence.parse import parse_genes, parse_many

GENES = GeneVocabulary(symbols=("A", "B", "C", "D", "E", "HLA-A", "AL627309.1", "C1orf112", "Actb", "ACTB", "(Clone)"))
ANY_TEXT = st.text(st.characters(), max_size=200)  # lone surrogates and control characters included


def words(text: str, repeated: str = "mean") -> list[str]:
    parsed = parse_genes(text, GENES, repeated=repeated)  # type: ignore[arg-type]
    return [GENES.symbols[gene] for gene in parsed.gene_ids]


def test_a_clean_sentence_keeps_its_order_and_has_no_fault():
    parsed = parse_genes("C A HLA-A AL627309.1", GENES)
    assert parsed.gene_ids.tolist() == [2, 0, 5, 6]
    assert parsed.gene_ids.dtype == np.int32
    report = parsed.report
    assert (report.n_words, report.unknown, report.n_duplicates, report.n_case_fixed) == (4, (), 0, 0)
    assert report.first_fault is None
    assert report.valid_share == 1.0


def test_the_full_stop_that_ends_an_answer_does_not_cost_the_last_gene():
    # The peer gives [A, B, C, D, NOT_A_GENE] for this text.
    assert words("A B C D E.") == ["A", "B", "C", "D", "E"]
    assert parse_genes("A B C D E.", GENES).report.n_unknown == 0
    assert words("A AL627309.1.") == ["A", "AL627309.1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # positions of A are 0, 1, 2, mean 1; B is at 3. The peer gives B A.
        ("A A A B", ["A", "B"]),
        # A: (0 + 2) / 2 = 1 equals B: 1; A was written first
        ("A B A", ["A", "B"]),
        # B: (0 + 4) / 2 = 2 equals A: (1 + 2 + 3) / 3 = 2; B was written first; C: 5
        ("B A A A B C", ["B", "A", "C"]),
        # B: 1; C: 2; A: (0 + 3 + 4) / 3 = 7/3
        ("A B C A A", ["B", "C", "A"]),
        # A: (0 + 3) / 2 = 1.5 falls between B: 1 and C: 2
        ("A B C A", ["B", "A", "C"]),
        # the unknown words hold no positions: A 0, 2 -> 1; B 1 -> 1; A was written first
        ("A x y z B A", ["A", "B"]),
    ],
)
def test_a_repeated_gene_stands_at_the_mean_of_its_positions(text, expected):
    assert words(text) == expected


def test_repeated_genes_by_first_occurrence():
    assert words("A B C A A", repeated="first") == ["A", "B", "C"]
    assert words("C B A B C", repeated="first") == ["C", "B", "A"]


def test_an_unknown_word_consumes_no_rank_and_is_reported():
    # With the peer, B would be at rank 3.
    parsed = parse_genes("A NOPE B", GENES)
    assert parsed.gene_ids.tolist() == [0, 1]
    assert parsed.report.unknown == ("NOPE",)
    assert parsed.report.first_fault == 1
    assert parsed.report.valid_share == pytest.approx(2 / 3)


def test_words_of_a_prompt_are_unknown_words():
    report = parse_genes("Cell sentence: A B", GENES).report
    assert report.unknown == ("Cell", "sentence:")
    assert report.first_fault == 0
    assert words("Cell sentence: A B") == ["A", "B"]


def test_the_first_fault_is_the_first_unknown_or_repeated_word():
    assert parse_genes("A B A nope", GENES).report.first_fault == 2
    assert parse_genes("A B nope A", GENES).report.first_fault == 2
    assert parse_genes("a B", GENES).report.first_fault is None  # a mended case loses nothing


def test_duplicates_are_counted_beyond_the_first():
    report = parse_genes("A A B A B", GENES).report
    assert report.n_duplicates == 3
    assert report.valid_share == 1.0


def test_a_wrong_case_is_mended_where_one_gene_alone_can_be_meant():
    assert words("hla-a C1ORF112 b") == ["HLA-A", "C1orf112", "B"]
    assert parse_genes("hla-a C1ORF112 b", GENES).report.n_case_fixed == 3
    assert words("Actb ACTB") == ["Actb", "ACTB"]  # exact first
    report = parse_genes("aCtB", GENES).report  # Actb or ACTB?
    assert report.unknown == ("aCtB",)
    assert report.n_case_fixed == 0


@pytest.mark.parametrize(
    "text",
    [
        "A B C",
        "A\nB\n\nC\n",
        "A,  B, C.",
        "A,B,C",
        "A;B;C",
        "**A** B `C`",
        "- A\n- B\n* C",
        "\"A\" 'B' “C”",
        "[A, B, C]",
        "A B C</s>",
        "A B C<|endoftext|>",
        "<s> A B C </s>",
        "\ufeffA\u200b B\u00a0C…",
        "A\u3001B\u3001C。",
    ],
)
def test_punctuation_newlines_and_markup_cost_no_gene_and_are_no_words(text):
    parsed = parse_genes(text, GENES)
    assert [GENES.symbols[g] for g in parsed.gene_ids] == ["A", "B", "C"]
    assert parsed.report.n_words == 3
    assert parsed.report.unknown == ()


def test_a_symbol_that_has_punctuation_itself_is_found():
    assert words("(Clone) Clone.") == ["(Clone)"]
    assert words("clone") == ["(Clone)"]


def test_an_empty_text_gives_no_genes():
    for text in ("", "  \n", "...", "- * ,"):
        parsed = parse_genes(text, GENES)
        assert parsed.gene_ids.size == 0
        assert parsed.report.n_words == 0
        assert parsed.report.first_fault is None
        assert math.isnan(parsed.report.valid_share)


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_no_text_raises_and_genes_are_distinct_and_known(text):
    for repeated in ("mean", "first"):
        parsed = parse_genes(text, GENES, repeated=repeated)
        ids = parsed.gene_ids.tolist()
        assert len(set(ids)) == len(ids)
        assert all(0 <= gene < len(GENES) for gene in ids)
        report = parsed.report
        assert report.n_words == len(report.unknown) + len(ids) + report.n_duplicates
        assert (report.first_fault is None) == (not report.unknown and not report.n_duplicates)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*GENES.symbols, "nope", "a.", "B,C", "</s>", "hla-a"]), max_size=40), st.data())
def test_noise_between_genes_changes_no_order(tokens, data):
    plain = parse_genes(" ".join(tokens), GENES)
    gaps = data.draw(st.lists(st.sampled_from([" ", "\n", " nope ", " ??? ", "\t"]), min_size=len(tokens)))
    noisy = parse_genes("".join(token + gap for token, gap in zip(tokens, gaps, strict=False)), GENES)
    assert noisy.gene_ids.tolist() == plain.gene_ids.tolist()


@settings(max_examples=100, deadline=None)
@given(st.permutations(GENES.symbols))
def test_a_sentence_of_distinct_genes_is_read_back_whatever_its_order(order):
    assert words(" ".join(order)) == list(order)
    assert words(" ".join(order) + ".") == list(order)


def test_one_str_in_place_of_several_is_refused():
    with pytest.raises(InputError, match=r"expected several texts, found one str; pass \[text\]"):
        parse_many("A B", GENES)


def test_the_work_grows_with_the_words_and_not_with_the_vocabulary():
    # The peer looks every word up in a list: 17 ms for 200 words and 30,000 genes, a hundred times that of 300 genes.
    def seconds_of_200_words(n_genes):
        genes = GeneVocabulary(symbols=tuple(f"G{i}" for i in range(n_genes)))
        text = " ".join(f"G{i}" for i in range(n_genes - 1, n_genes - 201, -1)) + "."
        parse_genes(text, genes)
        seconds = []
        for _ in range(50):
            start = time.process_time()
            parse_genes(text, genes)
            seconds.append(time.process_time() - start)
        return min(seconds)

    assert seconds_of_200_words(30_000) < 30 * seconds_of_200_words(300)  # equal but for the processor's caches
