"""Align a trained model with rewards: one call from a model folder and cells to another model folder.

Group-relative policy optimization :cite:p:`shao2024deepseekmath`: several answers are written to each prompt, and each
is made more or less likely by how its reward compares with that of the others. Rewards are tested for answers that
would cheat them before anything is trained, and watched on held-out prompts of validation cells while it is.

The folder has the states of every training: unfinished while it holds `.work`, resumed by the same call, finished when
`cytoglot.json` is there.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from trl import GRPOConfig

from cytoglot.answer_format import DistinctWords, FreeText
from cytoglot.cell_model.load import CellModel, is_model_folder, load_cell_model
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.errors import InputError
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel, own_progress_only, set_threads
from cytoglot.lm.model.load import load_model
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.tasks.task import tasks
from cytoglot.training.cells import begin_run, spec_of, training_cells
from cytoglot.training.job import TrainJob
from cytoglot.training.loop.distributed import from_first, n_processes
from cytoglot.training.loop.fit import Run, adapted, begin, finish, open_run, prepare_trackers
from cytoglot.training.loop.run_folder import last_checkpoint
from cytoglot.training.loop.trainer import make_optimizer, make_schedule, uses_bf16
from cytoglot.training.recipe import GrpoRecipe, TrainRecipe
from cytoglot.training.rl.callback import HISTORY, GrpoCallback
from cytoglot.training.rl.hacking_checks import check_reward_hacking
from cytoglot.training.rl.prompts import (
    EvalPrompt,
    PromptSource,
    held_out_prompts,
    plan_prompts,
    reward_prompts,
    source_of_corpus,
)
from cytoglot.training.rl.reward_eval import ValidationRewards
from cytoglot.training.rl.rewards import MixedReward, RewardInputs, make_reward
from cytoglot.training.rl.trainer import CellGrpoTrainer, FormatConstraints
from cytoglot.training.validation.calibrate import calibrate_model

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

TERMINATOR = "."
_PROBED = 64
"""prompts of each task that probes are written for, at most"""


def train_grpo(job: TrainJob) -> CellModel:
    """Train `model.base` to earn the rewards of `grpo.rewards`, and return the finished model, also saved in `job.out`.

    Training prompts are made of training cells, the prompts on which rewards are watched of validation cells; test
    cells are never read. By default cells of a file keep the parts that they had when the base model was trained.

    Raises
    ------
    InputError
        The recipe names no reward, or asks for what cannot hold together; a reward can be cheated (`grpo.probes`),
        fails, or says nothing of any answer; the base model or the source cannot be used; or the folder holds a run
        with other settings, or other files.
    """
    _check_recipe(job.recipe, job.recipe.grpo)
    source = job.open()
    run = begin_run(job, source)
    finished = begin(run, overwrite=job.overwrite)
    if finished is not None:
        return finished
    n_threads = set_threads(job.threads)

    # The model that training starts from and, if it is one of ours, what it knows of cells.
    base: CellModel | None = None
    name, device = str(job.recipe.model.base), job.device
    if is_model_folder(name):
        base = load_cell_model(name, device=device, dtype="float32")
        lm = base.lm
    else:
        lm = load_model(name, device=device, dtype="float32", revision=job.recipe.model.revision)
    recipe, grpo, seed = job.recipe, job.recipe.grpo, job.seed
    if base is not None:  # sentences are no longer than those that the base has learned
        sentence = recipe.sentence
        named = sentence.top_genes if "top_genes" in sentence.model_fields_set else None
        limits = [n for n in (base.spec.ranking.top_genes, named) if n is not None]
        shorter = sentence.model_copy(update={"top_genes": min(limits, default=None)})
        recipe = recipe.model_copy(update={"sentence": shorter})

    with training_cells(replace(job, recipe=recipe), source, base=base) as cells:
        set_threads(n_threads)  # numba, which ranks cells, may have changed it
        corpus = cells.corpus
        if base is not None and base.spec.vocabulary.fingerprint != corpus.vocabulary.fingerprint:
            raise InputError(
                f"the base model knows {len(base.spec.vocabulary)} genes and {corpus.folder} "
                f"{len(corpus.vocabulary)} others; train on the corpus that it was trained on, or on one built with "
                "its genes"
            )
        for message in cells.messages:
            logger.info("%s", message)

        # What is asked, and what rewards may know of it.
        n_prompts = recipe.optim.steps // grpo.updates * grpo.prompts_per_step
        types, profile = ((), None) if base is None else (base.spec.labels, base.profile)
        needs_constraint = profile is not None and any(tasks[one].writes_cells for one in cells.shares)
        if needs_constraint and grpo.constrained is False:
            raise InputError(
                f"{name} writes cells with profiles, which need answers under constraint; leave "
                "grpo.constrained out, or train the base with model.profile: false"
            )
        grpo = grpo.model_copy(update={"constrained": bool(grpo.constrained or needs_constraint)})
        recipe = recipe.model_copy(update={"grpo": grpo})
        _check_recipe(recipe, grpo)
        prompts = source_of_corpus(cells, recipe, n_training=n_prompts, types=types, profile=profile, seed=seed)
        plan = plan_prompts(prompts, lm, n=n_prompts, seed=seed)
        held_out = held_out_prompts(prompts, lm, n=grpo.held_out_prompts)
        max_tokens = _room(lm, [*plan, *held_out], grpo)
        context = _reward_inputs(lm, prompts, plan, grpo)
        reward = make_reward(grpo.rewards, context)

        # Rewards are tested before anything is trained.
        messages = [*cells.messages, *_check_rewards(reward, plan)]
        if grpo.top_p < 1:
            messages.append(
                f"answers are drawn from the likeliest {grpo.top_p:.0%}, but learned from as if from all: the gradient "
                "is biased towards them; set grpo.top_p: 1 to avoid it"
            )
            logger.warning("%s", messages[-1])
        probes = _probe(reward, prompts, lm, context, grpo, max_tokens=max_tokens)

        watched = ValidationRewards(
            held_out,
            reward,
            context,
            constrained=bool(grpo.constrained),
            n_samples=grpo.held_out_samples,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=grpo.temperature, top_p=grpo.top_p, seed=seed),
            unit=prompts.unit,
        )
        lm = adapted(lm, recipe, seed=seed)
        prepare_trackers(run)
        arguments = grpo_arguments(run, lm, reward, max_tokens=max_tokens)
        open_run(run, overwrite=job.overwrite)
        watch = _fit(lm, plan, reward, watched, replace(run, recipe=recipe), arguments)

        def make_model(aligned: LanguageModel) -> CellModel:
            aligned.model.__dict__.pop("forward", None)  # what TRL has put on it
            aligned.model.model_tags = None
            if base is None:
                spec = spec_of(cells, recipe, run.manifest)
            else:
                spec = replace(base.spec, manifest=run.manifest.to_dict())
            model = CellModel(
                lm=aligned, spec=spec, folder=run.folder, profile=profile, head=None if base is None else base.head
            )
            found = cells.calibration_cells(seed)
            return calibrate_model(model, found, generation=cells.fits_generation, seed=seed)

        return finish(
            run,
            make_model,
            lm,
            watch,
            split=cells.split,
            messages=[*messages, *watch.messages],
            facts={
                "evaluation": watched.table(watch.evaluations, seed=seed),
                "diversity": watched.diversity_table(watch.evaluations),
                "probes": probes,
                "last_good_step": watch.last_good_step,
            },
        )


def _check_recipe(recipe: TrainRecipe, grpo: GrpoRecipe) -> None:
    """Refuse what cannot hold together before anything is read."""
    if not grpo.rewards:
        raise InputError("no reward is named: set grpo.rewards, such as {overlap: {weight: 1}}; see docs/grpo.md")
    if grpo.constrained and grpo.vllm != "off":
        raise InputError(
            "grpo.constrained needs rollouts of this process, whose mask is then in all log-probabilities; vLLM's "
            "answers have another one. Set grpo.vllm: off, or constrained: false"
        )
    if grpo.constrained and grpo.top_p < 1:
        raise InputError(
            f"grpo.constrained draws from all valid answers, so grpo.top_p must be 1, found {grpo.top_p:g}: the share "
            "that is cut off would be missing from the log-probabilities"
        )
    if grpo.vllm != "off" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"grpo.vllm is {grpo.vllm}, but vllm is not installed; run `pip install 'trl[vllm]'` on a machine with a "
            "GPU, or set grpo.vllm: off"
        )
    if grpo.vllm == "server" and grpo.vllm_server is None:
        raise InputError("grpo.vllm is server; set grpo.vllm_server to its address, such as http://node1:8000")
    if recipe.lora is not None and (recipe.lora.train_vectors or recipe.lora.quantize != "none"):
        raise InputError(
            "alignment trains adapters of weights in full precision, and no token vectors; leave out "
            "lora.train_vectors and lora.quantize"
        )
    if recipe.optim.steps % grpo.updates:
        raise InputError(
            f"optim.steps ({recipe.optim.steps}) must be a multiple of grpo.updates ({grpo.updates}), the steps on the "
            "same answers"
        )


def _room(lm: LanguageModel, asked: Sequence[EvalPrompt], grpo: GrpoRecipe) -> int:
    """Return the most tokens of an answer: as the recipe says, or what the context leaves after the longest prompt."""
    longest = max(len(ids) for ids in encode_prompts(lm.tokenizer, [one.prompt for one in asked]))
    room = grpo.max_answer_tokens if lm.context_length is None else lm.context_length - longest
    limit = min(grpo.max_answer_tokens, room)
    constraints = FormatConstraints(lm.tokenizer, terminator=TERMINATOR)
    # What every answer of a closed form needs to end well.
    forms = [one.answer_format for one in asked if not isinstance(one.answer_format, FreeText)]
    fewest = [one.min_words if isinstance(one, DistinctWords) else None for one in forms]
    needed = max((constraints.of(f).enough_tokens(n) for f, n in zip(forms, fewest, strict=True)), default=1)
    true = [len(i) for i in encode_completions(lm.tokenizer, [f" {one.answer}." for one in asked], eos=True)]
    # Answers of a closed form must fit; of the others, most true ones.
    needed = max(needed if grpo.constrained else 1, int(np.median(true)))
    if needed > limit:
        raise InputError(
            f"answers need up to {needed:,} tokens, but have {limit:,}: grpo.max_answer_tokens is "
            f"{grpo.max_answer_tokens:,} and the model's context leaves {room:,} behind the longest prompt; raise the "
            "first, or lower sentence.top_genes"
        )
    return limit


def _reward_inputs(
    lm: LanguageModel, source: PromptSource, plan: Sequence[EvalPrompt], grpo: GrpoRecipe
) -> RewardInputs:
    labels = tuple(dict.fromkeys(label for some in source.labels.values() for label in some))
    labels = labels or tuple(source.reference)
    # Distances are measured by the model as it is now, which no step will move.
    frozen = None
    if any("embedding" in str(settings.get("reward", name)) for name, settings in grpo.rewards.items()):
        frozen = replace(lm, model=copy.deepcopy(lm.model).requires_grad_(requires_grad=False))
    return RewardInputs(
        genes=source.vocabulary.symbols,
        labels=labels,
        label_ids=map_labels(list(labels)).ids if labels else {},
        reference=source.reference,
        lm=frozen,
        texts=tuple(dict.fromkeys(one.answer for one in plan if one.num_genes == 0)),
        terminator=TERMINATOR,
    )


def _check_rewards(reward: MixedReward, plan: Sequence[EvalPrompt]) -> list[str]:
    """Refuse tasks of whose answers no reward says anything, even of the true ones.

    A reward that compares the answers to one prompt is given the true answer twice.
    """
    messages = []
    for name in sorted({one.task for one in plan}):
        some = [one for one in plan if one.task == name][:8]
        twice = [one for one in some for _ in range(2)]
        columns = reward_prompts(twice).as_columns()
        parts = reward.parts([f" {one.answer}{TERMINATOR}" for one in twice], **columns)
        if all(value is None for value in reward.total(parts)):
            raise InputError(
                f"no reward says anything of answers to task {name!r}; add one to grpo.rewards that does, or leave the "
                "task out of tasks"
            )
        silent = [part for part, values in parts.items() if all(value is None for value in values)]
        if silent:
            messages.append(f"of answers to task {name!r} these rewards say nothing: {', '.join(silent)}")
    return messages


def _probe(
    reward: MixedReward,
    source: PromptSource,
    lm: LanguageModel,
    context: RewardInputs,
    grpo: GrpoRecipe,
    *,
    max_tokens: int,
) -> list[Any]:
    """Let answers without content compete with real ones; refuse, or warn, where one wins."""
    if grpo.probes == "off":
        return []
    asked = [one for task in source.shares for one in source.asked(lm, task, "validation", _PROBED)]
    report = check_reward_hacking(
        reward, reward_prompts(asked), context, group_size=grpo.group_size, max_words=max(4, max_tokens)
    )
    if report.hackable and grpo.probes == "refuse":
        raise InputError(
            f"{report.message}. Change grpo.rewards (docs/grpo.md says what helps), ask more prompts, or set "
            "grpo.probes: warn to train nevertheless"
        )
    (logger.warning if report.hackable else logger.info)("%s", report.message)
    return list(report.to_dict()["rows"])


def _fit(
    lm: LanguageModel,
    plan: Sequence[EvalPrompt],
    reward: MixedReward,
    watched: ValidationRewards,
    run: Run,
    arguments: GRPOConfig,
) -> GrpoCallback:
    """Train, from the last whole checkpoint if there is one."""
    recipe, grpo = run.recipe, run.recipe.grpo
    every = -(-recipe.optim.evaluate_every // grpo.updates) * grpo.updates  # answers do not outlive a checkpoint
    watch = GrpoCallback(lm, watched, every=every, max_overlap_gain=grpo.max_overlap_gain, on_collapse=grpo.on_collapse)
    optimizer = make_optimizer(lm.model, recipe.optim, from_nothing=False)
    trainer = CellGrpoTrainer(
        lm,
        plan,
        args=arguments,
        reward_terms=reward.terms,
        constrained=bool(grpo.constrained),
        kl=grpo.kl,
        terminator=TERMINATOR,
        optimizers=(optimizer, make_schedule(optimizer, recipe.optim)),
        callbacks=[watch],
    )
    checkpoint = from_first(last_checkpoint(run.work, mark=HISTORY))
    if checkpoint is not None:
        logger.info("resuming from step %s", checkpoint.name.removeprefix("checkpoint-"))
        watch.restore(checkpoint)
    watch.evaluate_start()
    with own_progress_only(), warnings.catch_warnings():
        # TRL 1.16 still asks transformers 5.23 by an old name; nothing that a user could change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.restore_last_good()
    lm.model.eval()
    return watch


def grpo_arguments(run: Run, lm: LanguageModel, reward: MixedReward, *, max_tokens: int) -> GRPOConfig:
    """Return what TRL is to do: our batches and evaluations, our bar, nothing printed."""
    recipe, grpo, optim = run.recipe, run.recipe.grpo, run.recipe.optim
    world = n_processes()
    if grpo.prompts_per_step % world:  # some rewards compare the answers to a prompt, so these stay together
        raise InputError(
            f"grpo.prompts_per_step ({grpo.prompts_per_step}) must be a multiple of the {world} processes, which "
            "share the prompts; change one of the two"
        )
    # At most `optim.batch_size` answers at a time, in batches of one size.
    local = grpo.group_size * grpo.prompts_per_step // world
    per_device = next(n for n in range(min(local, optim.batch_size), 0, -1) if local % n == 0)
    # transformers 5.20 or so gave the setting another name, and warns of the old one.
    names = ("activation_checkpointing", "gradient_checkpointing")
    recomputes = next(name for name in names if name in GRPOConfig.__dataclass_fields__)
    return GRPOConfig(
        output_dir=str(run.work),
        max_steps=optim.steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=local // per_device,
        num_generations=grpo.group_size,
        num_iterations=grpo.updates,
        beta=0.0,  # the trainer is given the divergence, and makes the reference itself
        epsilon=grpo.clip,
        loss_type=grpo.loss,
        scale_rewards=grpo.scale_rewards,
        reward_weights=[term.weight for term in reward.terms],
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        max_completion_length=max_tokens,
        router_aux_loss_coef=0.0,
        disable_dropout=True,  # rollouts, policy and reference are the same distribution
        shuffle_dataset=False,  # the order of the prompts is part of the plan
        use_vllm=grpo.vllm != "off",
        vllm_mode=grpo.vllm if grpo.vllm != "off" else "colocate",
        vllm_server_base_url=grpo.vllm_server,
        log_completions=False,
        logging_steps=1,
        save_strategy="no",  # the evaluations say when
        save_total_limit=2,
        max_grad_norm=optim.max_grad_norm,
        bf16=uses_bf16(optim, lm.device),
        **{recomputes: optim.gradient_checkpointing},
        disable_tqdm=True,
        log_level="error",
        report_to=list(recipe.report_to) or "none",
        seed=run.seed,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=lm.device.type == "cuda",
    )
