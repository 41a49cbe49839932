"""TRL's GRPO trainer with our tokens: prompts encoded as everywhere else, answers written under constraint.

Under constraint the policy is the model's distribution over what the answer format allows. So the mask that a rollout
was written under is also in every log-probability that it is learned from: the policy's, the old policy's and the
reference's. With a mask in the rollouts alone, tokens that could not be chosen would take probability from those that
could, and the gradient would be that of another distribution.

Axes: b rows of a batch, t tokens of an answer, v vocabulary of the model, s symbols of a constraint.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from cytoglot.answer_format import AnswerFormat, DistinctWords
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint, AnswerState
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import encode_prompts, word_token_ids
from cytoglot.training.loop.run_folder import writing
from cytoglot.training.loop.trainer import OneLineFaults, readable_checkpoint
from cytoglot.training.rl.prompts import EvalPrompt
from cytoglot.training.rl.rewards.mixture import CheckedReward

NUMBER = "number"
"""column of the data set and key of a batch: which prompt of the plan a row is"""


class FormatConstraints:
    """The constraint of each answer format, made once; formats that differ only in the number of words share one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, terminator: str) -> None:
        self._tokenizer, self._terminator = tokenizer, terminator
        self._made: dict[object, AnswerConstraint] = {}
        self._tokens: dict[tuple[str, ...], Tensor] = {}

    def of(self, answer_format: AnswerFormat) -> AnswerConstraint:
        """Return the constraint of a format; of `DistinctWords` with any number of words."""
        key = self.key(answer_format)
        if key not in self._made:
            if isinstance(answer_format, DistinctWords):
                words = answer_format.words
                answer_format = DistinctWords(words=words, min_words=1, max_words=len(words))
            self._made[key] = constrain(answer_format, self._tokenizer, terminator=self._terminator)
        return self._made[key]

    def tokens_of(self, words: tuple[str, ...]) -> Tensor:
        """Return the one token of each word; an InputError where some word is several."""
        if words not in self._tokens:
            self._tokens[words] = torch.from_numpy(word_token_ids(self._tokenizer, words))
        return self._tokens[words]

    @staticmethod
    def key(answer_format: AnswerFormat) -> object:
        """Return what formats have in common that share a constraint."""
        return answer_format.words if isinstance(answer_format, DistinctWords) else answer_format


@dataclass(frozen=True)
class _SharedState:
    """Rows of a batch that share a constraint."""

    rows: Tensor
    constraint: AnswerConstraint
    state: AnswerState
    tokens_s: Tensor


class AnswerStates:
    """How far each row of a batch has come with its answer, and what it may write next.

    Parameters
    ----------
    formats
        One for each row; they may differ.
    budget
        Most tokens of an answer, end of text included.
    """

    def __init__(
        self, constraints: FormatConstraints, formats: Sequence[AnswerFormat], *, budget: int, device: torch.device
    ) -> None:
        self._n_rows, self._device = len(formats), device
        self._constraints, self._formats = constraints, formats
        members: dict[object, list[int]] = {}
        for row, one in enumerate(formats):
            members.setdefault(constraints.key(one), []).append(row)
        self._shared = []
        for rows in members.values():
            constraint, of_rows = constraints.of(formats[rows[0]]), [formats[row] for row in rows]
            bounds = [(f.min_words, f.max_words) for f in of_rows if isinstance(f, DistinctWords)]
            state = constraint.start(
                torch.full((len(rows),), budget, dtype=torch.int64, device=device),
                bounds_b2=torch.tensor(bounds, device=device) if bounds else None,
            )
            places = torch.tensor(rows, device=device)
            self._shared.append(_SharedState(places, constraint, state, constraint.tokens_s.to(device)))

    def allowed(self, n_vocabulary: int) -> Tensor:
        """Return the tokens that each row may take next, bool (b, v); a finished row may repeat end of text."""
        allowed_bv = torch.zeros((self._n_rows, n_vocabulary), dtype=torch.bool, device=self._device)
        for shared in self._shared:
            rows_bv = torch.zeros((len(shared.rows), n_vocabulary), dtype=torch.bool, device=self._device)
            rows_bv[:, shared.tokens_s] = shared.state.allowed()
            allowed_bv[shared.rows] = rows_bv
        return allowed_bv

    def weights(self, n_vocabulary: int) -> Tensor | None:
        """Return what the formats add to each token's logit, float32 (b, v); None where none adds anything."""
        weighted = [
            (row, one) for row, one in enumerate(self._formats) if isinstance(one, DistinctWords) and one.weights
        ]
        if not weighted:
            return None
        added_bv = torch.zeros((self._n_rows, n_vocabulary), device=self._device)
        for row, one in weighted:
            assert one.weights is not None
            tokens_w = self._constraints.tokens_of(one.words).to(self._device)
            added_bv[row, tokens_w] = torch.from_numpy(one.weights.log_weights).to(self._device)
        return added_bv

    def advance(self, token_b: Tensor) -> None:
        """Take one more token for each row; rows whose answer is complete ignore it."""
        for shared in self._shared:
            shared.state.advance(shared.constraint.symbols_of(token_b[shared.rows]))

    def replay(self, ids_bt: Tensor, n_vocabulary: int) -> Iterator[Tensor]:
        """Yield what was allowed at each token of written answers, bool (b, v)."""
        for token_b in ids_bt.unbind(dim=1):
            yield self.allowed(n_vocabulary)
            self.advance(token_b)


class AnswerProcessor(LogitsProcessor):
    """Masks the logits of one call of `generate` so that every row writes an answer of its own format."""

    def __init__(self, states: AnswerStates, *, prompt_length: int) -> None:
        self._states, self._n_seen = states, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (b, v) with minus infinity for what is not allowed."""
        for token_b in input_ids[:, self._n_seen :].unbind(dim=1):
            self._states.advance(token_b)
        self._n_seen = input_ids.shape[1]
        added_bv = self._states.weights(scores.shape[1])
        scores = scores if added_bv is None else scores + added_bv
        return scores.masked_fill(~self._states.allowed(scores.shape[1]), -torch.inf)


def masked_log_probs(logits_btv: Tensor, ids_bt: Tensor, allowed_btv: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token among those allowed, and the entropy of its choice, both (b, t) in nats.

    A token that was not allowed has minus infinity.
    """
    masked_btv = logits_btv.float().masked_fill(~allowed_btv, -torch.inf)
    log_p_btv = masked_btv.log_softmax(dim=-1)
    # 0 · log 0 is 0, also in the gradient.
    known_btv = log_p_btv.masked_fill(~allowed_btv, 0.0)
    entropy_bt = -(known_btv.exp() * known_btv).masked_fill(~allowed_btv, 0.0).sum(dim=-1)
    return log_p_btv.gather(-1, ids_bt[:, :, None])[:, :, 0], entropy_bt


def group_spread(rewards_nr: Tensor, weights_r: Tensor, group_size: int) -> float:
    """Return the standard deviation of the weighted rewards within a group, a mean over groups.

    An answer that no reward rates has no reward of 0: it is left out, and so is a group with fewer than two others.

    Returns
    -------
    float
        NaN where no group is left.
    """
    total_n = (rewards_nr * weights_r).nansum(dim=1)
    total_n[rewards_nr.isnan().all(dim=1)] = torch.nan
    rated = [total[~total.isnan()] for total in total_n.view(-1, group_size)]
    spreads = [float(total.std()) for total in rated if len(total) > 1]
    return sum(spreads) / len(spreads) if spreads else math.nan


class CellGrpoTrainer(OneLineFaults, GRPOTrainer):
    """TRL's trainer for our prompts.

    Differs from it in these: the policy sees exactly the tokens of `encode_prompts`; positions count from the first
    real token in every pass; the reference is a copy of the model that training starts from, not loaded again by name;
    with `constrained`, rollouts and log-probabilities have the mask of the answer format; nothing is printed or sent.

    Parameters
    ----------
    prompts
        The plan: prompt i is row i of the data set. One generation takes as many as a step has, in order.
    reward_terms
        Parts of the reward; `args.reward_weights` has their weights.
    kl
        Weight of the divergence from the reference; 0 keeps none. With adapters the reference is the model without.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[EvalPrompt],
        *,
        args: Any,
        reward_terms: Sequence[CheckedReward],
        constrained: bool,
        kl: float,
        terminator: str = ".",
        **options: Any,
    ) -> None:
        self._lm, self._prompts = lm, prompts
        self._constraints = FormatConstraints(lm.tokenizer, terminator=terminator) if constrained else None
        self._rows: Sequence[int] = ()
        has_adapter = is_peft_model(lm.model)
        reference = copy.deepcopy(lm.model) if kl > 0 and not has_adapter else None
        rows = Dataset.from_dict({"prompt": [""] * len(prompts), NUMBER: list(range(len(prompts)))})
        # args.beta is 0, or TRL would load the reference by the name in the model's configuration.
        super().__init__(
            model=lm.model,
            reward_funcs=list(reward_terms),
            args=args,
            train_dataset=rows,
            processing_class=lm.tokenizer,
            **options,
        )
        self._terms = tuple(reward_terms)
        self.remove_callback(PrinterCallback)
        self.beta = kl
        if reference is not None:
            reference.requires_grad_(requires_grad=False)
            disable_dropout_in_model(reference)
            add_fused_lm_head(reference, temperature=self.temperature)
            if self.is_deepspeed_enabled:
                self.ref_model = prepare_deepspeed(reference, self.accelerator)
            elif self.is_fsdp_enabled:
                self.ref_model = prepare_fsdp(reference, self.accelerator)
            else:
                self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        base: Any = lm.model.get_base_model() if has_adapter else lm.model
        signature = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in signature
        self._keeps_some_logits = "logits_to_keep" in signature

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the finished model gets a card of ours."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, or say in one line why it cannot be written."""
        with writing(f"the checkpoint of step {self.state.global_step}", self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable_checkpoint(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [ids.tolist() for ids in encode_prompts(self._lm.tokenizer, prompts)], None, {}

    # What TRL 1.16 calls, in this order, for each batch of prompts:
    # 1. `_generate_and_score_completions(inputs)`, with a row for each answer to be written: it is given our prompts
    #    (`_prompts`), looked up by the number that each row carries. With the rows in that order it calls
    #    `_tokenize_prompts`, `_generate_single_turn`, `_get_per_token_logps_and_entropies` for the old policy and for
    #    the reference, which need the same masks, and last `_calculate_rewards`.
    # 2. Its output is shuffled over the whole batch and split for the steps of gradient accumulation
    #    (`_prepare_inputs`). So the number of a row is put into the output as a tensor, which is shuffled along.
    # 3. `_compute_loss(model, inputs)` for each split, which asks for the log-probabilities of the policy: by then only
    #    the tensor says which prompt, and so which mask, a row has. `_working_on` tells both times.
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [int(row[NUMBER]) for row in inputs]
        asked = [{"prompt": self._prompts[n].prompt, **self._prompts[n].columns} for n in numbers]
        with self._working_on(numbers):
            output: dict[str, Any] = super()._generate_and_score_completions(asked)
        output[NUMBER] = torch.tensor(numbers, device=self.accelerator.device)
        return output

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Return the rewards of all processes' answers, and log what TRL does not: spread within groups, clipping."""
        rewards_nr: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        log = self._metrics["train" if self.model.training else "eval"]
        spread = group_spread(rewards_nr, self.reward_weights.to(rewards_nr.device), self.num_generations)
        if not math.isnan(spread):
            log["group_std"].append(spread)
        for term, value_n in zip(self._terms, rewards_nr.unbind(dim=1), strict=True):
            bounds = [b for b in (term.settings.clip_low, term.settings.clip_high) if b is not None]
            known_n = value_n[~value_n.isnan()]
            if bounds and len(known_n):
                at_bound = torch.isin(known_n, torch.tensor(bounds, dtype=known_n.dtype, device=known_n.device))
                log[f"rewards/{term.name}/clipped"].append(at_bound.float().mean().item())
        return rewards_nr

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        with self._working_on(inputs[NUMBER].tolist()):
            return super()._compute_loss(model, inputs)

    @contextmanager
    def _working_on(self, numbers: Sequence[int]) -> Iterator[None]:
        """Say which prompts the rows of the batch at hand belong to."""
        before, self._rows = self._rows, numbers
        try:
            yield
        finally:
            self._rows = before

    def _states(self, rows: Iterable[int]) -> AnswerStates:
        assert self._constraints is not None
        formats = [self._prompts[n].answer_format for n in rows]
        return AnswerStates(
            self._constraints, formats, budget=self.max_completion_length, device=self.accelerator.device
        )

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,  # noqa: FBT001, FBT002 - the signature is TRL's
    ) -> tuple[list[list[int]], Any]:
        if self._constraints is None:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
        width, device = max(map(len, prompt_ids)), self.accelerator.device
        rows = [[self._lm.pad_id] * (width - len(row)) + row for row in prompt_ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompt_ids]
        ids_bt, mask_bt = torch.tensor(rows, device=device), torch.tensor(mask, device=device)
        processor = AnswerProcessor(self._states(self._rows), prompt_length=ids_bt.shape[1])
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            written_bt = model.generate(
                input_ids=ids_bt,
                attention_mask=mask_bt,
                generation_config=self.generation_config,
                logits_processor=LogitsProcessorList([processor]),
            )[:, ids_bt.shape[1] :]
        # Tokens up to end of text, that included.
        written = written_bt.tolist()
        ends = [next((i for i, token in enumerate(ids) if token in self.eos_token_ids), len(ids)) for ids in written]
        return [ids[: end + 1] for ids, end in zip(written, ends, strict=True)], None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,  # noqa: FBT001, FBT002 - the signature is TRL's
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Return log-probabilities, and entropies, of the tokens of the answers: (b, t), in nats, 0 for padding."""
        size = batch_size or len(input_ids)
        log_probs, entropies = [], []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            one = self._log_probs(model, input_ids[part], attention_mask[part], logits_to_keep, self._rows[part])
            log_probs.append(one[0])
            entropies.append(one[1])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _log_probs(
        self, model: Any, ids_bt: Tensor, mask_bt: Tensor, n_answer: int, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        real_bt = mask_bt[:, -n_answer:] == 1
        given: dict[str, Any] = {"input_ids": ids_bt, "attention_mask": mask_bt}
        if self._takes_positions:  # as `generate` counts them; only rotary models would not notice padding
            given["position_ids"] = (mask_bt.cumsum(dim=1) - 1).clamp(min=0)
        if self._constraints is None:
            labels_bt = ids_bt.masked_fill(mask_bt == 0, -100)
            labels_bt[:, :-n_answer] = -100
            with self.accelerator.autocast():
                output = model(**given, labels=labels_bt, fused_lm_head=True)
            # The reference computes no entropy.
            entropy_bt = output.log_probs if output.entropy is None else output.entropy
            return output.log_probs[:, -n_answer:], entropy_bt[:, -n_answer:]
        if self._keeps_some_logits:
            given["logits_to_keep"] = n_answer + 1
        with self.accelerator.autocast():
            logits_btv = model(**given, use_cache=False).logits[:, -n_answer - 1 : -1]
        written_bt, states = ids_bt[:, -n_answer:], self._states(rows)
        added_bv = states.weights(logits_btv.shape[-1])  # a profile is divided by the temperature, as in the rollouts
        logits_btv = (logits_btv if added_bv is None else logits_btv + added_bv[:, None]) / self.temperature
        with torch.no_grad():
            allowed_btv = torch.stack(list(states.replay(written_bt, logits_btv.shape[-1])), dim=1)
        log_p_bt, entropy_bt = masked_log_probs(logits_btv, written_bt, allowed_btv)
        return log_p_bt.masked_fill(~real_bt, 0.0), entropy_bt.masked_fill(~real_bt, 0.0)
