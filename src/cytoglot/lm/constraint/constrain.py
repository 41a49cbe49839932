"""Answer formats as masks over the next token, for `transformers.generate` and for our own sampling.

An answer is framed as in training: a space, the answer, the terminator, end of text. Words and options are admitted
in the tokenizer's own spelling only, numbers in any.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cytoglot.answer_format import AnswerFormat, DistinctWords, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.constraint.compiled_trie_state import CompiledTrieState
from cytoglot.lm.constraint.free_text import FreeTextConstraint
from cytoglot.lm.constraint.number import NumberConstraint, NumberGrammar
from cytoglot.lm.constraint.trie_state import TrieState, TrieTensors
from cytoglot.lm.constraint.word_trie import WordTrie, build_trie
from cytoglot.lm.model.tokenizer import encode_completions

_TRIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[object, ...], WordTrie]] = WeakKeyDictionary()
_TRIES_KEPT = 8


def constrain(
    answer_format: AnswerFormat, tokenizer: PreTrainedTokenizerBase, *, terminator: str = "."
) -> AnswerConstraint:
    """Return the constraint that an answer format puts on a tokenizer's tokens.

    The trie of words is built once for each tokenizer and set of words and then shared.

    Parameters
    ----------
    answer_format
        `DistinctWords` and `OneOf` admit the spelling that the tokenizer itself gives a word or option after a
        space; so an answer is what training has shown. `Number` admits any spelling in tokens. `FreeText` only has
        a length.
    terminator
        Text between the answer and end of text, as in the training texts; may be empty. `FreeText` has none.

    Raises
    ------
    InputError
        The tokenizer has no end-of-text token, drops or confuses words, or lacks digits; or a number's range is empty.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token, which ends an answer; set tokenizer.eos_token")
    if isinstance(answer_format, DistinctWords):
        trie = _trie(tokenizer, answer_format.words, terminator, separate=True)
        bounds = (answer_format.min_words, answer_format.max_words)
        return WordConstraint(trie, bounds=bounds, eos_id=int(tokenizer.eos_token_id))
    if isinstance(answer_format, OneOf):
        trie = _trie(tokenizer, answer_format.options, terminator, separate=False)
        return WordConstraint(trie, bounds=(1, 1), eos_id=int(tokenizer.eos_token_id))
    if isinstance(answer_format, Number):
        grammar = NumberGrammar(answer_format.low, answer_format.high, terminator=terminator)
        return NumberConstraint(grammar, tokenizer)
    return FreeTextConstraint(answer_format, tokenizer)


class WordConstraint(AnswerConstraint):
    """Distinct words, or one option: an option is the one word of an answer with its terminator inside."""

    def __init__(self, trie: WordTrie, *, bounds: tuple[int, int], eos_id: int) -> None:
        super().__init__(trie.symbol_tokens_s, eos_id)
        self.bounds = bounds
        self._trie = trie
        self._tensors: TrieTensors | None = None
        # Tokens of the n longest words, for any n.
        self._longest_n = np.cumsum(np.sort(trie.word_lengths_w)[::-1])

    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> TrieState | CompiledTrieState:
        """Return the state of a new batch."""
        device, most_words = budget_b.device, self.bounds[1]
        if bounds_b2 is None:
            bounds_b2 = torch.tensor(self.bounds, device=device).expand(len(budget_b), 2)
        else:
            most_words = int(bounds_b2[:, 1].max())
        fewest_b, most_b = bounds_b2.unbind(dim=1)
        if device.type == "cpu":
            return CompiledTrieState(
                self._trie, min_words_b=fewest_b.numpy(), max_words_b=most_b.numpy(), budget_b=budget_b.numpy()
            )
        if self._tensors is None or self._tensors.edges.device != device:
            self._tensors = TrieTensors.on(device, self._trie)
        return TrieState(
            self._tensors, min_words_b=fewest_b, max_words_b=most_b, most_words=most_words, budget_b=budget_b
        )

    def max_tokens(self, n_words: int | None = None) -> int:
        """Return a budget of tokens that forbids no answer: `n_words` times the longest word, and the closing."""
        return (self.bounds[1] if n_words is None else n_words) * self._trie.arrays.depth + len(
            self._trie.arrays.closing_c
        )

    def enough_tokens(self, n_words: int | None = None) -> int:
        """Return the tokens of the `n_words` longest words and of what closes an answer."""
        n_words = self.bounds[0] if n_words is None else n_words
        return int(self._longest_n[n_words - 1]) + len(self._trie.arrays.closing_c)


def _trie(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...], terminator: str, *, separate: bool) -> WordTrie:
    """Return the trie of words; the terminator closes the last one (`separate`) or is the end of each."""
    tries = _TRIES.setdefault(tokenizer, {})
    # Tokens can be added to a tokenizer, which may change how words are spelled.
    key = (words, terminator, separate, len(tokenizer), tokenizer.eos_token_id)
    if key not in tries:
        while len(tries) >= _TRIES_KEPT:
            del tries[next(iter(tries))]
        ending = "" if separate else terminator
        word_tokens = encode_completions(tokenizer, [f" {word}{ending}" for word in words])
        closing = _terminator_ids(tokenizer, words, terminator) if separate else []
        special = {tokenizer.eos_token_id, tokenizer.unk_token_id} - {None}
        tries[key] = build_trie(
            words, word_tokens, closing=np.array([*closing, tokenizer.eos_token_id]), refused=sorted(special)
        )
    return tries[key]


def _terminator_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], terminator: str) -> list[int]:
    """Return the tokens of the terminator as it stands after a word, where it has no space in front."""
    if not terminator:
        return []
    for word in words[:100]:
        bare, closed = (ids.tolist() for ids in encode_completions(tokenizer, [f" {word}", f" {word}{terminator}"]))
        if closed[: len(bare)] == bare:
            return list(closed[len(bare) :])
    raise InputError(
        f"the terminator {terminator!r} melts into every word in this tokenizer, as in {f' {words[0]}{terminator}'!r}; "
        "pass another terminator, or an empty one"
    )
