"""Text metrics against values worked out by hand."""

from __future__ import annotations

import pytest

from cytoglot.metrics.text import exact_match, token_f1


@pytest.mark.parametrize(
    ("predicted", "true", "match", "f1"),
    [
        ("CD4 T cell.", "CD4 T cell", 1.0, 1.0),
        (" cd4  t CELL", "CD4 T cell.", 1.0, 1.0),
        ("T cell", "CD4 T cell", 0.0, 2 * 2 / 5),
        ("a a b", "a b b", 0.0, 2 * 2 / 6),
        ("cell T CD4", "CD4 T cell", 0.0, 1.0),
        ("", "", 1.0, 1.0),
        ("...", "", 1.0, 1.0),
        ("", "B", 0.0, 0.0),
        ("CD4+ T, HLA-DRA", "cd4+ T HLA-DRA", 1.0, 1.0),
        ("CD4", "CD4+", 0.0, 0.0),
    ],
)
def test_texts_are_compared_word_by_word(predicted: str, true: str, match: float, f1: float) -> None:
    assert exact_match(predicted, true) == match
    assert token_f1(predicted, true) == pytest.approx(f1)
    assert token_f1(true, predicted) == token_f1(predicted, true)
