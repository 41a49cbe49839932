"""What a model is trained on is what it is asked: for every task, set of wordings and source of a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from test_c2s_templates import FILES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from whole_way import corpus_of

from cytoglot.cell_model.file_cells import FileCells
from cytoglot.corpus.format.folder import Corpus, SourceInfo
from cytoglot.corpus.read.loader import BatchSettings, CorpusLoader, ExampleSettings
from cytoglot.corpus.read.records import RecordReader, source_of_cells
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair
from cytoglot.sentence.encode import encode
from cytoglot.tasks import (
    CellGroup,
    CellRecord,
    CellTypeTerm,
    Genes,
    GeneSet,
    Record,
    TaskInstance,
    record_sources,
    tasks,
)
from cytoglot.tasks.c2s_templates import templates_for
from cytoglot.tasks.record_source import Draws
from cytoglot.training.supervised.corpus_batches import gene_tokenizer

OWN = {
    "cell_type_annotation": ("cell_sentence", "Read {cell_sentence}. It is"),
    "cell_generation": ("cell_type", "Make a {cell_type}:"),
    "tissue_annotation": ("cell_sentences", "{cell_sentences}\nOrgan:"),
    "gene_set_naming": ("genes", "What unites {genes} in a set?"),
    "cell_type_markers": ("cell_type", "Markers of {cell_type}:"),
}
TEXTS = ["12 genes of a human blood cell (disease: normal): . Cell type: type A. Cell 1: Kind? Organ?"] * 50


@pytest.fixture(scope="module")
def mixed(cells: AnnData) -> AnnData:
    """Cells whose genes are written like C1orf112, Actb and HLA-A, with all kinds of metadata."""
    adata = cells[:90].copy()
    forms = ("C{}orf1", "Actb{}", "HLA-A{}", "MT-ND{}L", "GENE{}.9")
    adata.var_names = [forms[i % len(forms)].format(i) for i in range(adata.n_vars)]
    adata.obs["organism"], adata.obs["tissue"], adata.obs["disease"] = "human", "blood", "normal"
    adata.obs["sex"], adata.obs["assay"], adata.obs["condition"] = "female", "10x 3' v3", "stimulated"
    adata.obs["development_stage"], adata.obs["dose"], adata.obs["time"] = "adult", "10 uM", "6 h"
    order = np.argsort(adata.obs["donor"].astype(str).to_numpy(), kind="stable")
    return adata[order].copy()


@pytest.fixture(scope="module")
def corpus(mixed: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    names = tuple(map(str, mixed.var_names))
    orthologs = np.full(len(names), -1)
    orthologs[:20], orthologs[20:40] = np.arange(20, 40), np.arange(20)
    return corpus_of(
        mixed,
        tmp_path_factory.mktemp("mixed") / "corpus",
        sources=[SourceInfo(name="made", organism="human", abstract="Cells that were made by a recipe.")],
        gene_sets={"train": [GeneSet(name="made up", genes=(*names[:6], "NoGene"), collection="made")]},
        terms={"train": [CellTypeTerm(label="B cell", definition="A cell that makes antibodies of use.", term_id="CL:1",
                                      synonyms=("B lymphocyte",), markers=names[3:8])]},
        orthologs=orthologs,
    )  # fmt: skip


def gene_level(vocabulary: GeneVocabulary) -> Callable[[list[str]], list[list[int]]]:
    tokenizer = build_tokenizer(vocabulary.symbols, TEXTS)
    return lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def bpe(pre_tokenizer: Any, symbols: list[str]) -> Callable[[list[str]], list[list[int]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *map(chr, range(32, 127))]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["?"])
    tokenizer.train_from_iterator([*TEXTS, " ".join(symbols)], trainer)
    return lambda texts: [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.fixture(scope="module")
def encoders(corpus: Corpus) -> dict[str, Callable[[list[str]], list[list[int]]]]:
    symbols = list(corpus.vocabulary.symbols)
    return {
        "gene words": gene_level(corpus.vocabulary),
        "byte-level": bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), symbols),
        "metaspace": bpe(pre_tokenizers.Metaspace(), symbols),
    }


def wordings(name: str, folder: Path) -> list[Any]:
    """Return the task in our wordings, in those of Cell2Sentence and in a user's own, where there are such."""
    found: list[Any] = [tasks[name]]
    if name in FILES:
        file, prompts, response = FILES[name]
        (folder / file).write_text(json.dumps({"model_input": prompts, "response": [response]}))
        found.append(tasks[name].with_templates(templates_for(name, folder)))
    if name in OWN:
        field, text = OWN[name]
        own = f"name = {name!r}\nfields = [{field!r}]\nanswer = {tasks[name].templates.answer!r}\n"
        (folder / "own.toml").write_text(f"{own}[[prompt]]\nname = 'mine'\ntext = {json.dumps(text)}\n")
        found.append(tasks[name].with_templates(templates_for(name, folder / "own.toml")))
    return found


def plain(record: Any) -> Any:
    """Return the same record with genes by name, as a person would write it."""
    match record:
        case CellRecord():
            others = tuple(record.ortholog_genes)
            known = {"metadata": record.metadata, "cell_id": record.cell_id, "variant": record.variant}
            return CellRecord(genes=tuple(record.genes), ortholog_genes=others, **known)  # type: ignore[arg-type]
        case CellGroup():
            return CellGroup(cells=tuple(map(plain, record.cells)), metadata=record.metadata, group_id=record.group_id)
    return record


def records_of_both(unit: str, mixed: AnnData, corpus: Corpus) -> list[tuple[Record, Record]]:
    """Return each record from the corpus beside the one from the file, or from a hand where a file has no such."""
    if not record_sources[unit].is_of_cells:
        return [(row, row) for row in RecordReader(corpus).table(unit, "train")]
    shard, source = corpus.shards("train")[0], source_of_cells(unit)
    part = mixed[mixed.obs["donor"].astype(str) == sorted(set(mixed.obs["donor"].astype(str)))[0]].copy()
    part.obs["cell_group"] = np.arange(part.n_obs) // 3
    of_file = FileCells(encode(part, genes=corpus.vocabulary), part.obs, {})
    with corpus.open(shard) as file:
        of_corpus = RecordReader(corpus).open(file.row_group(0), shard)
    rows, draws = source.rows(of_corpus).tolist(), Draws(1)
    assert rows == source.rows(of_file).tolist()
    found = []
    for row in rows[:6]:
        one = source.record(of_corpus, row, draws, top_genes=15)
        if unit == "cell":
            assert isinstance(one, CellRecord)
            assert isinstance(one.genes, Genes)
        other: Any = source.record(of_file, row, draws, top_genes=15)
        # What only a corpus knows: the abstract of a study, and orthologs.
        other = other.with_metadata({**other.metadata, **{k: v for k, v in one.metadata.items() if k == "abstract"}})
        found += [(one, other if unit != "cell" else other._changed(ortholog_genes=tuple(one.ortholog_genes)))]
        found.append((one, plain(one)))
    return found


@pytest.mark.parametrize("name", list(tasks))
def test_training_and_use_see_the_same_text_and_the_same_tokens(
    name: str, mixed: AnnData, corpus: Corpus, encoders: dict[str, Any], tmp_path: Path
) -> None:
    n_compared = 0
    for task in wordings(name, tmp_path):
        for of_corpus, of_file in records_of_both(task.unit, mixed, corpus):
            if not task.can_ask(of_corpus):
                continue
            for template in task.templates.names:
                trained, asked = TaskInstance(task, of_corpus, template), TaskInstance(task, of_file, template)
                assert trained.example() == asked.example()
                assert trained.segments()[0].text == asked.prompt().text == task.prompt(of_file, template=template)
                n_compared += 1
                assert "{" not in asked.prompt().text
            if not task.templates.style.is_ours:
                text = trained.example().prompt + trained.example().completion
                genes = [gene for gene in corpus.vocabulary.symbols if gene.upper() != gene and gene in text.split()]
                assert genes == [], "genes are written in capitals in the wordings of Cell2Sentence"
    assert n_compared > 5, f"{name} was asked of nothing"


@pytest.mark.parametrize("kind", ["gene words", "byte-level", "metaspace"])
@pytest.mark.parametrize("name", list(tasks))
def test_segments_are_tokenized_as_the_whole_text(
    name: str, kind: str, mixed: AnnData, corpus: Corpus, encoders: dict[str, Any], tmp_path: Path
) -> None:
    encode_texts = encoders[kind]
    tokenizer = GeneTokenizer(encode_texts, corpus.vocabulary)
    assert tokenizer.why_plain is None
    strip = kind == "metaspace"  # it puts a space before every text itself
    for task in wordings(name, tmp_path):
        pairs = [
            TaskInstance(task, record, template).segments()
            for both in records_of_both(task.unit, mixed, corpus)[:6]
            for record in both
            if task.can_ask(record)
            for template in sorted(task.templates.names)[:4]
        ]
        found = tokenizer.encode_pairs([p for p, _ in pairs], [c for _, c in pairs])
        for (prompt, completion), (ids, n_prompt) in zip(pairs, found, strict=True):
            answer = completion.text.removeprefix(" ") if strip else completion.text
            assert ids[:n_prompt].tolist() == encode_texts([prompt.text])[0], prompt.text
            assert ids[n_prompt:].tolist() == encode_texts([answer])[0], completion.text


def test_a_loader_gives_the_tokens_that_the_model_is_asked_with(corpus: Corpus, tmp_path: Path) -> None:
    (_, c2s, _) = wordings("cell_type_annotation", tmp_path)
    hf_tokenizer = build_tokenizer(corpus.vocabulary.symbols, TEXTS)
    batches = BatchSettings(context=2048, packed=False, batch_size=1)
    loader = CorpusLoader(
        corpus, tokenizer=gene_tokenizer(hf_tokenizer, corpus.vocabulary), batches=batches, epochs=1,
        examples=ExampleSettings(metadata_share=1, paraphrase_share=0, top_genes=15),
        tasks={c2s.name: 1.0}, replaced={c2s.name: c2s},
    )  # fmt: skip
    read = {tuple(batch.input_ids[0].tolist()) for batch in loader}
    expected = set()
    for block in corpus.blocks("train"):
        cells = RecordReader(corpus).open(block)
        for row in range(len(cells)):
            example = c2s.example(plain(cells.cell(row, Draws(0), top_genes=15)), template=0)
            assert "orf" not in example.prompt
            expected.add(tuple(encode_pair(hf_tokenizer, example.prompt, example.completion)[0].tolist()))
    assert read == expected
