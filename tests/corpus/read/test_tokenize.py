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

from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair, word_token_ids
from cytoglot.tasks import CellGroup, CellRecord, Genes, GeneSet, TaskInstance, tasks
from cytoglot.tasks.segments import join, upper

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


def of_table(words: Sequence[str]) -> Genes:
    """Return genes by their ids, as a corpus holds them; "" stands for none."""
    ids = [VOCABULARY.index_of([word])[0] if word else -1 for word in words]
    return Genes(np.array(ids, np.int32), np.append(VOCABULARY.names, ""))


def as_in_a_corpus(record: Any) -> Any:
    match record:
        case CellRecord():
            genes = Genes(VOCABULARY.index_of(record.genes), VOCABULARY.names)
            return replace(record, genes=genes, ortholog_genes=of_table(record.ortholog_genes))
        case CellGroup():
            return replace(record, cells=tuple(map(as_in_a_corpus, record.cells)))
    return record


@pytest.mark.parametrize("name", list(tasks))
@pytest.mark.parametrize("variant", [0, 1, 7])
def test_a_record_of_a_corpus_is_asked_about_like_one_of_a_file(name: str, variant: int) -> None:
    record = replace(record_for(tasks[name]), variant=variant)
    for template in [None, *tasks[name].templates.names]:
        real = tasks[name].example(record, template=template, epoch=variant)
        found = tasks[name].example(as_in_a_corpus(record), template=template, epoch=variant)
        assert (found.prompt, found.completion) == (real.prompt, real.completion)


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_every_task_is_read_as_the_tokenizer_reads_it(kind: str) -> None:
    encode = ENCODERS[kind]()
    tokenizer = GeneTokenizer(encode, VOCABULARY, opening=[7], eos=9)
    assert tokenizer.why_plain is None
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
            examples.append(TaskInstance(tasks[name], as_in_a_corpus(record), template))
    pairs = [example.segments() for example in examples]
    found = tokenizer.encode_pairs([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
    assert tokenizer.encode_pairs([], []) == []
    for (prompt, completion), (ids, n_prompt) in zip(pairs, found, strict=True):
        assert ids[:n_prompt].tolist() == [7, *encode([prompt.text])[0]], prompt.text
        assert ids[n_prompt:].tolist() == [*encode([completion.text])[0], 9], completion.text


def test_it_agrees_with_the_pairs_of_training_and_a_gene_is_one_token() -> None:
    tokenizer = build_tokenizer(VOCABULARY.symbols, TEXTS)
    fast = GeneTokenizer(
        lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
        VOCABULARY,
        opening=[tokenizer.bos_token_id],
        eos=tokenizer.eos_token_id,
    )
    example = tasks["cell_type_annotation"].example(RECORDS["cell"], template=0)
    ids, n_prompt = encode_pair(tokenizer, example.prompt, example.completion)
    prompt, completion = TaskInstance(tasks["cell_type_annotation"], as_in_a_corpus(RECORDS["cell"]), 0).segments()
    ((found, n_found),) = fast.encode_pairs([prompt], [completion])
    assert (found.tolist(), n_found) == (ids.tolist(), n_prompt)
    assert set(word_token_ids(tokenizer, RECORDS["cell"].genes)) <= set(found.tolist())


def test_genes_are_never_shown_to_the_tokenizer_again() -> None:
    encode, seen = ENCODERS["byte-level"](), []

    def spied(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return encode(texts)

    tokenizer = GeneTokenizer(spied, VOCABULARY)
    seen.clear()
    prompt = join(["2 genes: ", of_table(("GENE1", "TRB@")), ". Cell type:"])
    for _ in range(3):
        tokenizer.encode_pairs([prompt] * 5, [join([" B."])] * 5)
    assert [text for text in seen if "GENE" in text or "TRB" in text] == []
    assert seen.count(" B.") == 1


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_what_no_table_holds_is_read_as_the_whole_text(kind: str) -> None:
    encode = ENCODERS[kind]()
    tokenizer = GeneTokenizer(encode, VOCABULARY)
    one, two = of_table(("GENE1",)), of_table(("GENE2",))
    for pieces in (
        [one, " and (", two, ")"], ["a ", one, two], ["a ", one, "s b"], ["a  ", one], [" a ", one, "."],
        ["a ", ("GENE1", "two words"), "."], ["a ", ("GENE1", ""), "."],
    ):  # fmt: skip
        text = join(pieces)
        ((ids, _),) = tokenizer.encode_pairs([text], [join([" ", *pieces])])
        assert ids.tolist() == [*encode([text.text])[0], *after(encode, " " + text.text)], text.text


def after(encode: Callable[[list[str]], list[list[int]]], text: str) -> list[int]:
    """Return the ids of a text that goes on after another one, whatever the tokenizer puts at the start of a text."""
    before = encode(["b"])[0]
    whole = encode(["b" + text])[0]
    assert whole[: len(before)] == before
    return whole[len(before) :]


def test_words_that_are_no_genes_and_genes_in_capitals_are_learned_once() -> None:
    encode, seen = ENCODERS["byte-level"](), []

    def spied(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return encode(texts)

    tokenizer = GeneTokenizer(spied, VOCABULARY)
    lower = Genes(VOCABULARY.index_of(["Actb", "Gm10:", "GENE1"]), VOCABULARY.names)
    text = join(["a ", ("_", "NOGENE", "GENE1"), ". b ", upper(lower), "."])
    assert text.text == "a _ NOGENE GENE1. b ACTB GM10: GENE1."
    for _ in range(2):
        ((ids, _),) = tokenizer.encode_pairs([text], [join([" c."])])
        assert ids.tolist() == [*encode([text.text])[0], *encode([" c."])[0]]
        n_seen, seen[:] = len(seen), []
    assert n_seen == 0


def test_a_tokenizer_that_merges_across_words_gets_the_text(caplog: pytest.LogCaptureFixture) -> None:
    merging = Tokenizer(models.BPE(unk_token="?"))
    pieces = ["?", *(chr(i) for i in range(32, 127)), "\n", "1 "]
    merging.model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("1", " ")], unk_token="?")
    encode = encoder(merging)
    with caplog.at_level(logging.INFO, logger="cytoglot"):
        tokenizer = GeneTokenizer(encode, VOCABULARY)
    assert tokenizer.why_plain is not None
    assert "does not keep words apart" in caplog.text
    ((ids, n_prompt),) = tokenizer.encode_pairs(
        [join(["Genes: ", ("GENE1", "GENE2"), ". Type:"])], [join([" B cell."])]
    )
    assert ids[:n_prompt].tolist() == encode(["Genes: GENE1 GENE2. Type:"])[0]
    assert ids[n_prompt:].tolist() == encode([" B cell."])[0]


def test_a_check_on_other_texts_can_still_turn_it_off() -> None:
    encode = ENCODERS["byte-level"]()

    def odd(texts: list[str]) -> list[list[int]]:
        return [[1] if text == "a GENE1. b" else ids for text, ids in zip(texts, encode(texts), strict=True)]

    tokenizer = GeneTokenizer(odd, VOCABULARY)
    one, two = (join(["a ", of_table((gene,)), ". b"]) for gene in ("GENE1", "GENE2"))
    assert tokenizer.check([two], [join([" c."])])
    assert not tokenizer.check([one], [join([" c."])])
    assert tokenizer.why_plain is not None
    assert tokenizer.encode_pairs([one], [join([" c."])])[0][0][0] == 1


def test_few_remembered_stretches_change_nothing() -> None:
    encode = ENCODERS["metaspace"]()
    large, small = GeneTokenizer(encode, VOCABULARY), GeneTokenizer(encode, VOCABULARY, remembered=4)
    gene = of_table(("GENE3",))
    for number in range(30):
        texts = [join([f"{number} genes: ", gene, f". Type {i}:"]) for i in range(3)]
        answers = [join([" B."])] * 3
        pairs = zip(large.encode_pairs(texts, answers), small.encode_pairs(texts, answers), strict=True)
        assert all(np.array_equal(a, b) and n == m for (a, n), (b, m) in pairs)
