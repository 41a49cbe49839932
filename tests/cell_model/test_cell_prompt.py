"""Where the genes stand in a prompt, whatever the wording around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.cell_model.cell_prompt import CellPrompt
from cytoglot.cell_model.load import CellModel
from cytoglot.errors import InputError
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import join
from cytoglot.tasks.task import tasks

ANNOTATION = tasks["cell_type_annotation"]


def _prompt(genes: tuple[str, ...], template: int | str | None = None) -> CellPrompt:
    record = CellRecord(genes=genes, metadata={"organism": "human"})
    return CellPrompt(segments=ANNOTATION.prompt_segments(record, template=template), record=record)


@pytest.mark.parametrize("template", [None, *sorted(ANNOTATION.templates.names)])
@pytest.mark.parametrize("genes", [("ACTB", "HLA-DRA", "T"), ("T",), ("cell",), ("C", "cell", "type")])
def test_every_gene_is_found_in_every_wording(genes: tuple[str, ...], template: str | None) -> None:
    prompt = _prompt(genes, template)
    first, after = prompt.sentence_span
    assert prompt.text[first:after] == " ".join(genes)
    assert [prompt.text[a:b] for a, b in prompt.gene_spans] == list(genes)
    others = _prompt(("QQ",) * len(genes), template).text
    assert others == prompt.text[:first] + " ".join(["QQ"] * len(genes)) + prompt.text[after:]


def test_an_empty_sentence_has_no_span() -> None:
    prompt = _prompt(())
    assert prompt.sentence_span == (0, 0)
    assert prompt.gene_spans.shape == (0, 2)


def test_genes_that_a_wording_writes_in_capitals_are_found(
    tiny_model: CellModel, cells: AnnData, tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text(
        '{"model_input": ["GENE words: {cell_sentence}\\nKind?"], "response": ["{cell_type}."]}'
    )
    other_model = tiny_model.with_templates(tmp_path / "p.json")
    sentences, _ = other_model.sentences(cells[:2])
    (prompt, _) = other_model.cell_prompts(sentences)
    first, after = prompt.sentence_span
    assert prompt.text[:first] == "GENE words: "
    assert prompt.text[after:] == "\nKind?"


def test_a_prompt_that_does_not_show_the_genes_is_refused() -> None:
    prompt = replace(_prompt(("ACTB", "B2M")), segments=join(["Genes: ACTB,B2M."]))
    with pytest.raises(InputError, match=r"expected a prompt with the 2 genes of cell '', found 0 in 'Genes: ACTB"):
        _ = prompt.gene_spans


def test_vectors_of_the_genes_alone_owe_nothing_to_the_question(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:5])
    prompts = tiny_model.cell_prompts(sentences)
    found = tiny_model.embeddings(sentences, pooling="sentence")
    assert not np.allclose(found, tiny_model.embeddings(sentences), atol=1e-3)
    spans = [prompt.sentence_span for prompt in prompts]
    np.testing.assert_allclose(tiny_model.embed([p.text for p in prompts], spans=spans), found, atol=1e-5)
    other_ending = [prompt.text[:after] + ". Of what?" for prompt, (_, after) in zip(prompts, spans, strict=True)]
    np.testing.assert_allclose(tiny_model.embed(other_ending, spans=spans), found, atol=1e-5)


@pytest.mark.parametrize("chunk_cells", [1, 7, 64, 1000])
def test_sentences_of_a_stream_are_those_of_the_whole(
    tiny_model: CellModel, cells: AnnData, cells_file: Path, chunk_cells: int
) -> None:
    whole, overlap = tiny_model.sentences(cells)
    for source in (cells, cells_file):
        with tiny_model.open_sentences(source, chunk_cells=chunk_cells) as stream:
            assert stream.cells.n_cells == len(whole)
            assert stream.overlap == overlap
            parts = list(stream.chunks())
            assert [words for part in parts for words in part] == list(whole)
            np.testing.assert_array_equal(np.concatenate([part.cell_ids for part in parts]), whole.cell_ids)
            (rest, *_) = stream.chunks(first_cell=200)
            assert list(rest) == list(whole[200 : 200 + chunk_cells])
