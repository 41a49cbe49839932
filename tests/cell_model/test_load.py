"""A model of cells: what it reads of a query, and what it makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.cell_model.load import CellModel, VocabularyOverlap, load_checkpoint
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.lm.scoring.score import score_answers_naive
from cytoglot.sentence.cell_sentence import RankSettings


def test_the_shares_of_an_overlap_by_hand() -> None:
    overlap = VocabularyOverlap(n_model=4, n_query=10, n_shared=3)
    assert overlap.share_of_model == 0.75
    assert overlap.share_out_of_vocabulary == pytest.approx(0.7)
    assert str(overlap) == (
        "3 of the model's 4 genes are in the query (75%); the model does not use the other 7 of the query's 10 genes"
    )
    assert VocabularyOverlap(n_model=0, n_query=0, n_shared=0).share_of_model == 0.0


def test_a_query_is_ranked_over_the_models_genes_in_any_order_of_columns(tiny_model: CellModel, cells: AnnData) -> None:
    straight, _ = tiny_model.sentences(cells[:20])
    reversed_columns, overlap = tiny_model.sentences(cells[:20, ::-1].copy())
    assert list(straight) == list(reversed_columns)
    assert straight.vocabulary == tiny_model.spec.vocabulary
    assert overlap.share_of_model == 1.0


def test_counts_and_log_values_give_the_same_sentences(tiny_model: CellModel, cells: AnnData) -> None:
    logged = cells[:20].copy()
    logged.X = sparse.csr_matrix(np.log1p(cells[:20].X.toarray() * 3.0).astype(np.float32))
    assert list(tiny_model.sentences(logged)[0]) == list(tiny_model.sentences(cells[:20])[0])


def test_genes_that_the_model_does_not_know_are_left_out_and_counted(tiny_model: CellModel, cells: AnnData) -> None:
    renamed = cells[:5].copy()
    renamed.var_names = [*(f"OTHER{i}" for i in range(40)), *renamed.var_names[40:]]
    sentences, overlap = tiny_model.sentences(renamed)
    assert overlap.share_out_of_vocabulary == pytest.approx(1 - overlap.n_shared / 120)
    assert not any(word.startswith("OTHER") for words in sentences for word in words)
    with pytest.raises(VocabularyMismatchError, match="at least 90% of the model's genes are needed"):
        tiny_model.sentences(renamed, min_overlap=0.9)


def test_no_shared_gene_is_refused_even_when_no_overlap_is_asked_for(tiny_model: CellModel, cells: AnnData) -> None:
    foreign = cells[:5].copy()
    foreign.var_names = [f"OTHER{i}" for i in range(120)]
    with pytest.raises(VocabularyMismatchError, match="0 of the model's"):
        tiny_model.sentences(foreign, min_overlap=0.0)


def test_records_hold_the_ranked_genes_and_the_context(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:3])
    records = list(tiny_model.records(sentences, context={"tissue": "blood"}))
    n = tiny_model.spec.ranking.top_genes
    assert [r.genes for r in records] == [tuple(words[:n]) for words in sentences]
    assert [r.metadata for r in records] == [{"tissue": "blood"}] * 3
    assert [r.cell_id for r in records] == list(cells.obs_names[:3])


def test_prompts_know_nothing_of_labels(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:10])
    assert not any(
        "type " in p.replace("cell type", "") for p in [one.text for one in tiny_model.cell_prompts(sentences)]
    )


def test_a_sentence_longer_than_the_context_loses_its_last_genes(tiny_model: CellModel, cells: AnnData) -> None:
    dense = cells[:4].copy()
    dense.X = sparse.csr_matrix(cells[:4].X.toarray() + 1)
    whole = replace(tiny_model, spec=replace(tiny_model.spec, ranking=RankSettings(top_genes=None)))
    sentences, _ = whole.sentences(dense)
    config = whole.lm.model.config
    context_length, config.max_position_embeddings = config.max_position_embeddings, 40
    try:
        for prompt, words in zip(
            [one.text for one in whole.cell_prompts(sentences, n_reserved=5)], sentences, strict=True
        ):
            n_tokens = len(whole.lm.tokenizer(prompt)["input_ids"])
            assert 30 <= n_tokens <= 35
            assert words[0] in prompt
            assert words[-1] not in prompt.replace(".", " ").split()
        assert np.isfinite(whole.label_scores(sentences, views=1)).all()
        assert np.isfinite(whole.embeddings(sentences)).all()
    finally:
        config.max_position_embeddings = context_length


def test_label_scores_are_log_likelihoods_and_views_are_averaged(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:6])
    one = tiny_model.label_scores(sentences, views=1)
    assert one.shape == (6, 3)
    assert (one < 0).all()
    np.testing.assert_allclose(tiny_model.label_scores(sentences, views=1), one, atol=1e-6)
    three = tiny_model.label_scores(sentences, views=3)
    assert not np.allclose(three, one)
    halves = [tiny_model.label_scores(sentences[part], views=3) for part in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(np.concatenate(halves), three, atol=1e-4)


def test_a_checkpoint_without_a_spec_annotates_with_given_labels(tiny_model: CellModel, cells: AnnData) -> None:
    assert tiny_model.folder is not None
    with_query_genes = load_checkpoint(
        tiny_model.folder, tiny_model.spec.vocabulary, labels=("B cell", "T cell"), device="cpu"
    )
    sentences, _ = with_query_genes.sentences(cells[:4])
    assert with_query_genes.label_scores(sentences).shape == (4, 2)
    with pytest.raises(InputError, match="this model has no rank curve"):
        with_query_genes.rank_curve


def test_sentences_are_cut_to_what_the_context_has_room_for(
    tiny_model: CellModel, cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model.lm.model.config, "max_position_embeddings", 30)
    ranking = replace(tiny_model.spec.ranking, top_genes=None)
    model = replace(tiny_model, spec=replace(tiny_model.spec, ranking=ranking))
    longest = int(model.truncate(model.sentences(cells)[0]).lengths.max())
    assert 1 < longest < 30
    (written,) = model.generate_ids("type A", np.array([longest]), temperature=1.0)
    assert len(written) == longest
    with pytest.raises(InputError, match="context"):
        model.generate_ids("type A", np.array([longest + 3]), temperature=1.0)


def test_a_model_is_asked_in_the_wordings_that_it_was_trained_with(
    tiny_model: CellModel, cells: AnnData, tmp_path: Path
) -> None:
    texts = {"model_input": ["{organism} words: {cell_sentence}\nKind?"], "response": ["{cell_type}."]}
    (tmp_path / "prompts.json").write_text(json.dumps(texts))
    sentences, _ = tiny_model.sentences(cells[:4])
    other_model = tiny_model.with_templates(tmp_path / "prompts.json")
    genes = " ".join(sentences.words(0)[: tiny_model.spec.ranking.top_genes]).upper()
    prompts = [one.text for one in other_model.cell_prompts(sentences, context={"organism": "human"})]
    assert prompts[0] == f"Homo sapiens words: {genes}\nKind?"
    assert tiny_model.cell_prompts(sentences)[0].text != prompts[0]
    scores_nk = other_model.label_scores(sentences, context={"organism": "human"}, views=1)
    expected = score_answers_naive(other_model.lm, prompts, [f"{label}." for label in tiny_model.spec.labels])
    assert scores_nk == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="needs the organism of"):
        [one.text for one in other_model.cell_prompts(sentences)]


def test_a_model_prints_one_line_and_shows_what_it_knows(tiny_model: CellModel, tiny_model_folder: Path) -> None:
    assert repr(tiny_model) == f"<CellModel: 3 labels, 119 genes, 0.1 M parameters, {tiny_model_folder}/>"
    assert tiny_model.labels == ("type A", "type B", "type C")
    assert tiny_model.genes == tuple(tiny_model.spec.vocabulary.symbols)
    assert tiny_model.card == (tiny_model_folder / "README.md").read_text()
    assert replace(tiny_model, folder=None).card == ""
    for shown in (tiny_model._repr_html_(), tiny_model.lm._repr_html_()):
        assert len(shown) < 1000
    odd = replace(tiny_model, spec=replace(tiny_model.spec, labels=("<b>", "x"), label_counts=(1, 1)))
    assert "&lt;b&gt;" in odd._repr_html_()
    with pytest.warns(FutureWarning, match="CellModel.language is CellModel.lm now"):
        assert tiny_model.language is tiny_model.lm
