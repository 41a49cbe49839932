from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cytoglot.errors import InputError
from cytoglot.lm.model.tokenizer import (
    build_tokenizer,
    encode_completions,
    encode_pair,
    encode_pairs,
    encode_prompts,
    opening_ids,
    padding_id,
    word_token_ids,
)

GENES = ("ACTB", "HLA-DRA", "AC093323.3", "MT-ND1", "B2M")


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in encode_completions(tokenizer, [text])[0]]


def test_words_behind_a_space_are_one_token_whatever_characters_they_hold():
    words = ["ACTB", "HLA-DRA", "AC093323.3", "MT-ND1", "TRB@", "si:ch211-1", "1-Mar", "Gène", "A--B", "(x)", "Y_RNA"]
    tokenizer = build_tokenizer(words, ["Genes of a cell."])
    for word in words:
        assert pieces(tokenizer, f" {word}") == [f" {word}"]
        assert pieces(tokenizer, f" ACTB {word}, {word}.")[-4:] == [f" {word}", ",", f" {word}", "."]


def test_a_longer_unknown_word_does_not_start_with_a_known_one():
    tokenizer = build_tokenizer(["TRB", "TRB@", "TRB@X", "CD3"], [])
    assert pieces(tokenizer, " TRB TRB@ TRB@X TRB@.") == [" TRB", " TRB@", " TRB@X", " TRB@", "."]
    assert " CD3" not in pieces(tokenizer, " CD3D")
    assert " TRB@" not in pieces(tokenizer, " TRB@XY")


def test_word_ids_are_consecutive_in_the_order_of_the_words(word_tokenizer, words):
    ids = word_token_ids(word_tokenizer, words)
    assert ids.tolist() == list(range(len(word_tokenizer) - len(words), len(word_tokenizer)))


def test_words_that_bpe_would_merge_keep_their_place():
    tokenizer = build_tokenizer(["cell", "type"], ["the cell type is a cell type, cells"] * 20)
    assert np.diff(word_token_ids(tokenizer, ["cell", "type"])).tolist() == [1]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_exactly(word_tokenizer, text):
    ids = encode_prompts(word_tokenizer, [text])[0]
    assert word_tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*GENES, "UNKNOWN1", "cell", "\n", " ", ".", "B2M."]), max_size=12).map(" ".join))
def test_cell_sentences_come_back_exactly(word_tokenizer, text):
    ids = encode_prompts(word_tokenizer, [text])[0]
    assert word_tokenizer.decode(ids, skip_special_tokens=True) == text


def test_reloaded_with_plain_transformers_it_gives_the_same_ids(word_tokenizer, tmp_path, prompts):
    word_tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*prompts, " ACTB unknown\n\nGène 日本 ", "<eos>"]
    assert reloaded(texts)["input_ids"] == word_tokenizer(texts)["input_ids"]
    assert (reloaded.bos_token, reloaded.eos_token, reloaded.pad_token) == ("<bos>", "<eos>", "<pad>")
    for ours, theirs in zip(encode_prompts(word_tokenizer, texts), encode_prompts(reloaded, texts), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_the_same_input_gives_the_same_tokenizer(word_tokenizer, words, prompts):
    make = lambda: build_tokenizer(words, prompts, n_subwords=320, context_length=512)  # noqa: E731
    assert make().get_vocab() == make().get_vocab()
    assert make().model_max_length == 512


def test_words_in_the_texts_do_not_use_up_merges():
    # 300 - 256 = 44 merges; with the genes counted they would all go into gene names.
    sentence = " ".join(f"QXZ{i:03d}" for i in range(300))
    tokenizer = build_tokenizer(
        [f"QXZ{i:03d}" for i in range(300)], [f"Predict the type: {sentence}."] * 3, n_subwords=300
    )
    assert not any("QX" in piece for piece in list(tokenizer.get_vocab()) if not piece.startswith("ĠQXZ"))
    assert pieces(tokenizer, " type") == [" type"]


@pytest.mark.parametrize(
    ("words", "n_subwords", "message"),
    [
        (["A", "B", "A"], 300, "distinct, found 'A' more than once"),
        (["A", "B C"], 300, "white space, found 1 others, such as 'B C'"),
        (["A", ""], 300, "non-empty"),
        (["A"], 100, "at least 256, one for each byte, found 100"),
    ],
)
def test_faulty_words_are_named(words, n_subwords, message):
    with pytest.raises(InputError, match=message):
        build_tokenizer(words, [], n_subwords=n_subwords)


def test_words_of_another_tokenizer_are_refused(byte_tokenizer):
    with pytest.raises(InputError, match=r"found 1 of 1 that are several, such as 'AC093323\.3'"):
        word_token_ids(byte_tokenizer, ["AC093323.3"])


def test_our_tokenizer_opens_with_bos_and_neox_with_nothing(word_tokenizer, byte_tokenizer, prompts):
    assert opening_ids(word_tokenizer).tolist() == [word_tokenizer.bos_token_id]
    assert opening_ids(byte_tokenizer).tolist() == []
    assert encode_prompts(word_tokenizer, ["Cell?"])[0][0] == word_tokenizer.bos_token_id
    # and both equal what a plain call gives, so transformers users see what the model was trained on
    for tokenizer in (word_tokenizer, byte_tokenizer):
        assert [ids.tolist() for ids in encode_prompts(tokenizer, prompts)] == tokenizer(list(prompts))["input_ids"]


def test_a_tokenizer_that_also_closes_its_texts_leaves_prompts_open(word_tokenizer, tmp_path):
    word_tokenizer.save_pretrained(tmp_path)
    closing = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True, add_eos_token=True)
    assert closing("Cell?")["input_ids"][-1] == closing.eos_token_id
    assert encode_prompts(closing, ["Cell?"])[0].tolist() == word_tokenizer("Cell?")["input_ids"]


def test_special_tokens_in_a_text_stay_text(word_tokenizer):
    ids = encode_prompts(word_tokenizer, ["a <eos> tissue<pad>"])[0]
    assert not {word_tokenizer.eos_token_id, word_tokenizer.pad_token_id} & set(ids.tolist())
    assert word_tokenizer.decode(ids, skip_special_tokens=True) == "a <eos> tissue<pad>"


def test_ids_are_those_of_a_plain_call_that_splits_special_tokens(word_tokenizer, byte_tokenizer, prompts):
    texts = [*prompts, "", " a <eos> b<bos>", "<|endoftext|> Müller γδ", " HLA-DRA"]
    for tokenizer in (word_tokenizer, byte_tokenizer):
        expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        tokenizer(texts, max_length=3, truncation=True)  # leaves its settings in the backend
        assert [ids.tolist() for ids in encode_completions(tokenizer, texts)] == expected


def test_a_pair_is_prompt_then_completion_then_eos(word_tokenizer, byte_tokenizer):
    for tokenizer in (word_tokenizer, byte_tokenizer):
        ids, n_prompt = encode_pair(tokenizer, "Type:", " B cell.")
        assert ids[:n_prompt].tolist() == tokenizer("Type:")["input_ids"]
        assert tokenizer.decode(ids[n_prompt:-1]) == " B cell."
        assert ids[-1] == tokenizer.eos_token_id
        assert encode_pair(tokenizer, "Type:", " B cell.", eos=False)[0].tolist() == ids[:-1].tolist()


def test_many_pairs_are_encoded_as_one_by_one(word_tokenizer, prompts, labels):
    many = encode_pairs(word_tokenizer, prompts, labels[: len(prompts)])
    for (ids, n_prompt), prompt, label in zip(many, prompts, labels, strict=False):
        alone, n_alone = encode_pair(word_tokenizer, prompt, label)
        assert (ids.tolist(), n_prompt) == (alone.tolist(), n_alone)
    assert encode_pairs(word_tokenizer, [], []) == []


def test_the_boundary_holds_where_the_tokenizer_would_merge_across_it(byte_tokenizer):
    ids, n_prompt = encode_pair(byte_tokenizer, "The ce", "ll")
    assert byte_tokenizer.decode(ids[:n_prompt]) == "The ce"
    assert len(byte_tokenizer("The cell")["input_ids"]) < len(ids) - 1


def test_tokenizers_that_put_a_space_in_front_get_only_one():
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "▁", "a", "B", "c", ":", "▁a", "▁B", "▁c"])}
    merges = [("▁", "a"), ("▁", "B"), ("▁", "c")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # Llama 2
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    ids, n_prompt = encode_pair(tokenizer, "a:", " B c")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁a", ":", "▁B", "▁c", "</s>"]
    assert n_prompt == 3


def test_no_texts_give_no_ids_and_one_text_is_not_a_list(word_tokenizer):
    assert encode_prompts(word_tokenizer, []) == []
    assert encode_prompts(word_tokenizer, [""])[0].tolist() == [word_tokenizer.bos_token_id]
    with pytest.raises(InputError, match="expected a list of texts, found one text of 5 characters"):
        encode_prompts(word_tokenizer, "Cell?")


def test_eos_is_asked_of_a_tokenizer_that_has_one(word_tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer.backend_tokenizer)
    assert padding_id(bare) == 0
    with pytest.raises(InputError, match="no end-of-text token"):
        encode_completions(bare, [" B cell."], eos=True)


def test_the_padding_id_is_pad_else_eos(word_tokenizer, byte_tokenizer):
    assert padding_id(word_tokenizer) == word_tokenizer.pad_token_id
    assert padding_id(byte_tokenizer) == byte_tokenizer.eos_token_id
