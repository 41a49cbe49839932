from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch

from cytoglot.errors import InputError
from cytoglot.lm import embed as embed_module
from cytoglot.lm.embed import embed_texts
from cytoglot.lm.load import LanguageModel
from cytoglot.lm.tokenizer import encode_prompts, word_token_ids

FAMILIES = ["llama", "neox", "gpt2", "gemma3", "mistral", "bloom"]


def alone(lm, text, layer=-1):
    """Hidden states of one text from the complete model, nothing padded, shape (t, d)."""
    ids = torch.from_numpy(encode_prompts(lm.tokenizer, [text])[0])[None]
    with torch.no_grad():
        return lm.model(ids, output_hidden_states=True).hidden_states[layer][0].numpy()


@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_is_the_mean_of_the_hidden_states_of_the_text_alone(family, kind, make_lm, prompts, request):
    lm = make_lm(family, request.getfixturevalue(kind))
    found = embed_texts(lm, prompts)
    assert found.shape == (len(prompts), 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [alone(lm, text).mean(axis=0) for text in prompts], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2", "gemma3"])
def test_the_vector_is_the_same_whatever_the_batch_size_and_order(family, make_lm, word_tokenizer, prompts):
    lm = make_lm(family, word_tokenizer)
    whole = embed_texts(lm, prompts)
    for tokens in (1, 30, 70, 100_000):
        np.testing.assert_allclose(embed_texts(lm, prompts, batch_tokens=tokens), whole, atol=1e-5)
    order = [4, 2, 0, 3, 1]
    np.testing.assert_allclose(embed_texts(lm, [prompts[i] for i in order]), whole[order], atol=1e-5)
    np.testing.assert_allclose(embed_texts(lm, [prompts[1]])[0], whole[1], atol=1e-5)


def test_a_short_text_beside_a_long_one_is_not_mixed_with_padding(scratch_lm):
    # The original averages over padding: a 40-gene cell beside one of 200 had a cosine of 0.22 to itself alone.
    short, long = "Genes: ACTB.", "Genes: " + "B2M GNLY " * 60
    together = embed_texts(scratch_lm, [short, long], batch_tokens=100_000)[0]
    np.testing.assert_allclose(together, embed_texts(scratch_lm, [short])[0], atol=1e-5)


def test_the_last_token_and_other_layers_can_be_taken(scratch_lm, prompts):
    last = embed_texts(scratch_lm, prompts, pooling="last")
    np.testing.assert_allclose(last, [alone(scratch_lm, text)[-1] for text in prompts], atol=1e-5)
    for layer in (0, 1, 2, -1, -2, -3):
        found = embed_texts(scratch_lm, prompts, layer=layer)
        np.testing.assert_allclose(found, [alone(scratch_lm, t, layer).mean(axis=0) for t in prompts], atol=1e-5)


def test_the_mean_can_be_restricted_to_words(scratch_lm, words):
    tokens = word_token_ids(scratch_lm.tokenizer, words)
    text = "Genes: ACTB B2M. Type:"
    hidden = alone(scratch_lm, text)
    is_word = np.isin(encode_prompts(scratch_lm.tokenizer, [text])[0], tokens)
    assert is_word.sum() == 2
    found = embed_texts(scratch_lm, [text, "Cell?"], only_tokens=tokens)
    np.testing.assert_allclose(found[0], hidden[is_word].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found[1], alone(scratch_lm, "Cell?").mean(axis=0), atol=1e-5)  # no word: all tokens


def test_the_output_layer_does_not_run(scratch_lm, prompts):
    calls = []
    hook = scratch_lm.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    embed_texts(scratch_lm, prompts)
    embed_texts(scratch_lm, prompts, layer=1)
    hook.remove()
    assert calls == []


def test_no_gradient_graph_is_kept_and_the_mode_is_restored(make_lm, word_tokenizer, prompts):
    lm = make_lm("gpt2", word_tokenizer)
    seen = []
    hook = lm.body.register_forward_hook(lambda _m, _i, out: seen.append(out.last_hidden_state.requires_grad))
    lm.model.train()
    try:
        first = embed_texts(lm, prompts)
        assert lm.model.training
        np.testing.assert_array_equal(first, embed_texts(lm, prompts))  # no dropout although training
    finally:
        lm.model.eval()
        hook.remove()
    assert seen
    assert not any(seen)
    gc.collect()
    assert not any(torch.is_tensor(o) and o.grad_fn is not None for o in gc.get_objects() if type(o) is torch.Tensor)


def test_batches_are_of_like_length_and_bounded(scratch_lm):
    texts = ["Cell" + " ACTB" * n for n in (1, 90, 2, 95, 3, 100)]
    shapes = []
    hook = scratch_lm.model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[:2]))
    embed_texts(scratch_lm, texts, batch_tokens=330)
    hook.remove()
    assert [shape[0] for shape in shapes] == [3, 3]
    assert all(rows * length <= 330 for rows, length in shapes)
    assert shapes[1][1] < 10


def test_no_texts_give_no_rows(scratch_lm):
    assert embed_texts(scratch_lm, []).shape == (0, 32)


def test_half_precision_models_give_float32_vectors(make_lm, word_tokenizer, prompts):
    full = make_lm("llama", word_tokenizer)
    half = LanguageModel(model=copy.deepcopy(full.model).to(torch.bfloat16), tokenizer=word_tokenizer)
    found, expected = embed_texts(half, prompts), embed_texts(full, prompts)
    assert found.dtype == np.float32
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


def test_faulty_options_are_named(scratch_lm, hub_like_lm):
    with pytest.raises(InputError, match="layer must lie between -3 and 2 in this model, found 3"):
        embed_texts(scratch_lm, ["Cell?"], layer=3)
    with pytest.raises(InputError, match="pooling must be 'mean' or 'last', found 'max'"):
        embed_texts(scratch_lm, ["Cell?"], pooling="max")
    with pytest.raises(InputError, match="only_tokens restricts the mean"):
        embed_texts(scratch_lm, ["Cell?"], pooling="last", only_tokens=np.array([1]))
    with pytest.raises(InputError, match="text 0 is empty"):
        embed_texts(hub_like_lm, [""])
    with pytest.raises(InputError, match=r"1 of 2 do not fit .* 256 tokens: text 1 has 30\d"):
        embed_texts(scratch_lm, ["Cell?", "Cell" + " ACTB" * 300])


def test_weights_of_the_mean_are_zero_on_padding_and_sum_to_one():
    rows = [np.array([5, 6, 7]), np.array([5])]
    np.testing.assert_allclose(embed_module._pooling_weights(rows, "mean", None), [[1 / 3] * 3, [1, 0, 0]])
    np.testing.assert_allclose(embed_module._pooling_weights(rows, "last", None), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(
        embed_module._pooling_weights(rows, "mean", np.array([6, 7])), [[0, 0.5, 0.5], [1, 0, 0]]
    )
