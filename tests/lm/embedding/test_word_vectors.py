"""Vectors of words, checked against the model's own table and hidden states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytoglot.errors import InputError
from cytoglot.lm.embedding.word_vectors import WordVectorMeans, static_word_vectors
from cytoglot.lm.model.tokenizer import encode_prompts, word_token_ids

TEXTS = ("Genes: ACTB B2M GNLY.", "Genes: B2M ACTB.", "Genes: LYZ B2M HLA-DRA. Type:")
GENES = ("ACTB", "B2M", "GNLY", "HLA-DRA", "LYZ", "NKG7")
WORDS = ([0, 1, 2], [1, 0], [4, 1, 3])


def _spans(text):
    found, first = [], 7
    for gene in text[7:].split(".")[0].split(" "):
        found.append((first, first + len(gene)))
        first += len(gene) + 1
    return np.array(found)


def _hidden(lm, text, layer=-1):
    ids = torch.from_numpy(encode_prompts(lm.tokenizer, [text])[0])[None]
    with torch.no_grad():
        return lm.model(ids, output_hidden_states=True).hidden_states[layer][0].numpy()


def test_a_word_of_one_token_has_its_row_of_the_table(scratch_lm, words):
    rows = word_token_ids(scratch_lm.tokenizer, words)
    table = scratch_lm.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(static_word_vectors(scratch_lm, words), table[rows])


def test_a_word_of_several_tokens_has_the_mean_of_their_rows(hub_like_lm):
    ids = hub_like_lm.tokenizer(" ZZTOP9")["input_ids"]
    assert len(ids) > 2
    table = hub_like_lm.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(static_word_vectors(hub_like_lm, ["ZZTOP9"])[0], table[ids].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_mean_over_occurrences_by_hand(scratch_lm, layer):
    means = WordVectorMeans(lm=scratch_lm, n_words=len(GENES), layer=layer)
    means.add(TEXTS[:2], [np.array(w) for w in WORDS[:2]], [_spans(t) for t in TEXTS[:2]])
    means.add(TEXTS[2:], [np.array(WORDS[2])], [_spans(TEXTS[2])])
    np.testing.assert_array_equal(means.counts_w, [2, 3, 1, 1, 1, 0])
    found = means.means()
    assert found.dtype == np.float32
    token_of = dict(zip(GENES, word_token_ids(scratch_lm.tokenizer, GENES), strict=True))
    for number, gene in enumerate(GENES[:-1]):
        occurrences = []
        for text in TEXTS:
            ids = encode_prompts(scratch_lm.tokenizer, [text])[0]
            occurrences += list(_hidden(scratch_lm, text, layer)[ids == token_of[gene]])
        assert len(occurrences) == means.counts_w[number]
        np.testing.assert_allclose(found[number], np.mean(occurrences, axis=0), atol=1e-5)
    assert np.isnan(found[-1]).all(), "NKG7 is in no text"


def test_all_tokens_of_a_word_count(hub_like_lm):
    text = TEXTS[2]
    tokens = hub_like_lm.tokenizer.convert_ids_to_tokens(encode_prompts(hub_like_lm.tokenizer, [text])[0].tolist())
    ends = np.cumsum([len(token) for token in tokens])  # ASCII: a character of a token is one of the text
    (first, after) = _spans(text)[2]
    within = [i for i, end in enumerate(ends) if first < end <= after]
    assert len(within) > 1
    means = WordVectorMeans(lm=hub_like_lm, n_words=len(GENES))
    means.add([text], [np.array(WORDS[2])], [_spans(text)])
    np.testing.assert_allclose(means.means()[3], _hidden(hub_like_lm, text)[within].mean(axis=0), atol=1e-5)


def test_batches_and_order_change_nothing(hub_like_lm):
    def run(order, batch_tokens):
        means = WordVectorMeans(lm=hub_like_lm, n_words=len(GENES), batch_tokens=batch_tokens)
        means.add([TEXTS[i] for i in order], [np.array(WORDS[i]) for i in order], [_spans(TEXTS[i]) for i in order])
        return means.means()

    whole = run([0, 1, 2], None)
    np.testing.assert_allclose(run([2, 0, 1], 1), whole, atol=1e-5)


def test_words_without_tokens_are_refused(scratch_lm):
    with pytest.raises(InputError, match="expected words of at least one token, found 1 without, such as ''"):
        static_word_vectors(scratch_lm, ["ACTB", ""])
    means = WordVectorMeans(lm=scratch_lm, n_words=1)
    with pytest.raises(InputError, match="expected a token for every word, found none for ''"):
        means.add([TEXTS[0]], [np.array([0])], [np.array([[7, 7]])])
