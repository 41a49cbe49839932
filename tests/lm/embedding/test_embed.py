from __future__ import annotations

import copy
import gc
import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.embedding import embed as embed_module
from cytoglot.lm.embedding.embed import (
    MAX_PADDING,
    embed_texts,
    in_precision,
    pooled_states,
    token_ranges,
)
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import encode_prompts, encode_prompts_with_offsets, word_token_ids
from cytoglot.lm.runtime.batches import length_batches

FAMILIES = ["llama", "neox", "gpt2", "gemma3", "mistral", "bloom"]
SENTENCE = "ACTB B2M HLA-DRA"


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


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_a_layer_is_what_the_whole_model_says_and_deeper_ones_do_not_run(family, make_lm, word_tokenizer, prompts):
    lm = make_lm(family, word_tokenizer)
    ran = []
    (layers,) = [m for m in lm.body.children() if isinstance(m, torch.nn.ModuleList) and len(m) == 2]
    hooks = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(layers)]
    for layer in (0, 1, 2):
        ran.clear()
        found = embed_texts(lm, prompts, layer=layer)
        assert set(ran) == set(range(layer))
        np.testing.assert_allclose(found, [alone(lm, t, layer).mean(axis=0) for t in prompts], atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert alone(lm, prompts[0]).shape[1] == 32, "the model runs to its end afterwards"


def test_a_body_whose_layers_cannot_be_told_runs_whole(scratch_lm, prompts, monkeypatch):
    expected = embed_texts(scratch_lm, prompts, layer=1)
    monkeypatch.setattr(torch.nn.Module, "children", lambda self: iter(()))
    np.testing.assert_allclose(embed_texts(scratch_lm, prompts, layer=1), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
def test_a_span_takes_the_tokens_of_the_sentence_and_no_other(kind, make_lm, request):
    lm = make_lm("llama", request.getfixturevalue(kind))
    text = f"Genes: {SENTENCE}. Type:"
    span = (len("Genes: "), len("Genes: ") + len(SENTENCE))
    tokens = lm.tokenizer.convert_ids_to_tokens(encode_prompts(lm.tokenizer, [text])[0].tolist())
    pieces = [token.replace("Ġ", " ").replace("<bos>", "") for token in tokens]
    ends = np.cumsum([len(piece) for piece in pieces])
    assert ends[-1] == len(text)
    within = [span[0] < end <= span[1] for end in ends]
    assert "".join(piece for piece, taken in zip(pieces, within, strict=True) if taken) == " " + SENTENCE
    hidden = alone(lm, text)
    found = embed_texts(lm, [text], spans=[span])
    np.testing.assert_allclose(found[0], hidden[within].mean(axis=0), atol=1e-5)
    last = embed_texts(lm, [text], spans=[span], pooling="last")
    np.testing.assert_allclose(last[0], hidden[np.flatnonzero(within)[-1]], atol=1e-5)


def test_one_token_for_each_gene_is_what_a_span_of_genes_takes(scratch_lm, words):
    text = f"Genes: {SENTENCE}. Type:"
    is_word = np.isin(encode_prompts(scratch_lm.tokenizer, [text])[0], word_token_ids(scratch_lm.tokenizer, words))
    assert is_word.sum() == 3
    found = embed_texts(scratch_lm, [text], spans=[(7, 7 + len(SENTENCE))])
    np.testing.assert_allclose(found[0], alone(scratch_lm, text)[is_word].mean(axis=0), atol=1e-5)


def test_a_span_owes_nothing_to_the_words_behind_it(hub_like_lm):
    span = (7, 7 + len(SENTENCE))
    first, second = embed_texts(
        hub_like_lm, [f"Genes: {SENTENCE}. Type:", f"Genes: {SENTENCE}. And something else"], spans=[span, span]
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_an_empty_span_takes_the_whole_text_and_it_is_said(scratch_lm, caplog):
    with caplog.at_level(logging.WARNING, logger="cytoglot"):
        found = embed_texts(scratch_lm, ["Genes: . Type:", "Cell?"], spans=[(7, 7), (0, 5)])
    np.testing.assert_allclose(found[0], alone(scratch_lm, "Genes: . Type:").mean(axis=0), atol=1e-5)
    assert "1 of 2 spans hold no token" in caplog.text


def test_characters_of_several_bytes_are_counted_once(hub_like_lm):
    text = "Zelle: αβγ ACTB."
    (row,), (offsets,) = encode_prompts_with_offsets(hub_like_lm.tokenizer, [text])
    np.testing.assert_array_equal(row, encode_prompts(hub_like_lm.tokenizer, [text])[0])
    ((first, after),) = token_ranges(offsets, np.array([[11, 15]]))
    assert hub_like_lm.tokenizer.decode(row[first:after]) == " ACTB"
    ((first, after),) = token_ranges(offsets, np.array([[8, 9]]))
    assert hub_like_lm.tokenizer.decode(row[first:after]).strip() == "β"


def test_token_ranges_by_hand():
    offsets = np.array([[0, 0], [0, 5], [5, 10], [10, 12], [12, 13]])  # an opening token, then "Cell: ACTB7."
    spans = np.array([[6, 12], [0, 5], [6, 6], [12, 13], [0, 13], [11, 12]])
    np.testing.assert_array_equal(token_ranges(offsets, spans), [[2, 4], [1, 2], [2, 2], [4, 5], [1, 5], [3, 4]])


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
    texts = ["Cell" + " ACTB" * n for n in (1, 97, 1, 98, 3, 100)]
    shapes = []
    hook = scratch_lm.model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[:2]))
    embed_texts(scratch_lm, texts, batch_tokens=330)
    hook.remove()
    assert [shape[0] for shape in shapes] == [3, 1, 2]
    assert all(rows * length <= 330 for rows, length in shapes)
    assert shapes[1][1] < 10


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    n_computed = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / n_computed if n_computed else 0.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=200), st.integers(1, 5000))
def test_padding_stays_under_its_limit_whatever_the_lengths(lengths, max_tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = length_batches(lengths, max_tokens=max_tokens, max_padding=MAX_PADDING)
    assert sorted(np.concatenate([*batches, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    assert padding_share(lengths, batches) < MAX_PADDING
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= max_tokens for batch in batches)
    # no batch is cut for nothing: the first row of the next one would have been too much
    for batch, following in itertools.pairwise(batches):
        longer = np.append(batch, following[0])
        too_many = len(longer) * lengths[batch[0]] > max_tokens
        assert too_many or padding_share(lengths, [longer]) >= MAX_PADDING - 1e-9


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_vector_does_not_depend_on_its_company(data, make_lm, word_tokenizer, words):
    lm = make_lm("neox", word_tokenizer)
    sentences = data.draw(st.lists(st.lists(st.sampled_from(words), min_size=1, max_size=40), min_size=1, max_size=6))
    texts = ["Genes: " + " ".join(genes) for genes in sentences]
    layer = data.draw(st.sampled_from([-1, 0, 1]))
    pooling = data.draw(st.sampled_from(["mean", "last"]))
    spans = data.draw(st.sampled_from([None, [(7, len(text)) for text in texts]]))
    tokens = data.draw(st.integers(1, 300))
    together = embed_texts(lm, texts, layer=layer, pooling=pooling, spans=spans, batch_tokens=tokens)
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = embed_texts(
        lm, [texts[i] for i in order], layer=layer, pooling=pooling, spans=spans and [spans[i] for i in order]
    )
    np.testing.assert_allclose(shuffled, together[order], atol=2e-5)
    i = order[0]
    single = embed_texts(lm, [texts[i]], layer=layer, pooling=pooling, spans=spans and [spans[i]])
    np.testing.assert_allclose(single[0], together[i], atol=2e-5)


def test_many_texts_are_read_a_few_at_a_time_and_keep_their_places(scratch_lm):
    rng = np.random.default_rng(0)
    texts = ["Genes:" + " ACTB" * n for n in rng.integers(1, 60, size=90)]
    spans = [(6, len(text)) for text in texts]
    chunks = list(embed_module._chunks_to_read(texts, 50))
    assert len(chunks) > 10
    assert sorted(np.concatenate(chunks).tolist()) == list(range(90))
    found = embed_texts(scratch_lm, texts, spans=spans, batch_tokens=50)
    np.testing.assert_allclose(found, embed_texts(scratch_lm, texts, spans=spans, batch_tokens=10_000), atol=1e-5)
    np.testing.assert_allclose(found[7], alone(scratch_lm, texts[7])[-texts[7].count("ACTB") :].mean(axis=0), atol=1e-5)
    texts[61] = "Genes:" + " ACTB" * 300
    with pytest.raises(InputError, match="text 61 does not fit"):
        embed_texts(scratch_lm, texts, batch_tokens=50)


def test_several_parts_of_a_text_are_pooled_at_once(scratch_lm):
    texts = ["Genes: ACTB B2M GNLY.", "Cell?"]
    rows = encode_prompts(scratch_lm.tokenizer, texts)
    ranges = [np.array([[0, 2], [3, 5], [1, 1]]), np.array([[0, len(rows[1])]])]
    found = dict(pooled_states(scratch_lm, rows, ranges))
    hidden = alone(scratch_lm, texts[0])
    np.testing.assert_allclose(found[0], [hidden[:2].mean(0), hidden[3:5].mean(0), np.zeros(32)], atol=1e-5)
    np.testing.assert_allclose(found[1], [alone(scratch_lm, "Cell?").mean(0)], atol=1e-5)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(scratch_lm, prompts, monkeypatch, caplog):
    expected = embed_texts(scratch_lm, prompts * 4)
    seen = []
    forward = embed_module._hidden_states

    def small_memory(lm, ids_bt, layer):
        seen.append(tuple(ids_bt.shape))
        if len(ids_bt) > 1:
            raise torch.OutOfMemoryError("injected")
        return forward(lm, ids_bt, layer)

    monkeypatch.setattr(embed_module, "_hidden_states", small_memory)
    with caplog.at_level(logging.WARNING, logger="cytoglot"):
        found = embed_texts(scratch_lm, prompts * 4, batch_tokens=100_000)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [shape[0] for shape in seen[:3]] == [4, 2, 1]
    assert "out of memory with 4 x text in a batch; going on with 2" in caplog.text


def test_a_text_that_does_not_fit_alone_is_an_error(scratch_lm, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(embed_module, "_hidden_states", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="injected") as caught:
        embed_texts(scratch_lm, ["Cell?"])
    assert "a single text does not fit" in caught.value.__notes__[0]


def test_the_share_of_padding_is_logged(scratch_lm, caplog):
    with caplog.at_level(logging.INFO, logger="cytoglot"):
        embed_texts(scratch_lm, ["Cell ACTB", "Cell ACTB"])
    assert "2 texts of " in caplog.text
    assert " in 1 batches, 0.0 % padding" in caplog.text


def test_no_texts_give_no_rows(scratch_lm):
    assert embed_texts(scratch_lm, []).shape == (0, 32)


def test_half_precision_models_give_float32_vectors(make_lm, word_tokenizer, prompts):
    full = make_lm("llama", word_tokenizer)
    half = LanguageModel(model=copy.deepcopy(full.model).to(torch.bfloat16), tokenizer=word_tokenizer)
    found, expected = embed_texts(half, prompts), embed_texts(full, prompts)
    assert found.dtype == np.float32
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


def test_half_precision_is_a_copy_that_leaves_the_model_alone(make_lm, byte_tokenizer, prompts):
    lm = make_lm("neox", byte_tokenizer)
    assert in_precision(lm, "auto") is lm, "a CPU computes in the model's own type"
    assert in_precision(lm, "float32") is lm
    half = in_precision(lm, "bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    # rotary frequencies in bfloat16 would shift late positions by whole turns
    frequencies = [buffer.dtype for name, buffer in half.model.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert set(frequencies) == {torch.float32}
    found, expected = embed_texts(lm, prompts, dtype="bfloat16"), embed_texts(lm, prompts)
    assert not np.array_equal(found, expected)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99
    np.testing.assert_array_equal(embed_texts(half, prompts), found)


def test_tied_weights_stay_tied_in_half_precision(make_lm, word_tokenizer):
    half = in_precision(make_lm("gpt2", word_tokenizer), "bfloat16")
    assert half.model.get_input_embeddings().weight is half.model.get_output_embeddings().weight


def test_faulty_options_are_named(scratch_lm, hub_like_lm):
    with pytest.raises(InputError, match="layer must lie between -3 and 2 in this model, found 3"):
        embed_texts(scratch_lm, ["Cell?"], layer=3)
    with pytest.raises(InputError, match="pooling must be 'mean' or 'last', found 'max'"):
        embed_texts(scratch_lm, ["Cell?"], pooling="max")
    with pytest.raises(InputError, match="dtype must be auto, float32 or bfloat16, found 'int8'"):
        embed_texts(scratch_lm, ["Cell?"], dtype="int8")
    with pytest.raises(InputError, match="expected one span for each of 1 texts, found 2"):
        embed_texts(scratch_lm, ["Cell?"], spans=[(0, 1), (0, 1)])
    with pytest.raises(InputError, match=r"span 0 must lie in its text of 5 characters, found \(3, 6\)"):
        embed_texts(scratch_lm, ["Cell?"], spans=[(3, 6)])
    with pytest.raises(InputError, match="batch_tokens must be at least 1, found 0"):
        embed_texts(scratch_lm, ["Cell?"], batch_tokens=0)
    with pytest.raises(InputError, match="text 0 is empty"):
        embed_texts(hub_like_lm, [""])
    with pytest.raises(InputError, match=r"text 1 does not fit .* 256 tokens: it has 30\d"):
        embed_texts(scratch_lm, ["Cell?", "Cell" + " ACTB" * 300])


def test_weights_of_the_mean_are_zero_on_padding_and_sum_to_one():
    rows = [np.array([5, 6, 7]), np.array([5])]
    whole, one = np.array([[0, 3]]), np.array([[0, 1]])
    np.testing.assert_allclose(embed_module._pooling_weights(rows, [whole, one]), [[[1 / 3] * 3], [[1, 0, 0]]])
    two = np.array([[1, 3], [0, 1]])
    np.testing.assert_allclose(
        embed_module._pooling_weights(rows, [two, one]), [[[0, 0.5, 0.5], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]]]
    )


def test_vectors_of_damaged_weights_are_refused(make_lm, word_tokenizer):
    lm = make_lm("llama", word_tokenizer)
    damaged = copy.deepcopy(lm.model)
    damaged.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(ResourceError, match="vectors that are not finite"):
        embed_texts(LanguageModel(model=damaged, tokenizer=lm.tokenizer), ["ACTB B2M"])
