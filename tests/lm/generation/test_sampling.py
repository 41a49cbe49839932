"""Noise that belongs to the sample, and draws by probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cytoglot import hashing
from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.lm.constraint import sampling_kernels
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation import sampling
from cytoglot.lm.generation.sampling import Sampling, TokenSampler, keep_top_p, token_uniforms


def on_device(sampler: TokenSampler, logits_bs: torch.Tensor, allowed_bs: torch.Tensor) -> torch.Tensor:
    """Draw as an accelerator does."""
    return sampler._draw_on_device(logits_bs.masked_fill(~allowed_bs, -torch.inf))


def test_uniforms_are_the_same_bits_in_torch_and_in_compiled_loops():
    stream_b = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    token_s = torch.tensor([0, 1, 2, 50_000, 262_143])
    for step in (1, 2, 700):
        for row, stream in zip(token_uniforms(stream_b, step, token_s), stream_b.tolist(), strict=True):
            counter = np.uint64((stream + step * int(hashing.STEP)) % 2**64)
            keyed = int(hashing.mixed(counter))
            for value, token in zip(row.tolist(), token_s.tolist(), strict=True):
                bits = np.uint64((keyed + (token + 1) * int(hashing.STEP)) % 2**64)
                assert value == sampling_kernels._uniform(np.uint64(hashing.mixed(bits)))


def test_uniforms_exclude_0_and_1_at_either_end_of_the_bits():
    lowest, highest = np.uint64(0), np.uint64(2**64 - 1)
    assert 0 < sampling_kernels._uniform(lowest) < sampling_kernels._uniform(highest) < 1
    for dtype in (torch.float32, torch.float64):
        low, high = sampling._uniform(torch.tensor([0, -1]), dtype).tolist()
        assert 0 < low < high < 1
    assert high == sampling_kernels._uniform(highest)


def test_the_hash_is_splitmix64():
    """Its published first outputs from seed 0."""
    step = int(hashing.STEP)
    outputs = [int(hashing.mixed(np.uint64(n * step % 2**64))) for n in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"temperature": 3.0, "top_p": 0.8}, {"temperature": 0.0}]
)
def test_both_roads_draw_the_same_symbols(options):
    generator = torch.Generator().manual_seed(0)
    tokens_s = torch.randperm(5000, generator=generator)[:700]
    samplers = [
        TokenSampler(Sampling(seed=3, **options), [str(i) for i in range(50)], tokens_s=tokens_s) for _ in range(2)
    ]
    for _ in range(20):
        logits_bs = 4 * torch.randn((50, 700), generator=generator)
        allowed_bs = torch.rand((50, 700), generator=generator) < 0.4
        assert torch.equal(samplers[0].choose(logits_bs, allowed_bs), on_device(samplers[1], logits_bs, allowed_bs))


@pytest.mark.parametrize("road", ["compiled", "device"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_draws_have_the_probabilities_of_the_softmax(road, temperature):
    """Chi-square over 60,000 draws of fixed seed; a wrong temperature or a missing allowed symbol gives p near 0."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 0.7, -3.0, 1.5])
    allowed = torch.tensor([True, True, False, True, True, True, True, False])
    n_rows, n_steps = 2000, 30
    logits_bs, allowed_bs = logits.repeat(n_rows, 1), allowed.repeat(n_rows, 1)
    sampler = TokenSampler(Sampling(seed=11, temperature=temperature), [f"row {i}" for i in range(n_rows)])
    draw = sampler.choose if road == "compiled" else lambda *args: on_device(sampler, *args)
    counts = sum(np.bincount(draw(logits_bs, allowed_bs), minlength=8) for _ in range(n_steps))
    expected = (logits / temperature).masked_fill(~allowed, -torch.inf).double().softmax(dim=0).numpy()
    assert counts[~allowed.numpy()].sum() == 0
    kept = allowed.numpy()
    assert stats.chisquare(counts[kept], n_rows * n_steps * expected[kept]).pvalue > 0.01


def test_uniforms_are_uniform_and_independent_across_streams_steps_and_tokens():
    streams = torch.arange(64) * 7919
    values = torch.stack([token_uniforms(streams, step, torch.arange(64)) for step in range(64)]).numpy()
    assert values.min() > 0
    assert values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 0.01
    n = values[1:].size
    for axis in range(3):
        before, after = np.delete(values, -1, axis).ravel(), np.delete(values, 0, axis).ravel()
        assert abs(np.corrcoef(before, after)[0, 1]) < 4 / math.sqrt(n)


def test_noise_belongs_to_the_token_whatever_its_symbol_and_batch():
    generator = torch.Generator().manual_seed(1)
    tokens_s = torch.arange(100, 160)
    order = torch.randperm(60, generator=generator)
    names = ["a", "b", "c", "d"]
    plain = TokenSampler(Sampling(seed=5), names, tokens_s=tokens_s)
    mixed = TokenSampler(Sampling(seed=5), names[::-1], tokens_s=tokens_s[order])
    alone = TokenSampler(Sampling(seed=5), ["x", "c", "y"], tokens_s=tokens_s)
    alone.select([1])
    for _ in range(40):
        logits_bs = torch.randn((4, 60), generator=generator)
        allowed_bs = torch.rand((4, 60), generator=generator) < 0.5
        tokens_b = tokens_s[plain.choose(logits_bs, allowed_bs)]
        assert torch.equal(
            tokens_s[order][mixed.choose(logits_bs.flip(0)[:, order], allowed_bs.flip(0)[:, order])].flip(0), tokens_b
        )
        assert tokens_s[alone.choose(logits_bs[2:3], allowed_bs[2:3])] == tokens_b[2]


def test_the_nucleus_is_that_of_keep_top_p():
    """Draw until each symbol of the nucleus has come: no other ever does."""
    generator = torch.Generator().manual_seed(2)
    for top_p in (0.2, 0.7, 0.95):
        logits = 3 * torch.randn((1, 40), generator=generator)
        kept = keep_top_p(logits, top_p)[0].isfinite()
        sampler = TokenSampler(Sampling(seed=0, top_p=top_p), [str(i) for i in range(4000)])
        rows = logits.repeat(4000, 1)
        drawn = torch.cat([sampler.choose(rows, torch.ones_like(rows, dtype=torch.bool)) for _ in range(5)])
        probability = torch.where(kept, logits[0], -torch.inf).softmax(dim=0)
        counts = drawn.bincount(minlength=40)
        assert counts[~kept].sum() == 0
        assert (counts[kept & (probability > 0.002)] > 0).all()


def test_ties_at_the_edge_of_the_nucleus_are_all_kept():
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]])).repeat(3000, 1)
    sampler = TokenSampler(Sampling(seed=0, top_p=0.5), [str(i) for i in range(3000)])
    drawn = sampler.choose(logits, torch.ones_like(logits, dtype=torch.bool))
    assert drawn.unique().tolist() == [0, 1, 2, 3]


def test_log_probs_are_over_what_is_allowed(word_tokenizer, words):
    constraint = constrain(DistinctWords(words=words, min_words=2, max_words=9), word_tokenizer)
    state = constraint.start(torch.full((30,), constraint.max_tokens()))
    sampler = TokenSampler(
        Sampling(seed=1, temperature=2.0, top_p=0.9), [str(i) for i in range(30)], tokens_s=constraint.tokens_s
    )
    for _ in range(12):
        logits_bv = 30 * torch.randn(30, len(word_tokenizer))
        allowed_bs = state.allowed()
        masked_bs = logits_bv[:, constraint.tokens_s].masked_fill(~allowed_bs, -torch.inf)
        symbol_b, log_prob_b = sampler.draw(logits_bv, state)
        expected = masked_bs.double().log_softmax(dim=1).gather(1, symbol_b[:, None])[:, 0]
        assert torch.allclose(log_prob_b, expected, atol=2e-6, rtol=0)
        state.advance(symbol_b)


def test_greedy_takes_the_first_of_the_best():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 1.0, 1.0, 1.0]])
    allowed = torch.tensor([[True, True, True, True], [False, True, True, False]])
    sampler = TokenSampler(Sampling(temperature=0), ["a", "b"])
    assert sampler.choose(logits, allowed).tolist() == [1, 1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_symbols_that_may_be_best_are_never_passed_over(scale):
    """The bound that spares logarithms, against taking all of them; many symbols, so that whole blocks are skipped."""
    generator = torch.Generator().manual_seed(3)
    sampler, other = (TokenSampler(Sampling(seed=9), [str(i) for i in range(20)]) for _ in range(2))
    for _ in range(5):
        logits_bs = scale * torch.randn((20, 3000), generator=generator)
        everything = torch.ones_like(logits_bs, dtype=torch.bool)
        assert torch.equal(sampler.choose(logits_bs, everything), on_device(other, logits_bs, everything))


def test_logits_that_lack_tokens_are_refused(word_tokenizer, words):
    constraint = constrain(DistinctWords(words=words, min_words=1, max_words=2), word_tokenizer)
    sampler = TokenSampler(Sampling(), ["a"], tokens_s=constraint.tokens_s)
    with pytest.raises(InputError, match=r"expected logits of all \d+ tokens, found 10; the tokenizer has more"):
        sampler.draw(torch.zeros(1, 10), constraint.start(torch.tensor([9])))


def test_a_mask_of_another_width_is_refused():
    with pytest.raises(InputError, match=r"logits and a mask of one shape, found \(1, 4\) and \(1, 5\)"):
        TokenSampler(Sampling(), ["a"]).choose(torch.zeros(1, 4), torch.ones(1, 5, dtype=torch.bool))
