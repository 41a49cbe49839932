"""Compiled loops over what each row may take next: masking scores, drawing symbols.

The arrays of an `AllowedSymbols` come one by one. Nothing here looks at a symbol that is not allowed, so that a row
inside a word costs a few operations however large the vocabulary.

Axes: b rows, v vocabulary, s symbols, n allowed symbols of one row.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numba
import numpy as np

_options = {"cache": True, "nogil": True, "error_model": "numpy"}

#: SplitMix64: the step of its counter, and the multipliers of its finaliser.
STEP, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LN2 = math.log(2.0)
#: Falling probabilities of `_keep_top_p` are first sorted into bins of this width (in logits).
_BIN_WIDTH, _N_BINS = 0.125, 512


@numba.njit(**_options)
def mask_scores(scores_bv, tokens_s, run_start_n, open_rs, shows_open_r, few_rc, n_few_r, slot_b, masked_bv):
    """Copy the scores of allowed symbols, minus infinity elsewhere.

    `run_start_n` are the symbols whose token does not follow that of the symbol before, and the end.
    """
    for b in range(len(slot_b)):
        r = slot_b[b]
        scores_v, masked_v = scores_bv[b], masked_bv[b]
        masked_v[:] = -np.inf
        if shows_open_r[r]:
            for run in range(len(run_start_n) - 1):
                start = run_start_n[run]
                length, token = run_start_n[run + 1] - start, tokens_s[start]
                _copy_open(
                    scores_v[token : token + length],
                    open_rs[r, start : start + length],
                    masked_v[token : token + length],
                )
        for c in range(n_few_r[r]):
            token = tokens_s[few_rc[r, c]]
            masked_v[token] = scores_v[token]


@numba.njit(**_options)
def draw_symbols(
    logits_bv,
    column_s,
    tokens_s,
    open_rs,
    shows_open_r,
    few_rc,
    n_few_r,
    slot_b,
    stream_b,
    step,
    temperature,
    top_p,
    with_log_probs,
    symbol_b,
    log_prob_b,
):
    """Draw a symbol for each row, and the log of its probability among the allowed ones if asked.

    `column_s` is where a symbol stands in the logits, `tokens_s` what names its noise.
    """
    most = open_rs.shape[1] + few_rc.shape[1]
    symbol_n, logit_n = np.empty(most, np.int64), np.empty(most, np.float32)
    for b in range(len(slot_b)):
        r = slot_b[b]
        key = _mixed(stream_b[b] + np.uint64(step) * STEP)
        n = 0
        if shows_open_r[r]:
            for s in range(open_rs.shape[1]):
                symbol_n[n] = s
                logit_n[n] = logits_bv[b, column_s[s]]
                n += open_rs[r, s]
        for c in range(n_few_r[r]):
            symbol_n[n] = few_rc[r, c]
            logit_n[n] = logits_bv[b, column_s[few_rc[r, c]]]
            n += 1
        largest = _largest(logit_n[:n])
        log_total = largest + math.log(_sum_exp(logit_n[:n], largest)) if with_log_probs else 0.0
        if temperature == 0.0:
            place = _first_place(logit_n[:n], largest)
        else:
            if top_p < 1.0:
                n = _keep_top_p(symbol_n, logit_n, n, largest, temperature, top_p)
            place = _noisiest(symbol_n[:n], logit_n[:n], tokens_s, key, temperature)
        symbol_b[b] = symbol_n[place]
        log_prob_b[b] = logit_n[place] - log_total


@numba.njit(**_options)
def _mixed(x):
    """Return 64 bits that each depend on all bits of `x` (SplitMix64's finaliser)."""
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


@numba.njit(**_options)
def _copy_open(scores_n, is_open_n, masked_n):
    for i in range(len(scores_n)):
        masked_n[i] = scores_n[i] if is_open_n[i] else np.float32(-np.inf)


@numba.njit(fastmath={"nnan", "nsz", "reassoc"}, **_options)
def _largest(values_n):
    largest = np.float32(-np.inf)
    for value in values_n:
        largest = max(largest, value)
    return largest


@numba.njit(**_options)
def _first_place(values_n, value):
    for i in range(len(values_n)):
        if values_n[i] == value:
            return i
    return 0


@numba.njit(**_options)
def _sum_exp(values_n, largest):
    total = 0.0
    for value in values_n:
        total += math.exp(np.float64(value) - largest)
    return total


@numba.njit(**_options)
def _noisiest(symbol_n, logit_n, tokens_s, key, temperature):
    """Return the place of the largest logit / temperature + Gumbel noise.

    Noise is minus the log of a waiting time, and the time is at least the uniform number it is made from: so the
    leading zeros of the random bits bound the noise, and logs are taken for the few symbols only that may be best.
    """
    best, place = -np.inf, 0
    for i in range(len(symbol_n)):
        bits = _mixed(key + np.uint64(tokens_s[symbol_n[i]] + 1) * STEP)
        scaled = np.float64(logit_n[i]) / temperature
        if scaled + _LN2 * (_leading_zeros(bits) + 1) > best:
            noisy = scaled - math.log(-math.log1p(-_uniform(bits)))
            if noisy > best:
                best, place = noisy, i
    return place


@numba.njit(**_options)
def _uniform(bits):
    """Return a number between 0 and 1, both excluded, in steps of 2^-53."""
    return (np.float64(bits >> np.uint64(11)) + 0.5) * 2.0**-53


@numba.njit(**_options)
def _leading_zeros(bits):
    n = 0
    while n < 53 and bits >> np.uint64(63 - n) == np.uint64(0):
        n += 1
    return n


@numba.njit(**_options)
def _keep_top_p(symbol_n, logit_n, n, largest, temperature, top_p):
    """Move the symbols of the nucleus to the front, in order, and return how many they are; see `keep_top_p`."""
    bin_n, probability_n, total = np.empty(n, np.int32), np.empty(n, np.float64), 0.0
    mass = np.zeros(_N_BINS, np.float64)
    for i in range(n):
        below = (np.float64(largest) - logit_n[i]) / temperature
        bin_n[i] = min(_N_BINS - 1, int(min(below, 1e6) / _BIN_WIDTH))
        probability_n[i] = math.exp(-below)
        mass[bin_n[i]] += probability_n[i]
    for m in mass:
        total += m
    reached, last_bin = 0.0, 0
    while last_bin < _N_BINS - 1 and reached + mass[last_bin] < top_p * total:
        reached += mass[last_bin]
        last_bin += 1
    rising = np.sort(probability_n[bin_n == last_bin])
    least = rising[-1] if len(rising) else 0.0
    for i in range(len(rising) - 1, -1, -1):
        if reached >= top_p * total:
            break
        least = rising[i]
        reached += rising[i]
    n_kept = 0
    for i in range(n):
        if bin_n[i] < last_bin or (bin_n[i] == last_bin and probability_n[i] >= least):
            symbol_n[n_kept], logit_n[n_kept] = symbol_n[i], logit_n[i]
            n_kept += 1
    return n_kept
