"""One door to every kind of training: what a recipe and the caller say together decides which."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import SPEC_FILE
from cytoglot.config import load_recipe
from cytoglot.corpus.format.folder import Corpus, is_corpus
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.lm.model.sources import commit_of, is_hub_name
from cytoglot.training.loop.distributed import is_first
from cytoglot.training.loop.run_folder import WORK
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.release.publish import check_repository, publish

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be trained on what, once recipe and caller have been heard."""

    source: Any
    """AnnData, Corpus, path, or name of a data set"""
    label: str | None
    out: Path
    recipe: TrainRecipe
    """without what is settled here: source, label, output and where it is published"""
    push_to_hub: str | None
    on_corpus: bool


def train(
    source: AnnData | Corpus | str | Path | None = None,
    *,
    label: str | None = None,
    out: str | Path | None = None,
    recipe: TrainRecipe | str | Path | None = None,
    overrides: Sequence[str] = (),
    split_by: str = "auto",
    split: Split | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> CellModel:
    """Train as the recipe says and return the finished model, also saved in `out`; publish it where the recipe asks.

    The same call on an unfinished folder resumes it, and on a finished one loads it.

    Parameters
    ----------
    source
        An AnnData, a file, the name of a data set, or a corpus. What is given here wins over the recipe's `source`, and
        likewise `label` and `out` over its `label` and `output`.
    label
        Column of `obs` with the cell types. A corpus needs none.
    recipe, overrides
        A `TrainRecipe`, or a YAML file, with `a.b=value` replacements.
    split_by, split, layer, gene_options
        As in `cytoglot.training.supervised.from_cells.train`; for a file of cells only.

    Raises
    ------
    InputError
        Neither recipe nor call names a source, a label (of a file) or a folder; an option does not fit the source; or
        the training itself refuses its input.
    """
    plan = plan_run(source, label=label, out=out, recipe=recipe, overrides=overrides)
    options: dict[str, Any] = {"seed": seed, "device": device, "threads": threads, "overwrite": overwrite}
    of_files = _given(split_by=split_by, split=split, layer=layer, gene_options=gene_options)
    if plan.on_corpus and of_files:
        raise InputError(
            f"{_name(plan.source)} is a corpus, in which cells, genes and splits are settled; "
            f"leave out {', '.join(of_files)}"
        )
    model = _run(plan, {**options, **of_files})
    if plan.push_to_hub is not None and is_first():
        publish(plan.out, plan.push_to_hub, private=plan.recipe.hub_private)
    return model


def plan_run(
    source: AnnData | Corpus | str | Path | None,
    *,
    label: str | None,
    out: str | Path | None,
    recipe: TrainRecipe | str | Path | None,
    overrides: Sequence[str] = (),
    needs_folder: bool = True,
) -> Plan:
    """Put together what the call and the recipe say; the call wins.

    Parameters
    ----------
    needs_folder
        A forecast writes nothing and needs no folder.

    Raises
    ------
    InputError
        No source, no label for a file, a label for a corpus, no folder, or no such repository name.
    """
    settings = recipe if isinstance(recipe, TrainRecipe) else load_recipe(TrainRecipe, recipe, overrides)
    chosen = settings.source if source is None else source
    label = settings.label if label is None else label
    folder = settings.output if out is None else out
    if chosen is None:
        raise InputError("no cells to train on: pass SOURCE, a file of cells or a corpus, or set source in the recipe")
    if folder is None and needs_folder:
        raise InputError("no folder for the model: pass -o FOLDER, or set output in the recipe")
    on_corpus = isinstance(chosen, Corpus) or (isinstance(chosen, (str, Path)) and is_corpus(chosen))
    if on_corpus and label is not None:
        raise InputError(f"{_name(chosen)} is a corpus, in which labels are settled; leave out --label {label}")
    if not on_corpus and label is None and settings.kind != "grpo":
        raise InputError(
            "pass --label, the column of obs with the cell types, or set label in the recipe (a corpus needs none)"
        )
    if settings.push_to_hub is not None:
        check_repository(settings.push_to_hub)
    out = Path(folder or ".")
    # What is settled by now is no setting of the model: other paths must not keep a run from being resumed, and a
    # published model does not tell them.
    settled = settings.model_copy(update={"source": None, "label": None, "output": None, "push_to_hub": None})
    return Plan(
        source=chosen,
        label=label,
        out=out,
        recipe=_pinned(settled, out),
        push_to_hub=settings.push_to_hub,
        on_corpus=on_corpus,
    )


def _pinned(recipe: TrainRecipe, out: Path) -> TrainRecipe:
    """Name the commit of a base on the hub, so that all files are of one commit and the manifest tells which.

    A folder that such a run has begun or finished keeps its commit, whatever the branch stands for by now.
    """
    base, revision = recipe.model.base, recipe.model.revision
    if base is None or not is_hub_name(base):
        return recipe
    commit = (_commit_before(out, base) if revision is None else None) or commit_of(base, revision)
    if commit is None:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": commit})})


def _commit_before(out: Path, base: str) -> str | None:
    for path, parts in ((out / WORK / "manifest.json", ()), (out / SPEC_FILE, ("manifest",))):
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        for part in (*parts, "config", "recipe", "model"):
            found = found.get(part, {})
        if found.get("base") == base:
            return str(found["revision"]) if found.get("revision") else None
    return None


def _run(plan: Plan, options: dict[str, Any]) -> CellModel:
    """Call what trains in this way; modules are loaded only where they are needed."""
    if plan.recipe.kind == "grpo":
        from cytoglot.training.rl.grpo import train_grpo

        return train_grpo(plan.source, label=plan.label, out=plan.out, recipe=plan.recipe, **options)
    if plan.on_corpus:
        from cytoglot.training.supervised.from_corpus import train_corpus

        return train_corpus(plan.source, out=plan.out, recipe=plan.recipe, **options)
    from cytoglot.training.supervised import from_cells as sft

    assert plan.label is not None
    return sft.train(plan.source, label=plan.label, out=plan.out, recipe=plan.recipe, **options)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that say how a file is read and were given a value of their own."""
    usual = {"split_by": "auto", "split": None, "layer": None, "gene_options": DEFAULT_GENES}
    return {name: value for name, value in options.items() if value is not usual[name] and value != usual[name]}


def _name(source: Any) -> str:
    return source.folder.name if isinstance(source, Corpus) else str(source)
