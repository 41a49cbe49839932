from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from cytoglot.config import load_recipe
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.scratch import PRESETS, ScratchSettings, scratch_model, scratch_settings, start_at_frequencies
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_prompts, word_token_ids

WORDS = [f"G{i}" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS, ["Genes of a cell:"], n_subwords=260)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(60, 8)) * [4, 3, 2, 2, 1, 1, 1, 1] + 5


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return [rng.permutation(60)[: rng.integers(10, 40)] for _ in range(80)]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_same_seed_gives_the_same_weights_and_touches_no_global_generator(tokenizer, vectors, texts):
    options = {"words": WORDS, "word_vectors": vectors, "word_texts": texts}
    state = torch.get_rng_state()
    first, second = (weights(scratch_model(tokenizer, "tiny", seed=7, **options)) for _ in range(2))
    other = weights(scratch_model(tokenizer, "tiny", seed=8, **options))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], other["model.layers.0.mlp.up_proj.weight"])
    torch.manual_seed(123)  # nor does the global generator matter
    third = weights(scratch_model(tokenizer, "tiny", seed=7, **options))
    assert all(torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_models_of_their_size(preset, tokenizer):
    model = scratch_model(tokenizer, preset, seed=0)
    assert model.config.hidden_size == PRESETS[preset].hidden_size
    assert model.config.num_hidden_layers == PRESETS[preset].n_layers
    assert model.config.vocab_size == len(tokenizer)
    assert not model.training
    special = (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert special == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids = torch.from_numpy(encode_prompts(tokenizer, ["Genes: G1 G2"])[0])[None]
    assert torch.isfinite(model(ids).logits).all()


def test_presets_differ_in_size_in_the_order_of_their_names(tokenizer):
    sizes = [scratch_model(tokenizer, preset, seed=0).num_parameters() for preset in ("tiny", "small", "base", "large")]
    assert sizes == sorted(set(sizes))


def test_settings_reach_the_configuration_and_survive_saving(tokenizer, tmp_path):
    settings = scratch_settings(
        "tiny",
        {"tie_embeddings": True, "attention_dropout": 0.2, "rope_theta": 500.0, "context_length": 99, "init_std": 0.05},
    )
    model = scratch_model(tokenizer, settings, seed=0)
    LanguageModel(model=model, tokenizer=tokenizer).save(tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for config in (model.config, loaded.config):
        assert (config.tie_word_embeddings, config.attention_dropout, config.max_position_embeddings) == (True, 0.2, 99)
        assert config.rope_parameters["rope_theta"] == 500.0
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.05, rel=0.05)


def test_recipes_can_name_every_setting(tmp_path):
    (tmp_path / "r.yaml").write_text("hidden_size: 64\n")
    settings = load_recipe(ScratchSettings, tmp_path / "r.yaml", ["n_layers=3", "pool_gain=0.5"])
    assert (settings.hidden_size, settings.n_layers, settings.pool_gain) == (64, 3, 0.5)
    with pytest.raises(InputError, match="unknown key 'n_layer', did you mean 'n_layers'"):
        load_recipe(ScratchSettings, overrides=["n_layer=3"])


def test_faulty_settings_are_named(tokenizer):
    with pytest.raises(UnknownNameError, match="unknown preset 'smal'; did you mean 'small'"):
        scratch_model(tokenizer, "smal", seed=0)
    with pytest.raises(ValidationError, match="multiple of 2 x n_heads = 14, found 64"):
        ScratchSettings(hidden_size=64, n_heads=7)
    with pytest.raises(ValidationError, match="pool_layer must be below n_layers = 2, found 2"):
        ScratchSettings(n_layers=2, pool_layer=2)


def test_word_vectors_become_the_embedding_up_to_one_scale(tokenizer, vectors):
    model = scratch_model(tokenizer, "tiny", seed=0, words=WORDS, word_vectors=vectors)
    rows = model.get_input_embeddings().weight[word_token_ids(tokenizer, WORDS)].detach().numpy()
    centred = vectors - vectors.mean(axis=0)
    scale = np.sqrt((centred**2).mean())
    np.testing.assert_allclose(rows[:, 1:9], centred / scale, atol=1e-5)  # column 0 is the constant
    np.testing.assert_allclose(rows[:, 0], np.sqrt(8), atol=1e-6)
    assert rows[:, 9:].std() == pytest.approx(0.3, rel=0.1)
    plain = scratch_model(tokenizer, "tiny", seed=0)
    others = np.setdiff1d(np.arange(len(tokenizer)), word_token_ids(tokenizer, WORDS))
    np.testing.assert_array_equal(
        model.get_input_embeddings().weight[others].detach(), plain.get_input_embeddings().weight[others].detach()
    )


def test_words_count_by_how_often_they_occur(tokenizer, vectors, texts):
    model = scratch_model(tokenizer, "tiny", seed=0, words=WORDS, word_vectors=vectors, word_texts=texts)
    rows = model.get_input_embeddings().weight[word_token_ids(tokenizer, WORDS)].detach().numpy()[:, 1:9]
    occurrences = np.concatenate(texts)
    np.testing.assert_allclose(rows[occurrences].mean(axis=0), 0, atol=1e-5)
    assert (rows[occurrences] ** 2).mean() == pytest.approx(1, rel=1e-4)


def test_one_extreme_word_does_not_set_the_scale_for_all(tokenizer, vectors):
    extreme = vectors.copy()
    extreme[3, 0] = 1e4
    model = scratch_model(tokenizer, "tiny", seed=0, words=WORDS, word_vectors=extreme)
    rows = model.get_input_embeddings().weight[word_token_ids(tokenizer, WORDS)].detach()
    assert float(rows[:, 1:9].abs().max()) == pytest.approx(8.0)


def test_the_first_attention_hands_on_the_mean_of_the_word_vectors(tokenizer, vectors, texts):
    """What layer 0's attention adds at the last of t words is close to gain x their mean vector, up to one scale."""
    settings = scratch_settings("tiny", {"word_noise": 0.0, "pool_gain": 2.0})
    options = {"words": WORDS, "word_vectors": vectors, "word_texts": texts}
    model = scratch_model(tokenizer, settings, seed=0, **options)
    token_ids = word_token_ids(tokenizer, WORDS)
    added = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda _m, _i, out: added.append(out[0][0, -1]))
    with torch.no_grad():
        for text in texts:
            model(torch.from_numpy(token_ids[text])[None])
    hook.remove()
    added_td = torch.stack(added).numpy()
    rows = model.get_input_embeddings().weight.detach().numpy()[token_ids]
    rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True))
    mean_td = np.stack([rows[text].mean(axis=0) for text in texts])
    assert np.corrcoef(added_td[:, 1:9].ravel(), mean_td[:, 1:9].ravel())[0, 1] > 0.99
    centred = added_td[:, 1:9] - added_td[:, 1:9].mean(axis=0)
    assert np.sqrt((centred**2).mean()) == pytest.approx(2.0, rel=0.05)
    assert np.abs(added_td[:, 0]).max() == 0  # the constant is not handed on


def test_without_gain_or_vectors_attention_stays_random(tokenizer, vectors):
    off = scratch_settings("tiny", {"pool_gain": 0.0})
    options = {"words": WORDS, "word_vectors": vectors}
    for model in (scratch_model(tokenizer, off, seed=0, **options), scratch_model(tokenizer, "tiny", seed=0)):
        assert float(model.model.layers[0].self_attn.v_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_faulty_vectors_are_named(tokenizer, vectors):
    def make(words, word_vectors):
        return scratch_model(tokenizer, "tiny", seed=0, words=words, word_vectors=word_vectors)

    with pytest.raises(InputError, match=r"one row for each of the 60 words, found shape \(59, 8\)"):
        make(WORDS, vectors[1:])
    with pytest.raises(InputError, match="each of the 0 words"):
        make(None, vectors)
    with pytest.raises(InputError, match="between 1 and 63 columns to fit hidden_size 64, found 64"):
        make(WORDS, np.zeros((60, 64)))
    with pytest.raises(InputError, match="NaN or infinity in 1 of 60 rows"):
        make(WORDS, np.where(np.arange(60)[:, None] == 3, np.nan, vectors))
    with pytest.raises(InputError, match="found 1 of 60 that are several, such as 'unknown'"):
        make([*WORDS[:-1], "unknown"], vectors)
    assert np.isfinite(make(WORDS, np.zeros((60, 4))).get_input_embeddings().weight.detach().numpy()).all()


def test_tokens_start_at_their_frequency_after_a_prompt_and_elsewhere_as_before(tokenizer, vectors, texts):
    model = scratch_model(tokenizer, "small", seed=0, words=WORDS, word_vectors=vectors, word_texts=texts)
    prompts = encode_prompts(tokenizer, [" ".join(WORDS[i] for i in text) + ". Type:" for text in texts])
    first, second = (int(i) for i in word_token_ids(tokenizer, ["G3", "G7"]))
    answers = np.array([first] * 60 + [second] * 20)

    def probabilities():
        with torch.no_grad():
            logits = [model(torch.from_numpy(ids)[None]).logits[0] for ids in prompts]
        ends = torch.stack([torch.softmax(one[-1], dim=-1) for one in logits]).mean(dim=0)
        return ends, torch.cat([torch.softmax(one[1:-3], dim=-1)[:, [first, second]] for one in logits]).mean(dim=0)

    _, before = probabilities()
    start_at_frequencies(model, prompts, answers)
    ends, within = probabilities()
    assert ends[[first, second]].tolist() == pytest.approx([0.75, 0.25], abs=0.05)
    assert within.tolist() == pytest.approx(before.tolist(), abs=0.02)


def test_prompts_beyond_the_context_and_tied_vectors_leave_the_model_as_it_is(tokenizer):
    for settings, length in (({"context_length": 8}, 9), ({"tie_embeddings": True}, 5)):
        model = scratch_model(tokenizer, scratch_settings("tiny", settings), seed=0)
        before = weights(model)
        start_at_frequencies(model, [np.arange(length)], np.array([3]))
        assert all(torch.equal(before[name], after) for name, after in weights(model).items())
