"""Align a trained model with rewards: one call from a model folder and cells to another model folder.

Group-relative policy optimisation :cite:p:`shao2024deepseekmath`: several answers are written to each prompt, and each
is made more or less likely by how its reward compares with that of the others. Rewards are tested for answers that
would cheat them before anything is trained, and watched on held-out prompts of validation cells while it is.

The folder has the states of every training: unfinished while it holds `.work`, resumed by the same call, finished when
`cytoglot.json` is there.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from trl import GRPOConfig

from cytoglot.answer_format import FreeText
from cytoglot.cell_model.load import CellModel, is_model_folder, load_cell_model
from cytoglot.cell_model.spec import CellModelSpec, load_split
from cytoglot.config import load_recipe
from cytoglot.corpus.format.folder import Corpus, is_corpus, open_corpus
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import AS_NAMED, DEFAULT_GENES, GeneOptions
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.readers.read import read
from cytoglot.data.schema import GROUP_FIELDS, group_values, recognise_obs
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.splitting import Split, split_cells
from cytoglot.errors import InputError
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel, own_progress_only, set_threads
from cytoglot.lm.model.load import load_language_model
from cytoglot.lm.model.lora import add_lora
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.manifest import Manifest
from cytoglot.metrics.uncertainty import resampling_unit
from cytoglot.training.loop.callbacks import History
from cytoglot.training.loop.distributed import from_first, n_processes
from cytoglot.training.loop.fit import (
    Run,
    begin,
    check_trackers,
    finish,
    manifest_of_cells,
    manifest_of_corpus,
    open_run,
)
from cytoglot.training.loop.trainer import optimiser_and_schedule, uses_bf16
from cytoglot.training.recipe import GrpoRecipe, TrainRecipe
from cytoglot.training.rl.callback import AlignmentWatch, last_look
from cytoglot.training.rl.hacking_checks import probe_reward
from cytoglot.training.rl.prompts import (
    AskableCells,
    AskedPrompt,
    PromptSource,
    held_out_prompts,
    plan_prompts,
    reward_prompts,
    source_of_cells,
    source_of_corpus,
)
from cytoglot.training.rl.reward_eval import HeldOutRewards
from cytoglot.training.rl.rewards import MixedReward, RewardContext, make_reward
from cytoglot.training.rl.trainer import CellGrpoTrainer, FormatConstraints
from cytoglot.training.supervised.prepare import PreparedCells, label_table, prepare_cells

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

TERMINATOR = "."
_PROBED = 64
"""prompts of each task that probes are written for, at most"""


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """What alignment stands on: the model that it starts from, and what can be asked."""

    lm: LanguageModel
    source: PromptSource
    finish: Callable[[LanguageModel, Manifest], CellModel]
    """the aligned language model → the model with its spec, calibrated on validation cells"""
    split: Split | None
    messages: tuple[str, ...]


def train_grpo(
    source: AnnData | Corpus | str | Path,
    *,
    label: str | None = None,
    out: str | Path,
    recipe: TrainRecipe | str | Path,
    overrides: tuple[str, ...] = (),
    split_by: str = "auto",
    split: Split | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> CellModel:
    """Align `recipe.model.base` with `recipe.grpo.rewards` and return the finished model, also saved in `out`.

    Parameters
    ----------
    source
        Cells, as for `cytoglot.train`, or a corpus. Training prompts are made of training cells, the prompts on which
        rewards are watched of validation cells; test cells are never read.
    label
        Column of `obs` with the cell types; by default that of the base model. A corpus needs none.
    recipe, overrides
        A `TrainRecipe` of kind grpo, or a YAML file, with `a.b=value` replacements. Where it names no tasks, cells of
        a given type are written.
    split_by, split
        As for `cytoglot.train`. By default cells keep the parts that they had when the base model was trained.

    Raises
    ------
    InputError
        The recipe is of another kind, names no reward, or asks for what cannot hold together; a reward can be cheated
        (`grpo.probes`), fails, or says nothing of any answer; the base model or the source cannot be used; or `out`
        holds a run with other settings, or other files.
    """
    settings = recipe if isinstance(recipe, TrainRecipe) else load_recipe(TrainRecipe, recipe, overrides)
    _check_recipe(settings)
    base = str(settings.model.base)
    spec = CellModelSpec.load(base) if is_model_folder(base) else None
    if isinstance(source, Corpus) or (isinstance(source, (str, Path)) and is_corpus(source)):
        corpus = source if isinstance(source, Corpus) else open_corpus(source)
        manifest = manifest_of_corpus(corpus, settings, seed=seed)
        lay = partial(_ground_of_corpus, corpus, settings, seed=seed, device=device)
    else:
        label = label or (spec.label_column if spec is not None else None)
        if label is None:
            raise InputError("pass the label, the column of obs with the cell types: the base model names none")
        found = resolve_source(source) if isinstance(source, (str, Path)) else source
        adata = read(found, layer=layer, **gene_options.keywords)
        manifest = manifest_of_cells(
            adata, source, settings, label=label, split_by=split_by, split=split, gene_options=gene_options, seed=seed
        )
        of_file: dict[str, Any] = {"label": label, "split": split, "split_by": split_by}
        lay = partial(_ground_of_cells, adata, settings, seed=seed, device=device, **of_file)
    run = Run(folder=Path(out), recipe=settings, manifest=manifest, seed=seed, device=device)
    finished = begin(run, overwrite=overwrite)
    if finished is not None:
        return finished
    set_threads(threads)
    ground = lay()
    for message in ground.messages:
        logger.info("%s", message)
    return _align(ground, run, overwrite=overwrite)


def _check_recipe(recipe: TrainRecipe) -> None:
    """Refuse what cannot hold together before anything is read."""
    grpo = recipe.grpo
    if recipe.kind != "grpo":
        raise InputError(f"expected a recipe of kind grpo, found {recipe.kind}; set kind: grpo")
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
    if recipe.lora is not None and (recipe.lora.train_vectors or recipe.lora.quantise != "none"):
        raise InputError(
            "alignment trains adapters of weights in full precision, and no token vectors; leave out "
            "lora.train_vectors and lora.quantise"
        )
    if recipe.optim.steps % grpo.updates:
        raise InputError(
            f"optim.steps ({recipe.optim.steps}) must be a multiple of grpo.updates ({grpo.updates}), the steps on the "
            "same answers"
        )


def _n_prompts(recipe: TrainRecipe) -> int:
    return recipe.optim.steps // recipe.grpo.updates * recipe.grpo.prompts_per_step


def _load_base(recipe: TrainRecipe, device: str) -> tuple[LanguageModel, CellModel | None]:
    """Return the model that training starts from, alone and, if it is one of ours, with what it knows of cells."""
    base = str(recipe.model.base)
    if is_model_folder(base):
        model = load_cell_model(base, device=device, dtype="float32")
        return model.lm, model
    return load_language_model(base, device=device, dtype="float32", revision=recipe.model.revision), None


def _ground_of_cells(
    adata: AnnData,
    recipe: TrainRecipe,
    *,
    label: str,
    split: Split | None,
    split_by: str,
    seed: int,
    device: str,
) -> _Ground:
    lm, model = _load_base(recipe, device)
    if model is None:
        prepared = prepare_cells(adata, label=label, recipe=recipe, split=split, split_by=split_by, seed=seed)
    else:
        prepared = _prepare_for(model, adata, recipe, label=label, split=split, split_by=split_by, seed=seed)
    groups, unit = _groups(adata.obs, prepared.part == "validation")
    cells = AskableCells(
        sentences=prepared.sentences,
        top_genes=prepared.top_genes,
        labels=prepared.labels,
        part=prepared.part,
        groups=groups,
        unit=unit,
        types=_types(prepared, model),
        context={**({} if model is None else model.spec.context), **recipe.context},
    )

    def finish(aligned: LanguageModel, manifest: Manifest) -> CellModel:
        from cytoglot.training.supervised import from_cells as sft

        spec = (
            sft.spec_of_cells(prepared, recipe, manifest, label=label)
            if model is None
            else replace(model.spec, manifest=manifest.to_dict())
        )
        return sft.calibrate_on_cells(CellModel(lm=aligned, spec=spec), prepared)

    return _Ground(
        lm=lm,
        source=source_of_cells(cells, recipe, n_training=_n_prompts(recipe), seed=seed),
        finish=finish,
        split=prepared.split,
        messages=prepared.messages,
    )


def _types(prepared: PreparedCells, model: CellModel | None) -> tuple[str, ...]:
    return tuple(label_table(prepared)) if model is None or not model.spec.labels else model.spec.labels


def _prepare_for(
    model: CellModel,
    adata: AnnData,
    recipe: TrainRecipe,
    *,
    label: str,
    split: Split | None,
    split_by: str,
    seed: int,
) -> PreparedCells:
    """Rank the cells over the base model's genes; parts are those of its own training, where it knows these cells."""
    series = read_labels(adata.obs, label)
    messages: list[str] = []
    known = load_split(model.folder) if model.folder is not None else None
    if split is None and split_by == "auto" and known is not None and (known.part_of(adata.obs_names) != "").all():
        split = known
        messages.append("cells are divided as when the base model was trained")
    split = split or split_cells(adata.obs, by=split_by, label=label, seed=seed)
    messages += list(split.warnings)
    sentences, overlap = model.sentences(adata, gene_options=AS_NAMED, min_overlap=recipe.model.min_known_genes)
    messages.append(str(overlap))
    limits = [n for n in (model.spec.ranking.top_genes, _own_top_genes(recipe)) if n is not None]
    return PreparedCells(
        sentences=sentences,
        top_genes=min(limits, default=None),
        labels=np.array([None if pd.isna(value) else str(value) for value in series], dtype=object),
        part=split.part_of(adata.obs_names),
        split=split,
        # Expression itself is not needed: the curve from ranks to it is the base model's.
        log_ng=csr_matrix(np.zeros((len(sentences), 0), dtype=np.float32)),
        tie_rates=np.zeros(len(sentences.vocabulary), dtype=np.float32),
        messages=tuple(messages),
    )


def _own_top_genes(recipe: TrainRecipe) -> int | None:
    """Return the recipe's length of a sentence if it names one; else the base model's holds."""
    return recipe.sentence.top_genes if "top_genes" in recipe.sentence.model_fields_set else None


def _groups(obs: pd.DataFrame, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.object_] | None, str]:
    """Return donors or batches, where the chosen cells have enough of them to be resampled by."""
    fields = recognise_obs(obs)
    columns = {name: group_values(obs, fields[name]) for name in GROUP_FIELDS if name in fields}
    unit, values = resampling_unit({name: series[chosen].to_numpy() for name, series in columns.items()})
    if values is None:
        return None, "prompt"
    return columns[unit].to_numpy(dtype=object), unit


def _ground_of_corpus(corpus: Corpus, recipe: TrainRecipe, *, seed: int, device: str) -> _Ground:
    from cytoglot.training.supervised import from_corpus

    from_corpus.refuse_settings_of_files(recipe)
    lm, model = _load_base(recipe, device)
    if model is not None and model.spec.vocabulary.fingerprint != corpus.vocabulary.fingerprint:
        raise InputError(
            f"the base model knows {len(model.spec.vocabulary)} genes and {corpus.folder} {len(corpus.vocabulary)} "
            "others; align on the corpus that it was trained on, or on one built with its genes"
        )
    limit = None if model is None else model.spec.ranking.top_genes
    own = _own_top_genes(recipe) or limit
    settings = recipe.model_copy(update={"sentence": recipe.sentence.model_copy(update={"top_genes": own})})
    source = source_of_corpus(corpus, settings, n_training=_n_prompts(recipe), seed=seed)

    def finish(aligned: LanguageModel, manifest: Manifest) -> CellModel:
        if model is not None:
            spec: CellModelSpec = replace(model.spec, manifest=manifest.to_dict())
        else:
            sample = from_corpus.sample_cells(corpus, "train", n=from_corpus.SAMPLE_CELLS, seed=seed)
            spec = from_corpus.spec_of_corpus(corpus, sample, settings, dict(source.shares), manifest)
        found = CellModel(lm=aligned, spec=spec)
        return from_corpus.calibrate_on_corpus(found, corpus, seed=seed) if spec.labels else found

    return _Ground(lm=lm, source=source, finish=finish, split=None, messages=())


def _align(ground: _Ground, run: Run, *, overwrite: bool) -> CellModel:
    """Test the rewards, train, and write everything."""
    recipe, grpo, lm = run.recipe, run.recipe.grpo, ground.lm
    plan = plan_prompts(ground.source, lm, n=_n_prompts(recipe), seed=run.seed)
    held_out = held_out_prompts(ground.source, lm, n=grpo.held_out_prompts)
    max_tokens = _room(lm, [*plan, *held_out], grpo)
    context = _reward_context(ground, plan, grpo)
    reward = make_reward(grpo.rewards, context)
    messages = [*ground.messages, *_check_rewards(reward, plan)]
    if grpo.top_p < 1:
        messages.append(
            f"answers are drawn from the likeliest {grpo.top_p:.0%}, but learned from as if from all: the gradient is "
            "biased towards them; set grpo.top_p: 1 to avoid it"
        )
        logger.warning("%s", messages[-1])
    probes = _probe(reward, ground.source, lm, context, grpo, max_tokens=max_tokens)
    watched = HeldOutRewards(
        held_out,
        reward,
        context,
        constrained=grpo.constrained,
        n_samples=grpo.held_out_samples,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=grpo.temperature, top_p=grpo.top_p, seed=run.seed),
        unit=ground.source.unit,
    )
    lm = _with_adapter(lm, recipe, seed=run.seed)
    check_trackers(recipe)
    arguments = alignment_arguments(run, lm, reward, max_tokens=max_tokens)
    open_run(run, overwrite=overwrite)
    watch = _fit(lm, plan, reward, watched, run, arguments)
    history = History()
    history.rows = watch.rows
    return finish(
        run,
        lambda aligned: replace(ground.finish(_without_trl(aligned), run.manifest), folder=run.folder),
        lm,
        history,
        split=ground.split,
        messages=[*messages, *watch.messages],
        facts={
            "evaluation": watched.table(watch.looks, seed=run.seed),
            "diversity": _diversity_rows(watch, watched),
            "probes": probes,
            "kept_step": watch.kept_step,
        },
    )


def _with_adapter(lm: LanguageModel, recipe: TrainRecipe, *, seed: int) -> LanguageModel:
    lora = recipe.lora
    if lora is None:
        return lm
    return add_lora(lm, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed)


def _room(lm: LanguageModel, asked: Sequence[AskedPrompt], grpo: GrpoRecipe) -> int:
    """Return the most tokens of an answer: as the recipe says, or what the context leaves behind the longest prompt."""
    longest = max(len(ids) for ids in encode_prompts(lm.tokenizer, [one.prompt for one in asked]))
    room = grpo.max_answer_tokens if lm.context_length is None else lm.context_length - longest
    limit = min(grpo.max_answer_tokens, room)
    constraints = FormatConstraints(lm.tokenizer, terminator=TERMINATOR)
    words = [one for one in asked if not isinstance(one.answer_format, FreeText)]
    needed = max((constraints.enough_tokens(one.answer_format) for one in words), default=1)
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


def _reward_context(ground: _Ground, plan: Sequence[AskedPrompt], grpo: GrpoRecipe) -> RewardContext:
    source = ground.source
    labels = tuple(dict.fromkeys(label for some in source.labels.values() for label in some))
    labels = labels or tuple(source.reference)
    measures = any("embedding" in str(settings.get("reward", name)) for name, settings in grpo.rewards.items())
    return RewardContext(
        genes=source.vocabulary.symbols,
        labels=labels,
        label_ids=map_labels(list(labels)).ids if labels else {},
        reference=source.reference,
        lm=_frozen_copy(ground.lm) if measures else None,
        texts=tuple(dict.fromkeys(one.answer for one in plan if one.num_genes == 0)),
        terminator=TERMINATOR,
    )


def _frozen_copy(lm: LanguageModel) -> LanguageModel:
    """Return the model as it is now, which no step will move."""
    model = copy.deepcopy(lm.model)
    model.requires_grad_(requires_grad=False)
    return replace(lm, model=model)


def _check_rewards(reward: MixedReward, plan: Sequence[AskedPrompt]) -> list[str]:
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
    context: RewardContext,
    grpo: GrpoRecipe,
    *,
    max_tokens: int,
) -> list[Any]:
    """Let answers without content compete with real ones; refuse, or warn, where one wins."""
    if grpo.probes == "off":
        return []
    asked = [one for task in source.shares for one in source.asked(lm, task, "validation", _PROBED)]
    report = probe_reward(
        reward, reward_prompts(asked), context, group_size=grpo.group_size, max_words=max(4, max_tokens)
    )
    if report.hackable and grpo.probes == "refuse":
        raise InputError(
            f"{report.message}. Change grpo.rewards (docs/grpo.md says what helps), ask more prompts, or set "
            "grpo.probes: warn to train nevertheless"
        )
    (logger.warning if report.hackable else logger.info)("%s", report.message)
    return list(_plain(report.to_dict())["rows"])


def _plain(value: Any) -> Any:
    """Return JSON values, None for what is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fit(
    lm: LanguageModel,
    plan: Sequence[AskedPrompt],
    reward: MixedReward,
    watched: HeldOutRewards,
    run: Run,
    arguments: GRPOConfig,
) -> AlignmentWatch:
    """Train, from the last whole checkpoint if there is one."""
    recipe, grpo = run.recipe, run.recipe.grpo
    every = -(-recipe.optim.evaluate_every // grpo.updates) * grpo.updates  # answers do not outlive a checkpoint
    watch = AlignmentWatch(
        lm, watched, every=every, max_overlap_gain=grpo.max_overlap_gain, on_collapse=grpo.on_collapse
    )
    trainer = CellGrpoTrainer(
        lm,
        plan,
        args=arguments,
        reward_terms=reward.terms,
        constrained=grpo.constrained,
        kl=grpo.kl,
        terminator=TERMINATOR,
        optimizers=optimiser_and_schedule(lm.model, recipe.optim, from_nothing=False),
        callbacks=[watch],
    )
    checkpoint = from_first(last_look(run.work))
    if checkpoint is not None:
        logger.info("resuming from step %s", checkpoint.name.removeprefix("checkpoint-"))
        watch.restore(checkpoint)
    watch.first_look()
    with own_progress_only(), warnings.catch_warnings():
        # TRL 1.16 still asks transformers 5.23 by an old name; nothing that a user could change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.keep_healthy()
    lm.model.eval()
    return watch


def alignment_arguments(run: Run, lm: LanguageModel, reward: MixedReward, *, max_tokens: int) -> GRPOConfig:
    """Return what TRL is to do: our batches and looks, our bar, nothing printed."""
    recipe, grpo, optim = run.recipe, run.recipe.grpo, run.recipe.optim
    per_device, n_batches = _batches(recipe)
    if "tensorboard" in recipe.report_to:  # else it would write into the work folder, which goes away
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.folder / "runs"))
    return GRPOConfig(
        output_dir=str(run.work),
        max_steps=optim.steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=n_batches,
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
        save_strategy="no",  # the looks say when
        save_total_limit=2,
        max_grad_norm=optim.max_grad_norm,
        bf16=uses_bf16(optim, lm.device),
        **_recomputed(on=optim.gradient_checkpointing),
        disable_tqdm=True,
        log_level="error",
        report_to=list(recipe.report_to) or "none",
        seed=run.seed,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=lm.device.type == "cuda",
    )


def _recomputed(*, on: bool) -> dict[str, bool]:
    """Return the setting by its name: transformers 5.20 or so gave it another, and warns of the old one."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return {next(name for name in names if name in GRPOConfig.__dataclass_fields__): on}


def _batches(recipe: TrainRecipe) -> tuple[int, int]:
    """Return answers of a batch and device, and batches of a step: at most `optim.batch_size` answers at a time."""
    grpo, world = recipe.grpo, n_processes()
    if grpo.prompts_per_step % world:  # some rewards compare the answers to a prompt, so these stay together
        raise InputError(
            f"grpo.prompts_per_step ({grpo.prompts_per_step}) must be a multiple of the {world} processes, which "
            "share the prompts; change one of the two"
        )
    local = grpo.group_size * grpo.prompts_per_step // world
    size = next(n for n in range(min(local, recipe.optim.batch_size), 0, -1) if local % n == 0)
    return size, local // size


def _diversity_rows(watch: AlignmentWatch, watched: HeldOutRewards) -> list[dict[str, Any]]:
    real = watched.real_overlap()
    return [
        {
            "step": look.step,
            "answers": mode,
            **found.as_row(),
            "overlap_with_true_cell": None if np.isnan(look.overlap[mode]) else look.overlap[mode],
            "between_real_cells": None if np.isnan(real) else real,
        }
        for look in watch.looks
        for mode, found in look.diversity.items()
    ]


def _without_trl(lm: LanguageModel) -> LanguageModel:
    """Return the model without what TRL has put on it."""
    lm.model.__dict__.pop("forward", None)
    lm.model.model_tags = None
    return lm
