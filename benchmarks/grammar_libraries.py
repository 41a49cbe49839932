"""Grammar libraries that are installed, asked for the same words as our constraint.

They are xgrammar, outlines-core and llguidance; none is a dependency. Timed is what they do for a step of a batch, row
by row on one thread: filling the bit mask of what is allowed and accepting what was chosen; applying the mask to logits
comes on top. They forbid no repeated words, and admit every way to cut a word into tokens.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

STEPS = 40


class Matcher(Protocol):
    """One row of a batch."""

    def fill(self, mask_r: Tensor, row: int) -> None:
        """Write the allowed tokens into a row of a bit mask, int32 (rows, words of 32 bits)."""

    def accept(self, token: int) -> None:
        """Take a token."""


def time_libraries(
    words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, *, batch: int
) -> list[dict[str, object]]:
    """Return the CPU seconds of each library to set up and milliseconds of a step, or why it was left out."""
    openers = {"xgrammar": _xgrammar, "outlines_core": _outlines, "llguidance": _llguidance}
    rows: list[dict[str, object]] = []
    for name, opener in openers.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            rows.append({"library": name, "left_out": str(error)})
            continue
        start = time.process_time()
        make = opener(words, tokenizer)
        make()
        setup = time.process_time() - start
        version = importlib.metadata.version(name)
        rows.append({"library": name, "version": version, "setup_s": round(setup, 2), **_steps(make, tokenizer, batch)})
    return rows


def _steps(make: Callable[[], Matcher], tokenizer: PreTrainedTokenizerBase, batch: int) -> dict[str, object]:
    matchers = [make() for _ in range(batch)]
    mask_bi = torch.full((batch, (len(tokenizer) + 31) // 32), -1, dtype=torch.int32)
    rng, times = np.random.default_rng(0), []
    for _ in range(STEPS):
        start = time.thread_time()
        for row, matcher in enumerate(matchers):
            matcher.fill(mask_bi, row)
        filled = time.thread_time() - start
        bits_bv = np.unpackbits(mask_bi.numpy().view(np.uint8), axis=1, bitorder="little")[:, : len(tokenizer)]
        bits_bv[:, tokenizer.eos_token_id] = 0
        tokens = [int(rng.choice(np.flatnonzero(row))) for row in bits_bv]
        start = time.thread_time()
        for matcher, token in zip(matchers, tokens, strict=True):
            matcher.accept(token)
        times.append(1e3 * (filled + time.thread_time() - start))
    return {"mask_ms": round(float(np.median(times)), 2)}


def _xgrammar(words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> Callable[[], Matcher]:
    import xgrammar

    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer))
    choices = " | ".join(f'"{word}"' for word in words)
    compiled = compiler.compile_grammar(f'root ::= (" " word)+ "."\nword ::= {choices}')

    class Row:
        def __init__(self) -> None:
            self.matcher = xgrammar.GrammarMatcher(compiled)

        def fill(self, mask_r: Tensor, row: int) -> None:
            self.matcher.fill_next_token_bitmask(mask_r, row)

        def accept(self, token: int) -> None:
            assert self.matcher.accept_token(token)

    return Row


def _outlines(words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> Callable[[], Matcher]:
    import outlines_core

    spelled: dict[bytes, list[int]] = {}
    for token_id in sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)):
        spelled.setdefault(tokenizer.decode([token_id]).encode(), []).append(token_id)
    # Tokens of part of a character decode to a replacement mark, which no word has.
    vocabulary = outlines_core.Vocabulary(tokenizer.eos_token_id, spelled)
    index = outlines_core.Index(_regex(words), vocabulary)

    class Row:
        def __init__(self) -> None:
            self.guide: Any = outlines_core.Guide(index)

        def fill(self, mask_r: Tensor, row: int) -> None:
            line = mask_r[row]
            self.guide.write_mask_into(line.data_ptr(), line.numel(), line.element_size())

        def accept(self, token: int) -> None:
            self.guide.advance(token, return_tokens=False)

    return Row


def _llguidance(words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> Callable[[], Matcher]:
    import llguidance
    import llguidance.hf
    from llguidance import LLMatcher

    known = llguidance.hf.from_tokenizer(tokenizer)
    grammar = LLMatcher.grammar_from_regex(_regex(words))

    class Row:
        def __init__(self) -> None:
            self.matcher: Any = LLMatcher(known, grammar)

        def fill(self, mask_r: Tensor, row: int) -> None:
            line = mask_r[row]
            self.matcher.unsafe_compute_mask_ptr(line.data_ptr(), line.numel() * line.element_size())

        def accept(self, token: int) -> None:
            assert self.matcher.consume_token(token)

    return Row


def _regex(words: tuple[str, ...]) -> str:
    return f"( ({'|'.join(map(re.escape, words))}))+\\."
