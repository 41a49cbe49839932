"""`transformers`' Trainer with a loss weight on each token, and the optimiser that suits gene vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, get_cosine_schedule_with_warmup

from cytoglot.lm.load import LanguageModel
from cytoglot.train.callbacks import History, WeightAverage
from cytoglot.train.recipe import OptimRecipe, TrainRecipe


class AnswerTrainer(Trainer):
    """Minimises the weighted negative log-likelihood per example; validation looks at the averaged weights.

    The body runs on all tokens, the output layer only on those that are predicted with a weight above 0: with half of
    a small model's work in its output layer that is nearly twice as fast as computing all logits.
    """

    def __init__(self, *, average: WeightAverage, history: History, **kwargs: Any) -> None:
        super().__init__(callbacks=[average, history], **kwargs)
        self.remove_callback(PrinterCallback)  # the bar and the history say it all
        self._average, self._history = average, history

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the sum of weighted token losses over the number of examples, in nats."""
        ids_bt, weights_bt = inputs["input_ids"], inputs["weights"]
        if model.training:
            self._history.n_tokens += int((weights_bt >= 0).sum())
        unwrapped = self.accelerator.unwrap_model(model)
        predicted_bt = weights_bt[:, 1:] > 0
        body = unwrapped.base_model(input_ids=ids_bt, use_cache=False, **self.apart(unwrapped, inputs))
        hidden_btd = body.last_hidden_state[:, :-1]
        logits_nv = unwrapped.get_output_embeddings()(hidden_btd[predicted_bt]).float()
        loss_n = functional.cross_entropy(logits_nv, ids_bt[:, 1:][predicted_bt], reduction="none")
        loss = (loss_n * weights_bt[:, 1:][predicted_bt]).sum() / self.n_examples(inputs)
        return (loss, {}) if return_outputs else loss

    def apart(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what keeps examples of one row apart; nothing where a row is an example."""
        return {}

    def n_examples(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of examples of a batch: its rows."""
        return len(inputs["input_ids"])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the validation loss of the averaged weights."""
        with self._average.applied():
            return super().evaluate(*args, **kwargs)


class BatchTrainer(AnswerTrainer):
    """The same for data sets whose items are whole batches of packed rows, as a corpus gives them.

    Examples of one row do not see each other: a mask of four axes keeps them apart, and positions begin anew.
    """

    def apart(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the mask and the positions of packed rows."""
        mask_b1tt = segment_mask(inputs["segment_ids"])
        if model.config._attn_implementation != "sdpa":  # others add the mask to the logits
            mask_b1tt = torch.where(mask_b1tt, 0.0, torch.finfo(model.dtype).min).to(model.dtype)
        return {"attention_mask": mask_b1tt, "position_ids": inputs["position_ids"]}

    def n_examples(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of examples in the rows of a batch."""
        return int(inputs["n_examples"])

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches as they come."""
        return DataLoader(self.train_dataset, batch_size=None)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the batches as they are."""
        return DataLoader(eval_dataset or self.eval_dataset, batch_size=None)


def segment_mask(segment_ids_bt: torch.Tensor) -> torch.Tensor:
    """Return (b, 1, t, t) True where a token may look: at itself and at earlier tokens of its own segment."""
    same_btt = segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    return torch.tril(same_btt)[:, None]


def optimiser_and_schedule(
    model: torch.nn.Module, recipe: OptimRecipe, *, from_nothing: bool
) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW and a cosine schedule with warm-up.

    Input vectors have a learning rate of their own in a model from nothing, because they start from the data and the
    rest starts from noise. Vectors and norms are not decayed.
    """
    vectors = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    ratio = recipe.word_learning_rate_ratio if from_nothing else 1.0
    named = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in named if id(p) in vectors], "lr": recipe.learning_rate * ratio, "weight_decay": 0.0},
        {"params": [p for p in named if id(p) not in vectors and p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in named if id(p) not in vectors and p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    warmup = max(1, round(recipe.warmup_share * recipe.steps))
    return optimiser, get_cosine_schedule_with_warmup(optimiser, warmup, recipe.steps)


def training_arguments(
    work: Path, recipe: TrainRecipe, lm: LanguageModel, *, seed: int, validates: bool
) -> TrainingArguments:
    """Return what `transformers` is to do: our steps and looks, our bar, nothing reported anywhere."""
    optim = recipe.optim
    return TrainingArguments(
        output_dir=str(work),
        max_steps=optim.steps,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.batch_size * 2,
        max_grad_norm=optim.max_grad_norm,
        bf16=bool(optim.bf16),
        eval_strategy="steps" if validates else "no",
        eval_steps=optim.evaluate_every,
        save_strategy="steps",
        save_steps=optim.evaluate_every,
        save_total_limit=2,
        logging_steps=max(1, min(10, optim.steps // 10)),
        train_sampling_strategy="sequential",  # the order of the examples is part of the plan
        remove_unused_columns=False,
        label_names=["weights"],
        prediction_loss_only=True,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
        seed=seed,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=lm.device.type == "cuda",
    )
