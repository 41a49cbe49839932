"""Our constraint inside of vLLM's engine, as a logits processor of its V1 model runner (versions 0.22 to 0.31).

It is loaded by name ("cytoglot.lm.backends.vllm_constraint:AnswerLogitsProcessor") and serves the requests whose
`extra_args` name a file of an answer format: `{"cytoglot_format": PATH}`. The engine may run in another process. From
0.32 on, the second model runner has another interface: set VLLM_USE_V2_MODEL_RUNNER=0 there.

Only this module imports vllm at its top; nothing else imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from cytoglot.lm.backends.vllm import read_format
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint, AnswerState
from cytoglot.lm.constraint.constrain import constrain

ARGUMENT = "cytoglot_format"


@dataclass
class _Request:
    """How far one request of the batch has come."""

    constraint: AnswerConstraint
    state: AnswerState
    written: list[int]
    """The engine's own list of tokens, which grows."""
    n_seen: int = 0

    def catch_up(self) -> None:
        """Tell the state of what was written since."""
        while self.n_seen < len(self.written) and self.written[self.n_seen] >= 0:
            token = torch.tensor([self.written[self.n_seen]])
            self.state.advance(self.constraint.symbols_of(token))
            self.n_seen += 1


class AnswerLogitsProcessor(LogitsProcessor):
    """Masks what the answer format of a request does not allow next; other requests are left alone."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose format cannot be read."""
        path = (sampling_params.extra_args or {}).get(ARGUMENT)
        if path is not None:
            _format(str(path))

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: FBT001
        config = vllm_config.model_config
        self._tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer, revision=getattr(config, "tokenizer_revision", None), trust_remote_code=False
        )
        self._context_length = int(config.max_model_len)
        self._requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: the likeliest token may be one that is not allowed."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow which request has which row; None where none came, went or moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, prompt_ids, written in batch_update.added:
            path = (params.extra_args or {}).get(ARGUMENT)
            self._requests.pop(row, None)
            if path is not None:
                answer_format, terminator = _format(str(path))
                constraint = constrain(answer_format, self._tokenizer, terminator=terminator)
                budget = self._context_length - len(prompt_ids or ())
                budget = budget if params.max_tokens is None else min(budget, params.max_tokens)
                state = constraint.start(torch.tensor([budget]))
                self._requests[row] = _Request(constraint=constraint, state=state, written=written)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self._requests[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Mask the rows of our requests, in place."""
        for row, request in self._requests.items():
            request.catch_up()
            allowed = torch.zeros(logits.shape[1], dtype=torch.bool)
            allowed[request.constraint.tokens_s] = request.state.allowed()[0]
            logits[row].masked_fill_(~allowed.to(logits.device), -torch.inf)
        return logits


_format = lru_cache(maxsize=64)(read_format)
