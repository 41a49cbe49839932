"""The probability of an answer of distinct words as it is written: each word among those not yet written.

Training, scoring and sampling must mean the same distribution. A sampler that forbids what was written before, of a
model trained over all tokens, is another model: it was trained to spend itself on not repeating.

Axes: b rows, t tokens, n predicted tokens, v vocabulary, w words, a answers, c conditions, s symbols of a constraint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from cytoglot.answer_format import DistinctWords
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.model.tokenizer import encode_completions


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerWords:
    """The words that answers are made of, as tokens, and the weights of a profile."""

    token_ids_w: Tensor | None
    """(w,) where each word is one token; None where some words are several"""
    constraint: AnswerConstraint | None = None
    """what reads the words where some are several tokens"""
    log_weights_cw: Tensor | None = None
    """(c, w) float32, added to the logits of the words; for words of one token alone"""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        words: tuple[str, ...],
        *,
        log_weights_cw: NDArray[np.floating] | None = None,
        terminator: str = ".",
    ) -> AnswerWords:
        """Return the words in the spelling of a tokenizer."""
        tokens = encode_completions(tokenizer, [f" {word}" for word in words])
        single = all(len(ids) == 1 for ids in tokens)
        if not single and log_weights_cw is not None:
            raise ValueError("weights of words need a tokenizer in which each word is one token")
        if not single:
            every = DistinctWords(words=words, min_words=1, max_words=len(words))
            return cls(token_ids_w=None, constraint=constrain(every, tokenizer, terminator=terminator))
        return cls(
            token_ids_w=torch.tensor([int(ids[0]) for ids in tokens]),
            log_weights_cw=None if log_weights_cw is None else torch.from_numpy(np.asarray(log_weights_cw, np.float32)),
        )

    def losses(
        self,
        logits_nv: Tensor,
        predicts_bt: Tensor,
        ids_bt: Tensor,
        n_words_bt: Tensor,
        conditions_bt: Tensor,
        segments_bt: Tensor | None = None,
    ) -> Tensor:
        """Return −log p of each predicted token in nats, (n,), over what may follow the words written before it.

        Parameters
        ----------
        logits_nv
            Of the predicted tokens, row by row.
        predicts_bt
            Bool: the tokens predicted, all of answers of distinct words; not the first of a row.
        n_words_bt
            Words of the answer that a token belongs to, 0 for all other tokens.
        conditions_bt
            Row of `log_weights_cw`.
        segments_bt
            Number of the example within its row; None where a row is one example.
        """
        b_n, t_n = predicts_bt.nonzero(as_tuple=True)
        # One number for each answer of the batch.
        key_bt = torch.arange(len(ids_bt), device=ids_bt.device)[:, None].expand_as(ids_bt)
        if segments_bt is not None:
            key_bt = key_bt * (int(segments_bt.max()) + 1) + segments_bt
        is_word_bt = n_words_bt > 0
        keys_a, answer_of = torch.unique(key_bt[is_word_bt], return_inverse=True)
        answer_bt = torch.full_like(ids_bt, -1)
        answer_bt[is_word_bt] = answer_of
        if self.token_ids_w is None:
            allowed_nv = self._allowed(logits_nv, ids_bt, n_words_bt, answer_bt, len(keys_a), b_n, t_n)
            target_n = ids_bt[b_n, t_n]
            # A spelling that the constraint does not know, such as a word that melts into what follows, stays possible.
            allowed_nv[torch.arange(len(target_n), device=target_n.device), target_n] = True
            masked_nv = logits_nv.float().masked_fill(~allowed_nv, -torch.inf)
            return functional.cross_entropy(masked_nv, target_n, reduction="none")
        tokens_w = self.token_ids_w.to(ids_bt.device)
        word_of_v = torch.full((int(logits_nv.shape[1]),), -1, dtype=torch.int64, device=ids_bt.device)
        word_of_v[tokens_w] = torch.arange(len(tokens_w), device=ids_bt.device)
        # Where each answer writes each word; beyond the end where it does not.
        place_aw = torch.full((len(keys_a), len(tokens_w)), ids_bt.shape[1], dtype=torch.int32, device=ids_bt.device)
        b_m, t_m = is_word_bt.nonzero(as_tuple=True)
        place_aw[answer_bt[b_m, t_m], word_of_v[ids_bt[b_m, t_m]]] = t_m.to(torch.int32)
        written_nw = place_aw[answer_bt[b_n, t_n]] < t_n[:, None]
        logits_nw = logits_nv[:, tokens_w].float()
        if self.log_weights_cw is not None:
            weights_cw = self.log_weights_cw.to(ids_bt.device)
            logits_nw = logits_nw + weights_cw[conditions_bt[b_n, t_n].long()]
        target_n = word_of_v[ids_bt[b_n, t_n]]
        return functional.cross_entropy(logits_nw.masked_fill(written_nw, -torch.inf), target_n, reduction="none")

    def _allowed(
        self,
        logits_nv: Tensor,
        ids_bt: Tensor,
        n_words_bt: Tensor,
        answer_bt: Tensor,
        n_answers: int,
        b_n: Tensor,
        t_n: Tensor,
    ) -> Tensor:
        """Return which tokens the constraint allowed at each predicted token, bool (n, v): answers are read again."""
        assert self.constraint is not None
        answer_bt, read_bt, counts_bt = (one.cpu() for one in (answer_bt, ids_bt, n_words_bt))
        b_m, t_m = (answer_bt >= 0).nonzero(as_tuple=True)
        answer_m = answer_bt[b_m, t_m]
        first_a = torch.full((n_answers,), ids_bt.shape[1]).scatter_reduce_(0, answer_m, t_m, "amin")
        words_a = torch.zeros(n_answers, dtype=torch.int64)
        words_a[answer_m] = counts_bt[b_m, t_m].long()
        step_m = t_m - first_a[answer_m]
        symbols_ak = torch.full((n_answers, int(step_m.max()) + 1), -1, dtype=torch.int64)
        symbols_ak[answer_m, step_m] = self.constraint.symbols_of(read_bt[b_m, t_m])
        state = self.constraint.start(
            torch.full((n_answers,), self.constraint.max_tokens(int(words_a.max()))),
            bounds_b2=torch.stack([words_a, words_a], dim=1),
        )
        allowed_nv = torch.zeros(logits_nv.shape, dtype=torch.bool)
        answer_n = answer_bt[b_n.cpu(), t_n.cpu()]
        step_n = t_n.cpu() - first_a[answer_n]
        tokens_s = self.constraint.tokens_s.cpu()
        for step in range(symbols_ak.shape[1]):
            now = (step_n == step).nonzero()[:, 0]
            if len(now):
                allowed_nv[now[:, None], tokens_s[None]] = state.allowed()[answer_n[now]]
            state.advance(symbols_ak[:, step])
        return allowed_nv.to(logits_nv.device)
