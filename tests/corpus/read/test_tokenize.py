"""Ids that are put together from the pieces of genes are those of the tokenizer's own reading of the text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from task_records import RECORDS, SYMBOLS, record_for
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cytoglot.corpus.read.gene_characters import (
    MAX_CHARACTERS,
    characters_of,
    genes_of,
    has_characters,
    replace_genes,
)
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair, word_token_ids
from cytoglot.tasks import CellGroup, CellRecord, CellTypeTerm, GeneSet, tasks

# Names that end in punctuation, hold joints, are numbers, or look like words of a prompt.
ODD = ("TRB@", "HLA-A*", "7SK", "A", "Cell", "H2-Ea", "RP11-206L10.9", "MT-ND4L", "Gm10:", "C1orf(2)", "AC093323.3")
VOCABULARY = GeneVocabulary(tuple(dict.fromkeys((*SYMBOLS, *ODD, *(f"GENE{i}" for i in range(300))))))
TEXTS = [
    "3 genes: GENE1 GENE2 GENE33. Cell type:",
    "2 cells, up to 3 genes each:\nCell 1: GENE1 GENE2.\nCell 2: CD3D\nTissue: lung",
    "Name the type of a human pancreas cell (disease: normal). It is a B cell.",
] * 20


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


def metaspace(*, split: bool = True, prepend: str = "always") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=split)
    alphabet = [chr(i) for i in range(32, 127)]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["?"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    return lambda texts: [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


def gene_level() -> Callable[[list[str]], list[list[int]]]:
    tokenizer = build_tokenizer(VOCABULARY.symbols, TEXTS)
    return lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


ENCODERS: dict[str, Callable[[], Callable[[list[str]], list[list[int]]]]] = {
    "gene-level": gene_level,
    "byte-level": lambda: encoder(byte_level()),
    "metaspace": lambda: encoder(metaspace()),
}


def in_characters(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(characters_of(VOCABULARY.index_of([word])) if word else "" for word in words)


def as_characters(record: Any) -> Any:
    match record:
        case CellRecord():
            others = in_characters(record.ortholog_genes)
            return replace(record, genes=in_characters(record.genes), ortholog_genes=others)
        case CellGroup():
            return replace(record, cells=tuple(map(as_characters, record.cells)))
        case GeneSet():
            return replace(record, genes=in_characters(record.genes))
        case CellTypeTerm():
            return replace(record, markers=in_characters(record.markers))


def test_characters_stand_for_gene_ids_in_both_planes() -> None:
    ids = np.array([0, 1, 65533, 65534, 65535, MAX_CHARACTERS - 1])
    text = characters_of(ids)
    assert [hex(ord(character)) for character in text] == [
        "0xf0000", "0xf0001", "0xffffd", "0x100000", "0x100001", "0x10fffd",
    ]  # fmt: skip
    assert genes_of(text).tolist() == ids.tolist()
    assert has_characters("a " + text[0])
    assert not has_characters("naïve T cell, 日本")
    assert genes_of("").tolist() == []
    names = np.array([f"G{i}" for i in range(65536)], dtype=object)
    assert replace_genes(f"2 genes: {' '.join(text[1:4])}.", names) == "2 genes: G1 G65533 G65534."


@pytest.mark.parametrize("name", list(tasks))
@pytest.mark.parametrize("variant", [0, 1, 7])
def test_no_task_looks_into_the_words(name: str, variant: int) -> None:
    record = replace(record_for(tasks[name]), variant=variant)
    for template in [None, *tasks[name].templates.names]:
        real = tasks[name].example(record, template=template, epoch=variant)
        found = tasks[name].example(as_characters(record), template=template, epoch=variant)
        assert replace_genes(found.prompt, VOCABULARY.names) == real.prompt
        assert replace_genes(found.completion, VOCABULARY.names) == real.completion


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_every_task_is_read_as_the_tokenizer_reads_it(kind: str) -> None:
    encode = ENCODERS[kind]()
    tokenizer = GeneTokenizer(encode, VOCABULARY, opening=[7], eos=9)
    assert tokenizer.reads_characters, tokenizer.why_plain
    rng = np.random.default_rng(1)
    examples = []
    for name in tasks:
        for template in tasks[name].templates.names:
            words = tuple(VOCABULARY.symbols[i] for i in rng.permutation(len(VOCABULARY))[:40])
            record = record_for(tasks[name])
            if isinstance(record, CellRecord):
                record = replace(record, genes=words, ortholog_genes=("", *words[:0:-1]))
            elif isinstance(record, GeneSet):
                record = replace(record, genes=words)
            examples.append(tasks[name].example(as_characters(record), template=template))
    found = tokenizer.encode_pairs([e.prompt for e in examples], [e.completion for e in examples])
    assert tokenizer.encode_pairs([], []) == []
    for example, (ids, n_prompt) in zip(examples, found, strict=True):
        prompt, completion = (replace_genes(text, VOCABULARY.names) for text in (example.prompt, example.completion))
        assert ids[:n_prompt].tolist() == [7, *encode([prompt])[0]], prompt
        assert ids[n_prompt:].tolist() == [*encode([completion])[0], 9], completion


def test_it_agrees_with_the_pairs_of_training_and_a_gene_is_one_token() -> None:
    tokenizer = build_tokenizer(VOCABULARY.symbols, TEXTS)
    fast = GeneTokenizer(
        lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
        VOCABULARY,
        opening=[tokenizer.bos_token_id],
        eos=tokenizer.eos_token_id,
    )
    example = tasks["cell_type_annotation"].example(RECORDS["cell"])
    ids, n_prompt = encode_pair(tokenizer, example.prompt, example.completion)
    written = tasks["cell_type_annotation"].example(as_characters(RECORDS["cell"]))
    ((found, n_found),) = fast.encode_pairs([written.prompt], [written.completion])
    assert (found.tolist(), n_found) == (ids.tolist(), n_prompt)
    assert set(word_token_ids(tokenizer, RECORDS["cell"].genes)) <= set(found.tolist())


def test_genes_are_never_shown_to_the_tokenizer_again() -> None:
    encode, seen = ENCODERS["byte-level"](), []

    def spied(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return encode(texts)

    tokenizer = GeneTokenizer(spied, VOCABULARY)
    seen.clear()
    prompt = f"2 genes: {' '.join(in_characters(('GENE1', 'TRB@')))}. Cell type:"
    for _ in range(3):
        tokenizer.encode_pairs([prompt] * 5, [" B."] * 5)
    assert [text for text in seen if "GENE" in text or "TRB" in text] == []
    assert seen.count(" B.") == 1


def test_a_gene_without_a_space_before_it_is_read_in_the_real_text() -> None:
    encode = ENCODERS["byte-level"]()
    tokenizer = GeneTokenizer(encode, VOCABULARY)
    one, two = in_characters(("GENE1", "GENE2"))
    for text in (f"{one} and ({two})", f"a {one}{two}", f"a {one}s b", f"a  {one}"):
        ((ids, _),) = tokenizer.encode_pairs([text], [f" {text}"])
        real = replace_genes(text, VOCABULARY.names)
        assert ids.tolist() == [*encode([real])[0], *encode([f" {real}"])[0]]


def test_a_tokenizer_that_merges_across_words_gets_the_text(caplog: pytest.LogCaptureFixture) -> None:
    merging = Tokenizer(models.BPE(unk_token="?"))
    pieces = ["?", *(chr(i) for i in range(32, 127)), "\n", "1 "]
    merging.model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("1", " ")], unk_token="?")
    encode = encoder(merging)
    with caplog.at_level(logging.INFO, logger="cytoglot"):
        tokenizer = GeneTokenizer(encode, VOCABULARY)
    assert not tokenizer.reads_characters
    assert "does not keep words apart" in caplog.text
    ((ids, n_prompt),) = tokenizer.encode_pairs(["Genes: GENE1 GENE2. Type:"], [" B cell."])
    assert ids[:n_prompt].tolist() == encode(["Genes: GENE1 GENE2. Type:"])[0]
    assert ids[n_prompt:].tolist() == encode([" B cell."])[0]


def test_more_genes_than_characters_are_written_by_name() -> None:
    many = GeneVocabulary(tuple(f"G{i}" for i in range(MAX_CHARACTERS + 1)))
    tokenizer = GeneTokenizer(encoder(byte_level()), many)
    assert "131069 genes" in str(tokenizer.why_plain)


def test_a_check_on_other_texts_can_still_turn_it_off() -> None:
    encode = ENCODERS["byte-level"]()

    def odd(texts: list[str]) -> list[list[int]]:
        return [[1] if text == "a GENE1. b" else ids for text, ids in zip(texts, encode(texts), strict=True)]

    tokenizer = GeneTokenizer(odd, VOCABULARY)
    one, two = in_characters(("GENE1", "GENE2"))
    assert tokenizer.check([f"a {two}. b"], [" c."])
    assert not tokenizer.check([f"a {one}. b"], [" c."])
    assert not tokenizer.reads_characters
    assert tokenizer.encode_pairs(["a GENE1. b"], [" c."])[0][0][0] == 1


def test_few_remembered_stretches_change_nothing() -> None:
    encode = ENCODERS["metaspace"]()
    large, small = GeneTokenizer(encode, VOCABULARY), GeneTokenizer(encode, VOCABULARY, remembered=4)
    gene = characters_of(np.array([3]))
    for number in range(30):
        texts = [f"{number} genes: {gene}. Type {i}:" for i in range(3)]
        pairs = zip(large.encode_pairs(texts, [" B."] * 3), small.encode_pairs(texts, [" B."] * 3), strict=True)
        assert all(np.array_equal(a, b) and n == m for (a, n), (b, m) in pairs)
