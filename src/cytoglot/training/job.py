"""What is to be trained on what: recipe and call put together once, checked, and passed whole from there on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.cell_model.load import is_model_folder
from cytoglot.cell_model.spec import SPEC_FILE, CellModelSpec
from cytoglot.corpus.format.folder import Corpus, is_corpus, open_corpus
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.read import read
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import FRACTIONS, check_fractions
from cytoglot.errors import InputError
from cytoglot.lm.model.sources import commit_of, is_hub_name
from cytoglot.training.loop.run_folder import WORK
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.release.publish import check_repository

if TYPE_CHECKING:
    from anndata import AnnData

_FILE_SETTINGS = ("qc", "views", "context", "control", "train_share")
"""settings of a recipe, beside most of `sentence`, that say how a file of cells becomes a corpus"""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training; the fields are those of `cytoglot.train`. What a call says is made whole by `settled`."""

    source: AnnData | Corpus | str | Path | None = None
    label: str | None = None
    out: str | Path | None = None
    recipe: TrainRecipe
    """once settled, without what is settled here: source, label, output and where it is published"""
    push_to_hub: str | None = None
    split_by: str = "auto"
    split: Split | None = None
    fractions: tuple[float, float, float] = FRACTIONS
    layer: str | None = None
    gene_options: GeneOptions = DEFAULT_GENES
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """Where the model is written."""
        return Path(self.out or ".")

    def open(self) -> AnnData | Corpus:
        """Return the corpus opened, or the cells read and checked."""
        if isinstance(self.source, Corpus):
            return self.source
        if isinstance(self.source, (str, Path)):
            if is_corpus(self.source):
                return open_corpus(self.source)
            return read(resolve_source(self.source), layer=self.layer, **self.gene_options.keywords)
        assert self.source is not None
        return read(self.source, layer=self.layer, **self.gene_options.keywords)


def is_corpus_source(source: object) -> bool:
    """Tell whether a source is a corpus or its folder."""
    return isinstance(source, Corpus) or (isinstance(source, (str, Path)) and is_corpus(source))


def settled(job: TrainJob, *, needs_folder: bool = True) -> TrainJob:
    """Return a job with what its recipe says where the call says nothing, checked before anything is read.

    Parameters
    ----------
    needs_folder
        A forecast writes nothing and needs no folder.

    Raises
    ------
    InputError
        No source, no label for a file, no folder, no such repository name, or a setting that does not fit the source.
    """
    recipe = job.recipe
    source = recipe.source if job.source is None else job.source
    label = recipe.label if job.label is None else job.label
    out = recipe.output if job.out is None else job.out
    if source is None:
        raise InputError("no cells to train on: pass SOURCE, a file of cells or a corpus, or set source in the recipe")
    if out is None and needs_folder:
        raise InputError("no folder for the model: pass -o FOLDER, or set output in the recipe")
    if is_corpus_source(source):
        given = {
            "label": label is not None,
            "split_by": job.split_by != "auto",
            "split": job.split is not None,
            "fractions": job.fractions != FRACTIONS,
            "layer": job.layer is not None,
            "gene_options": job.gene_options != DEFAULT_GENES,
        }
        # What says how a file is read, divided or ranked would be passed over without a word.
        unfit = [name for name, is_given in given.items() if is_given]
        if unfit:
            name = source.folder.name if isinstance(source, Corpus) else str(source)
            raise InputError(
                f"{name} is a corpus, in which cells, genes, labels and splits are settled; leave out "
                f"{', '.join(unfit)}"
            )
        unfit = [f"sentence.{one}" for one in sorted(recipe.sentence.model_fields_set - {"top_genes"})]
        unfit += [one for one in _FILE_SETTINGS if one in recipe.model_fields_set]
        if unfit:
            raise InputError(
                f"{', '.join(unfit)} cannot be set for a corpus: its cells were chosen and ranked when it was built"
            )
    elif recipe.sources:
        raise InputError("sources can be weighed in a corpus only; build one with `cytoglot corpus build`")
    elif label is None and recipe.kind == "grpo":
        base = str(recipe.model.base)
        label = CellModelSpec.load(base).label_column if is_model_folder(base) else None
        if label is None:
            raise InputError("pass the label, the column of obs with the cell types: the base model names none")
    elif label is None:
        raise InputError(
            "pass --label, the column of obs with the cell types, or set label in the recipe (a corpus needs none)"
        )
    check_fractions(job.fractions)
    if job.split is not None and job.fractions != FRACTIONS:
        raise InputError("a split that was made elsewhere has fractions of its own; pass split or fractions, not both")
    if recipe.push_to_hub is not None:
        check_repository(recipe.push_to_hub)
    # What is settled by now is no setting of the model: other paths must not keep a run from being resumed, and a
    # published model does not tell them.
    kept = recipe.model_copy(update={"source": None, "label": None, "output": None, "push_to_hub": None})
    folder = Path(out or ".")
    return replace(
        job, source=source, label=label, out=folder, recipe=_pinned(kept, folder), push_to_hub=recipe.push_to_hub
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
