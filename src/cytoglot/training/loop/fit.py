"""What every training has in common, whatever its loss: the model, the loop, the finished folder.

A run is begun by `begin`, trained by `fit` and ended by `finish`, in each of its processes.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks

from cytoglot.atomic import write_json
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.cell_model.sentence_head import HEAD_FILE
from cytoglot.cell_model.spec import TRAINING_FILE, save_split
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel, choose_device, own_progress_only
from cytoglot.lm.model.load import load_model
from cytoglot.lm.model.lora import add_lora, merge_lora, save_adapter
from cytoglot.manifest import Manifest
from cytoglot.sentence.profile import PROFILE_FILE
from cytoglot.training.loop.batches import ReadAhead
from cytoglot.training.loop.callbacks import History, WeightAverage
from cytoglot.training.loop.distributed import from_first, is_first, join_processes, wait_for_all
from cytoglot.training.loop.loss import check_apart
from cytoglot.training.loop.run_folder import (
    WORK,
    check_folder,
    is_finished,
    last_checkpoint,
    make_readable,
    open_work,
    step_of,
    writing,
)
from cytoglot.training.loop.sharded import check_sharding, whole_model, whole_weights
from cytoglot.training.loop.trainer import AnswerTrainer, HeldOutScores, TrainingData, training_arguments, uses_bf16
from cytoglot.training.recipe import OptimRecipe, TrainRecipe
from cytoglot.training.release.model_card import write_model_card

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A folder, and what is to stand in it."""

    folder: Path
    recipe: TrainRecipe
    manifest: Manifest
    seed: int
    device: str

    @property
    def work(self) -> Path:
        """Where checkpoints are while the run is unfinished."""
        return self.folder / WORK


def begin(run: Run, *, overwrite: bool) -> CellModel | None:
    """Take this process's place and look at the folder; return the finished model if it is there already.

    Raises
    ------
    InputError
        The folder holds other things, or a run with other settings.
    """
    join_processes(run.device)
    check_sharding(run.recipe, choose_device(run.device))
    if is_first():
        check_folder(run.folder, run.manifest, overwrite=overwrite)
    finished = from_first(is_finished(run.folder) and not overwrite)
    if not finished:
        return None
    logger.info("%s is finished already; pass overwrite to train it again", run.folder)
    return load_cell_model(run.folder, device=run.device)


def open_run(run: Run, *, overwrite: bool) -> None:
    """Make the work folder; from here on the folder holds an unfinished run, and what it held before is gone.

    Called only when nothing is left that could be refused: a model, a setting, or examples that cannot be used leave
    the folder as it was.
    """
    if is_first():
        open_work(run.folder, run.manifest, overwrite=overwrite)
    wait_for_all()


def start_model(run: Run, from_nothing: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]) -> LanguageModel:
    """Return the model that training starts from: the recipe's base, with an adapter if it has one, or a new one.

    Parameters
    ----------
    from_nothing
        Makes a model and its tokenizer where the recipe names no base.
    """
    recipe, device = run.recipe, choose_device(run.device)
    if recipe.model.base is None:
        model, tokenizer = from_nothing()
        lm = LanguageModel(model=model.to(device), tokenizer=tokenizer, device=device)
    else:
        # Frozen weights may be in half precision; those that learn may not.
        quantize = recipe.lora.quantize if recipe.lora is not None else "none"
        half = quantize != "none" or (recipe.lora is not None and uses_bf16(recipe.optim, device))
        lm = load_model(
            recipe.model.base,
            device=run.device,
            dtype="bfloat16" if half else "float32",
            revision=recipe.model.revision,
            quantize=quantize,
        )
    return adapted(lm, recipe, seed=run.seed)


def adapted(lm: LanguageModel, recipe: TrainRecipe, *, seed: int) -> LanguageModel:
    """Return the model with the recipe's adapter, as it is where there is none."""
    if recipe.lora is None:
        return lm
    return add_lora(lm, **recipe.lora.model_dump(exclude={"quantize"}), seed=seed)


def can_pack(lm: LanguageModel, optim: OptimRecipe, *, auto: bool) -> bool:
    """Return whether examples are packed into common rows: as the recipe says, where the model keeps them apart.

    Parameters
    ----------
    auto
        What "auto" means.

    Raises
    ------
    InputError
        Packing is asked for, and the model lets examples of a row see each other.
    """
    if optim.packing == "off" or (optim.packing == "auto" and not auto):
        return False
    if check_apart(lm.model):
        return True
    family = lm.model.config.model_type
    if optim.packing == "on":
        raise InputError(
            f"optim.packing is on, but in a {family} model examples of one row see each other; set it to auto or off"
        )
    logger.info("examples are not packed: in a %s model those of one row would see each other", family)
    return False


def prepare_trackers(run: Run) -> None:
    """Refuse a tracker that is unknown or not installed; TensorBoard is told its folder.

    Raises
    ------
    InputError
        The message says which, and how it is installed.
    """
    names = run.recipe.report_to
    try:
        for callback in get_reporting_integration_callbacks(list(names)):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"report_to {', '.join(names)}: {' '.join(str(error).split())}") from error
    if "tensorboard" in names:  # else it would write into the work folder, which goes away
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.folder / "runs"))


def fit(run: Run, lm: LanguageModel, data: TrainingData, *, overwrite: bool = False) -> tuple[LanguageModel, History]:
    """Train, from the last whole checkpoint if there is one; return the best model and the history.

    An adapter is not merged yet: `finish` does that.

    Parameters
    ----------
    overwrite
        Start anew, whatever the folder holds.

    Raises
    ------
    InputError
        A checkpoint is of another run or cannot be written, or a tracker is not installed.
    NotFiniteError
        A loss is not a number; the message names the file with the examples.
    torch.OutOfMemoryError
        A single example does not fit the device.
    """
    optim = run.recipe.optim
    higher = False
    if optim.stop_on != "loss":
        if data.held_out is None:
            raise InputError(
                f"optim.stop_on is {optim.stop_on!r}, but nothing is held out to measure it on; set it to loss"
            )
        higher = data.held_out.better(optim.stop_on) == "higher"
    history = History()
    average = WeightAverage(
        lm.model,
        decay=optim.weight_average,
        patience=optim.patience,
        stop_on=optim.stop_on,
        higher=higher,
    )
    prepare_trackers(run)
    validates = len(data.validation) > 0 or data.held_out is not None
    arguments = training_arguments(run.work, run.recipe, lm, seed=run.seed, validates=validates)
    open_run(run, overwrite=overwrite)
    if lm.device.type == "cuda":
        data = replace(data, batches=ReadAhead(data.batches))
    with _set_up_for_training(lm, optim), own_progress_only():
        trainer = AnswerTrainer(lm=lm, data=data, recipe=run.recipe, args=arguments, average=average, history=history)
        checkpoint = from_first(last_checkpoint(run.work))
        if checkpoint is not None:
            logger.info("resuming from step %s", checkpoint.name.removeprefix("checkpoint-"))
            trainer.restore(checkpoint)
        # A run may have been broken off after its last step, and a corpus always has another batch to go on with.
        is_done = average.is_over or (checkpoint is not None and step_of(checkpoint) >= optim.steps)
        if not is_done:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        average.keep_best()
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            # Each process holds a part of the model, and the first one has it whole afterwards.
            sharded = trainer.is_deepspeed_enabled
            whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else whole_weights(lm.model)
            lm = whole_model(lm, whole) if is_first() else lm
        for name in ("forward", "_original_forward"):  # mixed precision was laid over the model's own
            vars(lm.model).pop(name, None)
    lm = replace(lm, device=next(lm.model.parameters()).device)
    lm.model.eval()
    return lm, history


@contextmanager
def _set_up_for_training(lm: LanguageModel, optim: OptimRecipe) -> Iterator[None]:
    """Change what training needs otherwise, and give it back: recomputed activations, and the cache for writing."""
    config = lm.model.config
    cached = config.use_cache
    if optim.gradient_checkpointing:
        if lm.is_adapted:  # the first layer that is recomputed would have no input with a gradient
            lm.model.enable_input_require_grads()
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        config.use_cache = cached
        if optim.gradient_checkpointing:
            lm.model.activation_checkpointing_disable()
            if lm.is_adapted:
                lm.model.disable_input_require_grads()


def finish(
    run: Run,
    make_model: Callable[[LanguageModel], CellModel],
    lm: LanguageModel,
    history: History,
    *,
    split: Split | None = None,
    messages: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    held_out: HeldOutScores | None = None,
) -> CellModel:
    """Make the cell model of a trained language model, write everything, the spec last, and remove the work folder.

    Parameters
    ----------
    make_model
        Language model → cell model, calibrated; called in the first process alone.
    facts
        What `training.json` and the model card tell besides.
    held_out
        Measures the finished model on validation records, for the same.

    Raises
    ------
    InputError
        The folder cannot be written. It is unfinished then, and the same call ends it.
    """
    model = None
    if is_first():
        started = time.perf_counter()
        with writing("the model", run.folder):
            if lm.is_adapted:
                save_adapter(lm, run.folder / ADAPTER_FOLDER)
            if run.recipe.lora is None or run.recipe.lora.quantize == "none":
                lm = merge_lora(lm)
            else:  # into weights that were quantized for training, the adapter is merged as they were before
                lm = load_model(run.folder / ADAPTER_FOLDER, device=run.device, dtype="bfloat16")
        model = make_model(lm)
        told = {"history": history.rows, "messages": list(messages), **(facts or {})}
        if held_out is not None:
            try:
                told["validation"] = held_out.scores(lm)
            except InputError as error:  # such as an answer that does not fit the context: no reason to lose the model
                logger.warning("the tasks are not measured on validation records: %s", error)
        with writing("the model", run.folder):
            with own_progress_only():
                model.lm.model.save_pretrained(run.folder)
                model.lm.tokenizer.save_pretrained(run.folder)
            make_readable(run.folder)
            if split is not None:
                save_split(split, run.folder)
            write_json(run.folder / TRAINING_FILE, told)
            for file, part in ((PROFILE_FILE, model.profile), (HEAD_FILE, model.head)):
                (run.folder / file).unlink(missing_ok=True)  # of an earlier run
                if part is not None:
                    part.save(run.folder)
            model.spec.save(run.folder)  # from here on the folder holds a model
            write_model_card(run.folder)
            shutil.rmtree(run.work, ignore_errors=True)
        logger.info("wrote %s (calibration and saving took %.1f s)", run.folder, time.perf_counter() - started)
    wait_for_all()
    return model or load_cell_model(run.folder, device=run.device)
