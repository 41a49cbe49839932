"""Constrained rollouts: what is learned from is the distribution that was drawn from, and nothing else."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerBase

from cytoglot.answer_format import AnswerFormat, DistinctWords, OneOf
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_completions, encode_prompts
from cytoglot.manifest import Manifest
from cytoglot.training.loop.fit import Run
from cytoglot.training.recipe import GrpoRecipe, ModelRecipe, OptimRecipe, TrainRecipe
from cytoglot.training.rl.grpo import grpo_arguments
from cytoglot.training.rl.prompts import EvalPrompt
from cytoglot.training.rl.rewards import RewardInputs, make_reward
from cytoglot.training.rl.trainer import CellGrpoTrainer, group_spread, masked_log_probs

#: TRL 1.16 asks transformers 5.23 by an old name; `train_grpo` filters it in the same way.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ("CD3D", "CD3E", "LYZ")
SHORT, LONG = "Write 2 genes:", "Please write, of this human cell of the blood, the 2 genes that lead it:"
PAIRS = tuple(" ".join(pair) for pair in itertools.permutations(WORDS, 2))
TWO = DistinctWords(words=WORDS, min_words=2, max_words=2)
UP_TO_TWO = DistinctWords(words=WORDS, min_words=1, max_words=2)
LABELS = ("B cell", "B cell, naive", "T cell")
TOKENS = 24


def _lm(family: str, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    common = {"vocab_size": len(tokenizer) + 3, "initializer_range": 0.5, "eos_token_id": tokenizer.eos_token_id}
    wide = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, **common}
    config = {
        "llama": lambda: LlamaConfig(**wide, max_position_embeddings=128),
        "neox": lambda: GPTNeoXConfig(**wide, max_position_embeddings=128),
        "gpt2": lambda: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=128, **common),  # absolute positions
    }[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer)


@pytest.fixture(scope="module", params=["words", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Words of one token each, and words of several tokens that begin alike."""
    words = WORDS if request.param == "words" else ()
    return build_tokenizer(words, [SHORT, LONG, *LABELS], n_subwords=280)


def _asked(answer_format: AnswerFormat, prompt: str = SHORT) -> EvalPrompt:
    n_genes = 2 if isinstance(answer_format, DistinctWords) else 0
    return EvalPrompt(prompt=prompt, task="t", answer="LYZ", answer_format=answer_format, num_genes=n_genes, key="k")


def _trainer(
    lm: LanguageModel, asked: Sequence[EvalPrompt], folder: Path, *, constrained: bool = True, **grpo: object
) -> CellGrpoTrainer:
    settings = {"group_size": 2, "prompts_per_step": len(asked), "kl": 0.0, "max_answer_tokens": TOKENS, **grpo}
    recipe = TrainRecipe(
        kind="grpo",
        model=ModelRecipe(base="none"),
        optim=OptimRecipe(steps=2, batch_size=64),
        grpo=GrpoRecipe(rewards={"validity": {}}, constrained=constrained, **settings),
    )
    reward = make_reward({"validity": {}}, RewardInputs(genes=WORDS, labels=LABELS))
    run = Run(folder=folder, recipe=recipe, manifest=Manifest(command="train"), seed=0, device="cpu")
    return CellGrpoTrainer(
        lm,
        asked,
        args=grpo_arguments(run, lm, reward, max_tokens=TOKENS),
        reward_terms=reward.terms,
        constrained=constrained,
        kl=recipe.grpo.kl,
    )


def _batch(lm: LanguageModel, asked: Sequence[EvalPrompt], answers: Sequence[str]) -> dict[str, Tensor]:
    """One row for each prompt and its answer, padded as the trainer pads."""
    prompts = encode_prompts(lm.tokenizer, [one.prompt for one in asked])
    written = encode_completions(lm.tokenizer, [f" {answer}." for answer in answers], eos=True)
    left, right = max(map(len, prompts)), max(map(len, written))
    pad = lm.pad_id
    return {
        "prompt_ids": torch.tensor([[pad] * (left - len(p)) + p.tolist() for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([w.tolist() + [pad] * (right - len(w)) for w in written]),
        "completion_mask": torch.tensor([[1] * len(w) + [0] * (right - len(w)) for w in written]),
        "number": torch.arange(len(asked)),
    }


def _log_probs(trainer: CellGrpoTrainer, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with trainer._working_on(batch["number"].tolist()):
        log_p, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1], compute_entropy=True
        )
    assert entropy is not None
    return log_p, entropy


def _by_hand(lm: LanguageModel, prompt: str, answer: str, valid: Sequence[str], temperature: float) -> Tensor:
    """Log-probability of each token of an answer: only tokens that lead to a valid answer share the probability."""
    answers = [ids.tolist() for ids in encode_completions(lm.tokenizer, [f" {one}." for one in valid], eos=True)]
    ids = encode_completions(lm.tokenizer, [f" {answer}."], eos=True)[0].tolist()
    start = encode_prompts(lm.tokenizer, [prompt])[0].tolist()
    logits_tv = lm.model(input_ids=torch.tensor([start + ids])).logits[0, len(start) - 1 : -1] / temperature
    found = []
    for t, token in enumerate(ids):
        following = sorted({other[t] for other in answers if other[:t] == ids[:t] and len(other) > t})
        found.append(logits_tv[t, token] - torch.logsumexp(logits_tv[t, following], dim=0))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("answer_format", "valid"),
    [(TWO, PAIRS), (UP_TO_TWO, PAIRS + WORDS), (OneOf(options=LABELS), LABELS)],
    ids=["two words", "one or two words", "labels"],
)
def test_probabilities_of_all_valid_answers_sum_to_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, answer_format: AnswerFormat, valid: tuple[str, ...]
) -> None:
    lm, asked = _lm("llama", tokenizer), [_asked(answer_format)] * len(valid)
    trainer = _trainer(lm, asked, tmp_path, temperature=0.7)
    batch = _batch(lm, asked, valid)
    with torch.no_grad():
        log_p_bt, entropy_bt = _log_probs(trainer, batch)
        free_bt, _ = _log_probs(_trainer(_lm("llama", tokenizer), asked, tmp_path, constrained=False), batch)
    assert float(log_p_bt.sum(dim=1).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(free_bt.sum(dim=1).exp().sum()) < 0.9  # without the mask it is another distribution
    assert bool((entropy_bt >= 0).all())
    assert bool(log_p_bt.isfinite().all())
    padding = batch["completion_mask"] == 0
    assert bool((log_p_bt[padding] == 0).all())
    assert bool((entropy_bt[padding] == 0).all())


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_the_log_probabilities_are_those_of_the_constrained_distribution(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str
) -> None:
    """Rows of several formats and of prompts of several lengths in one batch."""
    lm = _lm(family, tokenizer)
    asked = [_asked(TWO), _asked(TWO, LONG), _asked(UP_TO_TWO, LONG), _asked(OneOf(options=LABELS))]
    answers = ["LYZ CD3D", "CD3E CD3D", "CD3E", "B cell"]
    valid: list[Sequence[str]] = [PAIRS, PAIRS, PAIRS + WORDS, LABELS]
    trainer = _trainer(lm, asked, tmp_path, temperature=0.7)
    with torch.no_grad():
        log_p_bt, _ = _log_probs(trainer, _batch(lm, asked, answers))
        for row_t, one, answer, others in zip(log_p_bt, asked, answers, valid, strict=True):
            expected_t = _by_hand(lm, one.prompt, answer, others, 0.7)
            torch.testing.assert_close(row_t[: len(expected_t)], expected_t, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_free_log_probabilities_do_not_see_padding(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str
) -> None:
    lm, asked = _lm(family, tokenizer), [_asked(TWO), _asked(TWO, LONG)]
    trainer = _trainer(lm, asked, tmp_path, constrained=False, temperature=0.7)
    with torch.no_grad():
        together, _ = _log_probs(trainer, _batch(lm, asked, ["LYZ CD3D", "LYZ CD3D"]))
        alone, _ = _log_probs(trainer, _batch(lm, asked[:1], ["LYZ CD3D"]))
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)


def test_the_gradient_is_the_policy_gradient_of_the_constrained_distribution(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lm, asked = _lm("llama", tokenizer), [_asked(TWO), _asked(TWO, LONG), _asked(OneOf(options=LABELS))]
    answers, advantages = ["LYZ CD3D", "CD3E CD3D", "T cell"], torch.tensor([0.7, -0.4, 1.1])
    trainer = _trainer(lm, asked, tmp_path, temperature=0.8)
    trainer.current_gradient_accumulation_steps = 1
    lm.model.train()
    batch = _batch(lm, asked, answers) | {"advantages": advantages}
    trainer._compute_loss(lm.model, batch).backward()
    found = {name: p.grad.clone() for name, p in lm.model.named_parameters()}

    lm.model.zero_grad()
    terms = [
        advantage * _by_hand(lm, one.prompt, answer, valid, 0.8).sum()
        for advantage, one, answer, valid in zip(advantages, asked, answers, [PAIRS, PAIRS, LABELS], strict=True)
    ]
    (-torch.stack(terms).sum() / (len(answers) * TOKENS)).backward()  # dr_grpo divides by the longest possible
    for name, p in lm.model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3


def test_rollouts_are_drawn_from_that_distribution(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    n, lm, asked = 3000, _lm("llama", tokenizer), [_asked(TWO)] * len(PAIRS)
    trainer = _trainer(lm, asked, tmp_path, temperature=0.8)
    with torch.no_grad():
        log_p_bt, _ = _log_probs(trainer, _batch(lm, asked, PAIRS))
        prompt = encode_prompts(tokenizer, [SHORT])[0].tolist()
        torch.manual_seed(0)
        with trainer._working_on([0] * n):
            written, _ = trainer._generate_single_turn([prompt] * n, None, {}, 2)
    counts = Counter(tokenizer.decode(ids, skip_special_tokens=True) for ids in written)
    assert set(counts) <= {f" {pair}." for pair in PAIRS}
    for pair, log_p in zip(PAIRS, log_p_bt.sum(dim=1), strict=True):
        expected = float(log_p.exp())
        spread = (expected * (1 - expected) / n) ** 0.5
        assert counts[f" {pair}."] / n == pytest.approx(expected, abs=4 * spread + 1e-3)


def test_the_first_update_has_the_ratio_one_and_no_divergence(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Old policy, policy and reference are masked alike, so that nothing differs before the first step."""
    lm, asked = _lm("llama", tokenizer), [_asked(TWO), _asked(OneOf(options=LABELS))]
    trainer = _trainer(lm, asked, tmp_path, kl=0.1, updates=2)
    trainer.current_gradient_accumulation_steps = 1
    lm.model.train()
    torch.manual_seed(0)
    batch = trainer._generate_and_score_completions([{"number": n} for n in (0, 0, 1, 1)])
    log_p_bt, _ = _log_probs(trainer, batch)
    assert torch.equal(log_p_bt, batch["old_per_token_logps"])
    assert torch.equal(log_p_bt, batch["ref_per_token_logps"])
    trainer._compute_loss(lm.model, batch)
    assert trainer._metrics["train"]["kl"] == [0.0]
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]


def test_a_single_valid_answer_teaches_nothing() -> None:
    """One allowed token at each place: log-probability and entropy 0, and a gradient of exactly 0."""
    logits_btv = torch.randn(1, 2, 5, requires_grad=True)
    allowed_btv = torch.zeros(1, 2, 5, dtype=torch.bool)
    allowed_btv[0, 0, 3] = allowed_btv[0, 1, 1] = True
    log_p_bt, entropy_bt = masked_log_probs(logits_btv, torch.tensor([[3, 1]]), allowed_btv)
    assert log_p_bt.tolist() == [[0.0, 0.0]]
    assert entropy_bt.tolist() == [[0.0, 0.0]]
    (log_p_bt.sum() + entropy_bt.sum()).backward()
    assert logits_btv.grad is not None
    assert bool((logits_btv.grad == 0).all())


def test_entropy_is_that_of_the_allowed_tokens() -> None:
    logits_btv = torch.log(torch.tensor([[[0.5, 0.25, 0.25, 9.0]]]))
    allowed_btv = torch.tensor([[[True, True, True, False]]])
    log_p_bt, entropy_bt = masked_log_probs(logits_btv, torch.tensor([[1]]), allowed_btv)
    assert log_p_bt.item() == pytest.approx(-1.3863, abs=1e-4)  # log(1/4)
    assert entropy_bt.item() == pytest.approx(1.0397, abs=1e-4)  # 1.5 log 2


def test_the_spread_of_a_group_leaves_out_what_no_reward_rates() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan], [3.0, nan], [nan, nan], [2.0, 2.0], [nan, 1.0], [nan, nan]])
    # Groups of three: totals 1 and 3; 2 + 2·3 = 8 and 1·3 = 3; of which the unrated are no zeros.
    spread = group_spread(rewards, torch.tensor([1.0, 3.0]), 3)
    assert spread == pytest.approx((2**0.5 + 5 / 2**0.5) / 2)
    assert np.isnan(group_spread(rewards[2:3], torch.tensor([1.0, 3.0]), 1))
