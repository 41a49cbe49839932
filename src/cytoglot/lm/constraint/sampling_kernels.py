"""Compiled loops over what each row may take next: masking scores, drawing symbols.

`allowed` is an `AllowedSymbols`. Nothing here looks at a symbol that is not allowed, so that a row
inside a word costs a few operations however large the vocabulary.

Axes: b rows, v vocabulary, s symbols, n allowed symbols of one row.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numba
import numpy as np

from cytoglot.hashing import STEP, mixed

_options = {"cache": True, "nogil": True, "error_model": "numpy"}

_LN2 = math.log(2.0)
#: Symbols that are looked at together, in vector instructions.
_BLOCK = 128


@numba.njit(**_options)
def mask_scores(scores_bv, tokens_s, run_start_n, allowed, masked_bv):
    """Copy the scores of allowed symbols, minus infinity elsewhere.

    `run_start_n` are the symbols whose token does not follow that of the symbol before, and the end.
    """
    open_rs, few_rc = allowed.open_rs, allowed.few_rc
    for b in range(len(allowed.slot_b)):
        r = allowed.slot_b[b]
        scores_v, masked_v = scores_bv[b], masked_bv[b]
        masked_v[:] = -np.inf
        if allowed.shows_open_r[r]:
            for run in range(len(run_start_n) - 1):
                start = run_start_n[run]
                length, token = run_start_n[run + 1] - start, tokens_s[start]
                _copy_open(
                    scores_v[token : token + length],
                    open_rs[r, start : start + length],
                    masked_v[token : token + length],
                )
        for c in range(allowed.n_few_r[r]):
            token = tokens_s[few_rc[r, c]]
            masked_v[token] = scores_v[token]


@numba.njit(**_options)
def draw_symbols(
    logits_bv, column_s, tokens_s, allowed, stream_b, step, temperature, top_p, with_log_probs, symbol_b, log_prob_b
):
    """Draw a symbol for each row, and the log of its probability among the allowed ones if asked.

    `column_s` is where a symbol stands in the logits, `tokens_s` what names its noise.
    """
    most = allowed.open_rs.shape[1] + allowed.few_rc.shape[1]
    symbol_n, logit_n, weight_n = np.empty(most, np.int64), np.empty(most, np.float32), np.empty(most, np.float32)
    for b in range(len(allowed.slot_b)):
        key = mixed(stream_b[b] + np.uint64(step) * STEP)
        n = _gather(logits_bv[b], column_s, allowed, allowed.slot_b[b], symbol_n, logit_n)
        first, log_total = 0, 0.0
        if with_log_probs or temperature == 0.0 or top_p < 1.0:
            first = _first_largest(logit_n[:n])
        largest = np.float64(logit_n[first])
        if with_log_probs:
            log_total = largest + math.log(_weigh(logit_n[:n], largest, 1.0, weight_n))
        if temperature == 0.0:
            place = first
        else:
            if top_p < 1.0:
                n = _keep_top_p(symbol_n[:n], logit_n[:n], weight_n, largest, 1.0 / temperature, top_p)
            place = _noisiest(symbol_n[:n], logit_n[:n], tokens_s, key, temperature)
        symbol_b[b] = symbol_n[place]
        log_prob_b[b] = logit_n[place] - log_total


@numba.njit(**_options)
def _gather(logits_v, column_s, allowed, r, symbol_n, logit_n):
    """Write the allowed symbols of a row and their logits; return how many they are."""
    open_rs, few_rc = allowed.open_rs, allowed.few_rc
    n = 0
    if allowed.shows_open_r[r]:
        for s in range(open_rs.shape[1]):
            symbol_n[n] = s
            logit_n[n] = logits_v[column_s[s]]
            n += open_rs[r, s]
    for c in range(allowed.n_few_r[r]):
        symbol_n[n] = few_rc[r, c]
        logit_n[n] = logits_v[column_s[few_rc[r, c]]]
        n += 1
    return n


@numba.njit(**_options)
def _copy_open(scores_n, is_open_n, masked_n):
    for i in range(len(scores_n)):
        masked_n[i] = scores_n[i] if is_open_n[i] else np.float32(-np.inf)


@numba.njit(**_options)
def _first_largest(values_n):
    first = 0
    for i in range(1, len(values_n)):
        if values_n[i] > values_n[first]:
            first = i
    return first


@numba.njit(fastmath={"reassoc", "contract"}, **_options)
def _weigh(logit_n, largest, inverse_temperature, weight_n):
    """Write exp((logit - largest) / temperature) and return the sum; relative errors are about 1e-7."""
    total = 0.0
    halvings, exponents = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    powers = exponents.view(np.float32)
    per_logit, most = np.float32(inverse_temperature / _LN2), np.float32(largest)
    for start in range(0, len(logit_n), _BLOCK):
        n = min(_BLOCK, len(logit_n) - start)
        for i in range(n):
            # Smaller weights than 2^-126 are as good as that.
            halvings[i] = max((logit_n[start + i] - most) * per_logit, np.float32(-126.0))
            exponents[i] = np.int32(halvings[i] - np.float32(0.5))
            halvings[i] = (halvings[i] - np.float32(exponents[i])) * np.float32(_LN2)
            exponents[i] = (exponents[i] + 127) << 23
        for i in range(n):
            x = halvings[i]
            # exp on [-ln 2 / 2, ln 2 / 2] by its series, times a power of two that is written by its exponent bits.
            series = np.float32(1 / 120) + x * np.float32(1 / 720)
            series = np.float32(1 / 6) + x * (np.float32(1 / 24) + x * series)
            series = np.float32(1.0) + x * (np.float32(1.0) + x * (np.float32(0.5) + x * series))
            weight_n[start + i] = series * powers[i]
            total += np.float64(weight_n[start + i])
    return total


@numba.njit(**_options)
def _noisiest(symbol_n, logit_n, tokens_s, key, temperature):
    """Return the place of the largest logit / temperature + Gumbel noise.

    Noise is minus the log of a waiting time, which is at least the uniform number that it is made from. The bits of a
    float, read as an integer, are a line below its binary logarithm: that bounds the noise, and logarithms proper are
    taken only for the few symbols that may be best.
    """
    best, place, threshold = -np.inf, 0, np.float32(-np.inf)
    inverse_temperature = 1.0 / temperature
    bits, scaled = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.float32)
    leading = np.empty(_BLOCK, np.float32)
    leading_bits = leading.view(np.int32)
    offset, slope = np.float32(151 * _LN2), np.float32(_LN2 * 2.0**-23)
    for start in range(0, len(symbol_n), _BLOCK):
        n = min(_BLOCK, len(symbol_n) - start)
        for i in range(n):
            bits[i] = mixed(key + np.uint64(tokens_s[symbol_n[start + i]] + 1) * STEP)
        for i in range(n):
            leading[i] = np.float32(np.int32(bits[i] >> np.uint64(40)))
            scaled[i] = np.float32(logit_n[start + i] * inverse_temperature)
        n_better = 0
        for i in range(n):
            n_better += scaled[i] + (offset - np.float32(leading_bits[i]) * slope) > threshold
        if n_better == 0:
            continue
        for i in range(n):
            if scaled[i] + (offset - np.float32(leading_bits[i]) * slope) > threshold:
                noisy = logit_n[start + i] / temperature - math.log(-math.log1p(-_uniform(bits[i])))
                if noisy > best:
                    best, place = noisy, start + i
                    threshold = np.float32(best - 1e-3 - 1e-6 * abs(best))  # float32 errs by less
    return place


@numba.njit(**_options)
def _uniform(bits):
    """Return a number between 0 and 1, both excluded, in steps of 2^-53."""
    # The largest of the 2^53 numbers would round to 1.
    return min((np.float64(bits >> np.uint64(11)) + 0.5) * 2.0**-53, 1.0 - 2.0**-53)


@numba.njit(**_options)
def _keep_top_p(symbol_n, logit_n, weight_n, largest, inverse_temperature, top_p):
    """Move the symbols of the nucleus to the front, in order, and return how many they are; see `keep_top_p`.

    The least weight that is kept is found by bisection over the bits of a float, which rise with it.
    """
    n = len(symbol_n)
    enough = top_p * _weigh(logit_n, largest, inverse_temperature, weight_n)
    bits_n = weight_n.view(np.int32)
    low, high = np.int32(0), np.int32(0x3F800001)  # just above 1, the largest weight
    while high - low > 1:
        middle = (low + high) // 2
        if _sum_from(weight_n, bits_n, n, middle) >= enough:
            low = middle
        else:
            high = middle
    n_kept = 0
    for i in range(n):
        if bits_n[i] >= low:
            symbol_n[n_kept], logit_n[n_kept] = symbol_n[i], logit_n[i]
            n_kept += 1
    return n_kept


@numba.njit(fastmath={"reassoc"}, **_options)
def _sum_from(weight_n, bits_n, n, least):
    """Return the sum of the weights that are not below the one of the given bits."""
    total = 0.0
    for i in range(n):
        total += np.float64(weight_n[i]) if bits_n[i] >= least else 0.0
    return total
