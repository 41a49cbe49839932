"""Profiles of cells: fitted by type, saved, and what is not known backs off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, ResourceError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.plackett_luce import plackett_luce_draw, plackett_luce_nats
from cytoglot.sentence.profile import PROFILE_FILE, CellProfile, fit_profile

GENES = GeneVocabulary(symbols=tuple(f"G{i}" for i in range(12)))
WEIGHTS = {"A": np.arange(1.0, 13), "B": np.arange(12.0, 0, -1)}


def sentences_of(cells: list[np.ndarray]) -> CellSentences:
    return CellSentences(
        cell_ids=np.array([f"c{i}" for i in range(len(cells))], dtype=object),
        offsets=np.cumsum([0, *map(len, cells)]),
        gene_ids=np.concatenate(cells).astype(np.uint16),
        n_expressed=np.array([len(c) for c in cells]),
        vocabulary=GENES,
        settings=RankSettings(),
    )


@pytest.fixture(scope="module")
def fitted() -> CellProfile:
    rng = np.random.default_rng(0)
    labels = np.array(["A"] * 200 + ["B"] * 200 + [None] * 20, dtype=object)
    cells = [plackett_luce_draw(WEIGHTS[label or "A"], 6, rng) for label in labels]
    treated = np.array(["yes", "no"] * 210, dtype=object)
    return fit_profile(sentences_of(cells), {"cell_type": labels, "treated": treated}, fields=("cell_type", "treated"))


def test_each_type_has_its_weights_and_all_cells_have_theirs(fitted: CellProfile) -> None:
    assert fitted.conditions[0] == ()
    assert set(fitted.conditions) == {(), ("A",), ("B",), *((t, y) for t in "AB" for y in ("yes", "no"))}
    rng = np.random.default_rng(1)
    for name, true in WEIGHTS.items():
        others = [plackett_luce_draw(true, 6, rng) for _ in range(300)]
        nats = {
            row: np.mean([plackett_luce_nats(np.exp(fitted.log_weights_cg[row].astype(float)), ids) for ids in others])
            for row in range(3)
        }
        own = fitted.row({"cell_type": name})
        assert fitted.conditions[own] == (name,)
        assert min(nats, key=nats.get) == own
        truth = np.mean([plackett_luce_nats(true, ids) for ids in others])
        assert truth <= nats[own] + 0.02 < truth + 0.15


def test_what_is_not_known_backs_off(fitted: CellProfile) -> None:
    row = fitted.row
    assert fitted.conditions[row({"cell_type": "A", "treated": "no"})] == ("A", "no")
    assert fitted.conditions[row({"cell_type": "A", "treated": "perhaps"})] == ("A",)
    assert fitted.conditions[row({"cell_type": "C", "treated": "no"})] == ()
    assert fitted.conditions[row({"treated": "no"})] == (), "the first field decides"
    assert row({}) == 0
    assert fitted.weights({"cell_type": "A"}) is fitted.weights({"cell_type": "A", "tissue": "blood"})


def test_a_type_of_one_cell_stays_near_all_cells() -> None:
    rng = np.random.default_rng(2)
    cells = [plackett_luce_draw(WEIGHTS["A"], 6, rng) for _ in range(100)] + [np.array([0, 1, 2])]
    labels = np.array(["A"] * 100 + ["rare"], dtype=object)
    profile = fit_profile(sentences_of(cells), {"cell_type": labels})
    moved = profile.log_weights_cg[profile.row({"cell_type": "rare"})] - profile.log_weights_cg[0]
    assert np.abs(moved).max() < 1.5
    assert np.isfinite(profile.log_weights_cg).all()
    assert (moved[:3] > 0).all()


def test_it_is_saved_with_the_model_and_its_fingerprint_is_all_that_it_says(
    fitted: CellProfile, tmp_path: Path
) -> None:
    assert CellProfile.load(tmp_path, vocabulary_fingerprint=GENES.fingerprint) is None
    fitted.save(tmp_path)
    found = CellProfile.load(tmp_path, vocabulary_fingerprint=GENES.fingerprint)
    assert found is not None
    assert (found.fields, found.conditions) == (fitted.fields, fitted.conditions)
    assert found.log_weights_cg.tobytes() == fitted.log_weights_cg.tobytes()
    assert found.fingerprint == fitted.fingerprint
    changed = fitted.log_weights_cg.copy()
    changed[1, 3] += 0.1
    other = CellProfile(
        fields=fitted.fields,
        conditions=fitted.conditions,
        log_weights_cg=changed,
        vocabulary_fingerprint=GENES.fingerprint,
    )
    assert other.fingerprint != fitted.fingerprint


def test_a_profile_of_other_genes_and_a_damaged_one_are_refused(fitted: CellProfile, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    with pytest.raises(InputError, match=r"is of other genes than the model .*copy the model folder again"):
        CellProfile.load(tmp_path, vocabulary_fingerprint="0" * 16)
    content = (tmp_path / PROFILE_FILE).read_bytes()
    (tmp_path / PROFILE_FILE).write_bytes(content[:-7])
    with pytest.raises(ResourceError, match="is damaged"):
        CellProfile.load(tmp_path, vocabulary_fingerprint=GENES.fingerprint)
