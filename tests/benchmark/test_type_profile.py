"""Type profiles: means by hand, draws that follow them, the top that no overlap beats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cytoglot.benchmark.type_profile import TypeProfile
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.metrics.generation import mean_overlap, pairwise_diversity
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings


def sentences(*ids: list[int], n_genes: int = 5) -> CellSentences:
    return CellSentences(
        cell_ids=np.array([f"c{i}" for i in range(len(ids))], dtype=object),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        gene_ids=np.concatenate([np.asarray(i, dtype=np.uint16) for i in ids]),
        n_expressed=np.array([len(i) for i in ids], dtype=np.int32),
        vocabulary=GeneVocabulary(symbols=tuple(f"G{i}" for i in range(n_genes))),
        settings=RankSettings(),
    )


def test_means_by_hand() -> None:
    profile = TypeProfile.fit(sentences([0, 1, 2], [1, 0], [4], []), ["a", "a", "b", None])
    assert profile.labels == ("a", "b")
    np.testing.assert_allclose(profile.mean_lg, [[0.75, 0.75, 1 / 6, 0, 0], [0, 0, 0, 0, 1]])
    np.testing.assert_allclose(profile.detected_lg, [[1, 1, 0.5, 0, 0], [0, 0, 0, 0, 1]])


def test_draws_are_distinct_genes_of_the_type_of_the_wanted_length() -> None:
    profile = TypeProfile.fit(sentences([0, 1, 2], [1, 0], [4]), ["a", "a", "b"])
    drawn = profile.draw("a", [2, 3, 99, 0], np.random.default_rng(0))
    assert [len(words) for words in drawn] == [2, 3, 3, 0]
    assert all(len(set(words)) == len(words) and set(words) <= {0, 1, 2} for words in drawn)
    again = profile.draw("a", [2, 3, 99, 0], np.random.default_rng(0))
    assert [list(w) for w in drawn] == [list(w) for w in again]


def test_the_first_gene_is_drawn_with_a_chance_proportional_to_that_power_of_its_mean() -> None:
    profile = TypeProfile.fit(sentences([0, 1, 2], [0, 2, 1]), ["a", "a"])
    profile = replace(profile, sharpness_l=np.array([1.4]))
    mean = profile.mean_lg[0] ** 1.4
    first = [words[0] for words in profile.draw("a", [1] * 4000, np.random.default_rng(1))]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 4000, mean / mean.sum(), atol=0.03)


def test_the_top_is_the_most_detected_written_by_mean() -> None:
    profile = TypeProfile.fit(sentences([3, 0, 1], [0, 1], [1, 0], [0, 2]), ["a"] * 4)
    # found in 4, 3, 1, 1 of 4 sentences; means of 1 / rank: G0 0.75, G1 (1/3 + 1/2 + 1)/4 = 0.458, G3 0.25, G2 0.125
    assert [list(words) for words in profile.top("a", [2, 3, 9])] == [[0, 1], [0, 1, 3], [0, 1, 3, 2]]


def test_the_top_beats_draws_and_real_cells_in_overlap_and_has_no_diversity() -> None:
    rng = np.random.default_rng(0)
    weight = np.exp(-np.arange(60) / 12)
    cells = [list(np.argsort(-np.log(weight) - rng.gumbel(size=60))[:15]) for _ in range(80)]
    real, held_out = cells[:40], cells[40:]
    profile = TypeProfile.fit(sentences(*real, n_genes=60), ["a"] * 40)
    top, drawn = profile.top("a", [15] * 40), profile.draw("a", [15] * 40, rng)
    assert mean_overlap(top, held_out) > mean_overlap(real, held_out) + 0.02
    assert pairwise_diversity(top) == pytest.approx(0)
    assert mean_overlap(drawn, held_out) == pytest.approx(mean_overlap(real, held_out), abs=0.06)
    assert pairwise_diversity(drawn) > 0.2


def test_draws_are_about_as_diverse_as_the_cells_they_were_fitted_to() -> None:
    rng = np.random.default_rng(2)
    share = rng.dirichlet(np.full(300, 0.3))
    cells = [list(np.argsort(-rng.multinomial(2000, share), kind="stable")[:40]) for _ in range(120)]
    profile = TypeProfile.fit(sentences(*cells[:60], n_genes=300), ["a"] * 60)
    assert 1 < profile.sharpness_l[0] <= 2
    real = pairwise_diversity(cells[60:])
    assert pairwise_diversity(profile.draw("a", [40] * 60, rng)) == pytest.approx(real, rel=0.25)
    plain = replace(profile, sharpness_l=np.ones(1))
    assert pairwise_diversity(plain.draw("a", [40] * 60, rng)) > 1.2 * real


def test_unknown_types_and_missing_labels_are_refused() -> None:
    profile = TypeProfile.fit(sentences([0]), ["B cell"])
    with pytest.raises(UnknownNameError, match=r"unknown cell type 'B cel'; did you mean 'B cell'"):
        profile.top("B cel", [1])
    with pytest.raises(InputError, match=r"one label per sentence, found \(2,\) labels for 1 sentences"):
        TypeProfile.fit(sentences([0]), ["a", "b"])
    with pytest.raises(InputError, match=r"needs labelled training cells, found none"):
        TypeProfile.fit(sentences([0]), [None])
