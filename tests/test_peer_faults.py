"""Every silent fault found in cell2sentence 1.2.0, and that it is absent here. Numbers are those of the study of it.

Axes: n cells, g genes, d embedding dimensions.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import cytoglot as cg
from cytoglot.applications.annotation import label_probabilities
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.splits.splitting import split_cells
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.curve_score import evaluate_curve
from cytoglot.sentence.decode import decode
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.fit_curves import fit_rank_curve
from cytoglot.sentence.parquet import read_sentences, write_sentences
from cytoglot.sentence.parse import parse_genes
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks


def _cells(counts: Any, genes: list[str]) -> AnnData:
    matrix = sparse.csr_matrix(np.asarray(counts))
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(matrix.shape[0])])
    return AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes))


def _unlabelled(cells: AnnData) -> AnnData:
    return AnnData(X=cells.X, obs=pd.DataFrame(index=cells.obs_names), var=cells.var)


# 4.1 Data


def test_1_names_that_collide_never_shift_the_names_of_later_genes() -> None:
    """There: "GENEA GENEB GENEC GENED", the names of the wrong columns."""
    sentences = cg.encode(_cells([[5, 4, 3, 2, 0]], ["GeneA", "GENEA", "GeneB", "GeneC", "GeneD"]))
    assert sentences.words(0) == ["GeneA", "GENEA", "GeneB", "GeneC"]


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_1_a_repeated_symbol_is_one_gene_and_the_last_gene_keeps_its_name() -> None:
    """There: an IndexError as soon as the last gene is expressed."""
    sentences = cg.encode(_cells([[1, 4, 3, 2]], ["TBCE", "ACTB", "TBCE", "LAST"]), ties="order")
    assert sentences.words(0) == ["TBCE", "ACTB", "LAST"]  # 1 + 3 counts of TBCE, ties in order of the vocabulary
    assert sentences.vocabulary.symbols == ("TBCE", "ACTB", "LAST")


def test_2_the_seed_is_used_and_no_global_generator_is_touched(cells: AnnData) -> None:
    np.random.seed(7)  # noqa: NPY002 - this is the generator that must be left alone
    random.seed(7)
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = cg.encode(cells, ties="random", seed=1)
    assert list(first) != list(cg.encode(cells, ties="random", seed=2))
    assert list(first) == list(cg.encode(cells, ties="random", seed=1))
    list(tasks["cell_type_annotation"].prompt(CellRecord(cell_id="c", genes=("A",)), template=0))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]


@pytest.mark.parametrize("ties", ["symbol", "order", "random", "rare_first", "common_first"])
def test_2_a_sentence_does_not_depend_on_the_row(cells: AnnData, ties: Any) -> None:
    """There: 50 of 50 cells changed with the order of the rows."""
    rates = cg.encode(cells, ties="rare_first").tie_rates if ties in {"rare_first", "common_first"} else None
    straight = cg.encode(cells, ties=ties, tie_rates=rates)
    shuffled = cg.encode(cells[::-1], ties=ties, tie_rates=rates)
    some = cg.encode(cells[100:110], ties=ties, tie_rates=rates)
    assert list(straight) == list(shuffled)[::-1]
    assert list(straight[100:110]) == list(some)


def test_3_stored_zeros_are_no_words_and_negative_values_are_refused() -> None:
    """There: both were written at the end of the sentence."""
    stored = sparse.csr_matrix((np.array([0, 3, 0]), np.array([0, 1, 2]), np.array([0, 3])), shape=(1, 3))
    assert encode_matrix(stored, GeneVocabulary(symbols=("A", "B", "C"))).words(0) == ["B"]
    with pytest.raises(InputError, match=r"negative|signed"):
        cg.encode(_cells([[2.0, -1.0, 0.5]], ["A", "B", "C"]))
    with pytest.raises(InputError, match=r"(?i)nan.*cell_0|cell_0.*nan"):
        cg.encode(_cells([[2.0, np.nan, 0.5]], ["A", "B", "C"]))


def test_4_no_advice_about_transposing_a_table_of_few_cells(capsys: pytest.CaptureFixture[str]) -> None:
    cg.encode(_cells(np.ones((2, 50), dtype=int), [f"G{i}" for i in range(50)]))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_5_a_saved_file_opens_by_itself(cells: AnnData, tmp_path: Path) -> None:
    """There: neither the vocabulary nor how the cells were ranked is kept."""
    saved = cg.encode(cells, ties="rare_first", top_genes=20)
    write_sentences(saved, tmp_path / "cells.parquet")
    opened = read_sentences(tmp_path / "cells.parquet")
    assert list(opened) == list(saved)
    assert opened.vocabulary == saved.vocabulary
    assert opened.settings == saved.settings
    np.testing.assert_array_equal(opened.tie_rates, saved.tie_rates)


def test_5_top_genes_holds_with_any_delimiter(cells: AnnData) -> None:
    """There: another delimiter than a space let all genes through."""
    sentences = cg.encode(cells[:3], top_genes=1)
    assert [text.split(", ") for text in sentences.text(", ").to_pylist()] == [[w[0]] for w in sentences]


def test_6_a_backed_file_is_read_in_chunks(cells: AnnData, cells_file: Path) -> None:
    """There: a TypeError, and no way to stream."""
    backed = anndata.read_h5ad(cells_file, backed="r")
    assert list(cg.encode(backed)) == list(cg.encode(cells))
    assert list(cg.encode(cells_file)) == list(cg.encode(cells))
    backed.file.close()


def test_7_missing_labels_are_never_an_answer(cells: AnnData, tiny_recipe: Any, tmp_path: Path) -> None:
    """There: the model learns to answer "nan."."""
    from cytoglot.training.run import train

    partly = cells.copy()
    partly.obs["annotation of ours"] = partly.obs["cell_type"].astype(object)  # any column name will do
    partly.obs.loc[partly.obs_names[::3], "annotation of ours"] = np.nan
    recipe = tiny_recipe.model_copy(update={"optim": tiny_recipe.optim.model_copy(update={"steps": 2})})
    model = train(partly, label="annotation of ours", out=tmp_path / "m", recipe=recipe, device="cpu")
    assert set(model.spec.labels) == {"type A", "type B", "type C"}


def test_7_an_empty_cell_is_an_empty_sentence_and_is_counted(tiny_model: CellModel, cells: AnnData) -> None:
    with_empty = cells[:3].copy()
    matrix = with_empty.X.toarray()
    matrix[1] = 0
    with_empty.X = sparse.csr_matrix(matrix)
    assert cg.encode(with_empty).n_empty == 1
    annotated = cg.annotate(with_empty, tiny_model, copy=True)
    assert np.isfinite(annotated.obs["cytoglot_cell_type_confidence"]).tolist() == [True, False, True]
    assert annotated.obs["cytoglot_cell_type"].iloc[1] == "unassigned"
    assert annotated.uns["cytoglot"]["annotation"]["cells_without_genes"] == 1


# 4.2 Inference


def test_8_cells_without_any_label_are_embedded_and_annotated(cells: AnnData, tiny_model: CellModel) -> None:
    """There: KeyError 'cell_type', then KeyError 'organism'."""
    bare = _unlabelled(cells[:12])
    assert cg.embed(bare, tiny_model, copy=True).obsm["X_cytoglot"].shape[0] == 12
    assert cg.annotate(bare, tiny_model, copy=True).obs["cytoglot_cell_type"].notna().all()


def test_9_a_vector_does_not_depend_on_its_companions(cells: AnnData, tiny_model: CellModel) -> None:
    """There: padding and a randomly drawn prompt are averaged in, a relative error of 1.01 for unequal lengths."""
    uneven = cells[:12].copy()
    matrix = uneven.X.toarray()
    matrix[::2, 10:] = 0  # short sentences beside long ones
    uneven.X = sparse.csr_matrix(matrix)
    together = cg.embed(uneven, tiny_model, copy=True).obsm["X_cytoglot"]
    backwards = cg.embed(uneven[::-1], tiny_model, copy=True).obsm["X_cytoglot"][::-1]
    alone = np.concatenate([cg.embed(uneven[i : i + 1], tiny_model, copy=True).obsm["X_cytoglot"] for i in range(12)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)


def test_10_embedding_keeps_no_graph_and_makes_no_logits(
    cells: AnnData, tiny_model: CellModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the output layer was run")

    monkeypatch.setattr(tiny_model.lm.model.get_output_embeddings(), "forward", refuse)
    embedded = cg.embed(cells[:4], tiny_model, copy=True)
    assert isinstance(embedded.obsm["X_cytoglot"], np.ndarray)
    assert all(p.grad is None for p in tiny_model.lm.model.parameters())


def test_11_an_answer_is_a_label_with_a_probability(cells: AnnData, tiny_model: CellModel) -> None:
    """There: up to 1,024 free tokens for each cell, one by one, and no confidence."""
    annotated = cg.annotate(cells[:20], tiny_model, threshold=0.0, copy=True)
    assert set(annotated.obs["cytoglot_cell_type"]) <= set(tiny_model.spec.labels)
    np.testing.assert_allclose(annotated.obsm["cytoglot_probabilities"].sum(axis=1), 1.0, atol=1e-6)


def test_12_an_answer_never_holds_its_prompt(cells: AnnData, tiny_model: CellModel) -> None:
    """There: the prompt is cut off by text replacement, which fails as soon as decoding changes a character."""
    from cytoglot.answer_format import FreeText
    from cytoglot.lm.generation.generate import generate_answers

    prompts = ["Genes: A  B ,C don't <eos> x", "ACTB\u00a0cell —"]
    answers = generate_answers(tiny_model.lm, prompts, FreeText(max_tokens=4), temperature=0.0, seed=0)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        assert prompt[:10] not in answer
    written = cg.annotate(cells[:3], tiny_model, method="generate", copy=True).obs["cytoglot_cell_type_text"]
    assert not written.str.contains("GENE").any()


def test_13_a_saved_model_opens_with_its_tokenizer(tiny_model_folder: Path, tmp_path: Path) -> None:
    """There: a tokenizer of two entries, and every text has no tokens."""
    from transformers import AutoTokenizer

    moved = shutil.copytree(tiny_model_folder, tmp_path / "nested" / "deep" / "copy")
    tokens = AutoTokenizer.from_pretrained(moved)("GENE1 cell")["input_ids"]
    assert len(tokens) >= 2
    assert load_cell_model(moved, device="cpu").spec.labels == ("type A", "type B", "type C")


def test_14_a_model_is_loaded_once(
    cells: AnnData, tiny_model: CellModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There: it is copied when opened, and read again for every call."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)
    cg.annotate(cells[:2], tiny_model, copy=True)
    cg.embed(cells[:2], tiny_model, copy=True)
    assert list(tmp_path.iterdir()) == []


# 4.3 Training


def test_15_a_sentence_longer_than_the_context_still_trains_its_answer(
    cells: AnnData, tiny_recipe: Any, tmp_path: Path
) -> None:
    """There: nothing is learned, the loss is 0.0 and the run says "completed"."""
    from cytoglot.training.run import train

    scratch = tiny_recipe.model.scratch.model_copy(update={"context_length": 48})
    recipe = tiny_recipe.model_copy(
        update={
            "model": tiny_recipe.model.model_copy(update={"scratch": scratch}),
            "sentence": tiny_recipe.sentence.model_copy(update={"top_genes": None}),
            "optim": tiny_recipe.optim.model_copy(update={"steps": 4, "evaluate_every": 2}),
        }
    )
    dense = cells.copy()
    dense.X = sparse.csr_matrix(cells.X.toarray() + 1)  # all 120 genes, in a context of 48 tokens
    model = train(dense, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    history = json.loads((tmp_path / "m" / "training.json").read_text())["history"]
    losses = [row["train_loss"] for row in history if row["train_loss"] is not None]
    assert losses
    assert all(np.isfinite(losses))
    assert min(losses) > 0.1
    assert np.isfinite(label_probabilities(model, model.sentences(dense[:3])[0]).probability_nk).all()


def test_16_one_text_is_trained_whatever_the_loss_is_on(cells: AnnData, tiny_model: CellModel) -> None:
    """There: "is:B cell." with one loss and "is: B cell." with the other."""
    record = CellRecord(cell_id="c", genes=("GENE1",), metadata={"cell_type": "B cell"})
    example = tasks["cell_type_annotation"].example(record, template=0)
    assert not example.prompt.endswith(" ")
    assert example.completion == " B cell."
    together = tiny_model.lm.tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
    parts = [tiny_model.lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (example.prompt, " B cell.")]
    assert together == parts[0] + parts[1]


def test_17_donors_are_never_torn_and_a_split_is_the_seeds(cells: AnnData) -> None:
    """There: cells are drawn at random and without a seed."""
    split = split_cells(cells.obs, by="auto", label="cell_type", seed=3)
    assert split == split_cells(cells.obs, by="auto", label="cell_type", seed=3)
    donors = [set(cells.obs["donor"][split.mask(cells.obs_names, part)]) for part in ("train", "test")]
    assert not donors[0] & donors[1]


def test_18_the_trained_model_is_what_is_saved_and_returned(tiny_model: CellModel, cells: AnnData) -> None:
    """There: the folder must exist, nothing may be saved, and the object still holds the untrained weights."""
    assert tiny_model.folder is not None
    sentences, _ = tiny_model.sentences(cells[:5])
    again = load_cell_model(tiny_model.folder, device="cpu")
    np.testing.assert_allclose(again.label_scores(sentences), tiny_model.label_scores(sentences), atol=1e-4)


# 4.4 Reconstruction


@pytest.fixture(scope="module")
def ranked() -> tuple[CellSentences, sparse.csr_matrix]:
    from cytoglot.data.normalize import normalize_log
    from cytoglot.data.synthetic import make_cells

    many = make_cells(n_cells=60, n_genes=4000, expressed=2400, seed=2)
    return cg.encode(many), normalize_log(many.X, base=10)


def test_19_a_curve_is_fitted_on_all_that_it_is_judged_on(ranked: tuple[CellSentences, sparse.csr_matrix]) -> None:
    """There: fitted on ranks below 1,000 and scored on all, which cost 9 points of R²."""
    sentences, log_ng = ranked
    ours = fit_rank_curve("line", sentences[:40], log_ng[:40])
    rows = evaluate_curve(ours, sentences[40:], log_ng[40:], genes="full", held_out=True)
    r2 = next(row["r2"] for row in rows if row["scope"] == "expressed")
    theirs = fit_rank_curve("peer_line", sentences[:40], log_ng[:40])
    peer = evaluate_curve(theirs, sentences[40:], log_ng[40:], genes="full", held_out=True)
    assert r2 > next(row["r2"] for row in peer if row["scope"] == "expressed") + 0.01


@pytest.mark.parametrize("kind", ["line", "gene_lines", "isotonic", "line_length", "cubic_length"])
def test_19_expression_is_never_negative(kind: Any, ranked: tuple[CellSentences, sparse.csr_matrix]) -> None:
    """There: below zero from rank 2,050 on."""
    sentences, log_ng = ranked
    curve = fit_rank_curve(kind, sentences, log_ng)
    assert decode(sentences, rank_curve=curve).X.data.min() >= 0


def test_19_the_last_gene_of_an_answer_is_kept_and_odd_words_shift_nothing() -> None:
    """There: "A B C D E." loses E, an invalid word takes a rank, and "A A A B" becomes "B A"."""
    vocabulary = GeneVocabulary(symbols=("A", "B", "C", "D", "E"))

    def words(text: str) -> list[str]:
        return [vocabulary.symbols[i] for i in parse_genes(text, vocabulary).gene_ids]

    assert words("A B C D E.") == ["A", "B", "C", "D", "E"]
    assert words("A xyz\nB,  C\n") == ["A", "B", "C"]
    assert words("A B B C") == ["A", "B", "C"]
    assert words("a b C")[2] == "C"
    adata = decode(["A xyz B"], vocabulary=vocabulary)
    assert adata.layers["rank"].toarray().tolist() == [[1, 2, 0, 0, 0]]


def test_19_parsing_does_not_search_the_vocabulary_for_each_word() -> None:
    """There: 17 ms for 200 words, 300 times what a set needs. Fifty sentences must take less than a second here."""
    vocabulary = GeneVocabulary(symbols=tuple(f"G{i}" for i in range(30_000)))
    texts = [" ".join(f"G{(7 * i + j) % 30_000}" for i in range(200)) for j in range(50)]
    decode(texts[:1], vocabulary=vocabulary)
    started = time.process_time()
    decode(texts, vocabulary=vocabulary)
    assert time.process_time() - started < 0.85  # 17 ms for each of them


def test_19_the_score_of_a_curve_is_the_same_each_time(ranked: tuple[CellSentences, sparse.csr_matrix]) -> None:
    """There: a new random sample of cells each time, and no seed."""
    sentences, log_ng = ranked
    curve = fit_rank_curve("line", sentences, log_ng)
    first, second = (evaluate_curve(curve, sentences, log_ng, genes="full", held_out=False) for _ in range(2))
    assert first == second


# 4.5 Hygiene


def test_20_the_version_is_one_and_the_core_is_small() -> None:
    """There: `__version__` is not that of the package, and JupyterLab and Sphinx come with it."""
    from importlib.metadata import requires, version

    assert cg.__version__ == version("cytoglot")
    core = [r for r in requires("cytoglot") or [] if "extra ==" not in r]
    names = {re.split(r"[<>=!~\[; ]", r)[0].lower() for r in core}
    assert not names & {"torch", "transformers", "scanpy", "matplotlib", "jupyterlab", "sphinx"}
