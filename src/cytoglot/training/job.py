"""What is to be trained on what: recipe and call put together once, checked, and passed whole from there on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.cell_model.load import is_model_folder
from cytoglot.cell_model.spec import SPEC_FILE, CellModelSpec
from cytoglot.config import load_recipe
from cytoglot.corpus.format.folder import Corpus, is_corpus, open_corpus
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.read import read
from cytoglot.data.splits.split import Split
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
    """One training; the fields are those of `cytoglot.train`."""

    source: AnnData | Corpus | str | Path
    label: str | None
    out: Path
    recipe: TrainRecipe
    """without what is settled here: source, label, output and where it is published"""
    push_to_hub: str | None
    split_by: str = "auto"
    split: Split | None = None
    layer: str | None = None
    gene_options: GeneOptions = DEFAULT_GENES
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False

    @property
    def on_corpus(self) -> bool:
        """Whether the source is a corpus, and not a file of cells."""
        return is_corpus_source(self.source)

    def open(self) -> AnnData | Corpus:
        """Return the corpus opened, or the cells read and checked."""
        if isinstance(self.source, Corpus):
            return self.source
        if isinstance(self.source, (str, Path)):
            if self.on_corpus:
                return open_corpus(self.source)
            return read(resolve_source(self.source), layer=self.layer, **self.gene_options.keywords)
        return read(self.source, layer=self.layer, **self.gene_options.keywords)


def is_corpus_source(source: object) -> bool:
    """Tell whether a source is a corpus or its folder."""
    return isinstance(source, Corpus) or (isinstance(source, (str, Path)) and is_corpus(source))


def make_job(
    source: AnnData | Corpus | str | Path | None,
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
    needs_folder: bool = True,
) -> TrainJob:
    """Put together what the call and the recipe say; the call wins.

    Parameters
    ----------
    needs_folder
        A forecast writes nothing and needs no folder.

    Raises
    ------
    InputError
        No source, no label for a file, no folder, no such repository name, or a setting that does not fit the source.
    """
    settings = recipe if isinstance(recipe, TrainRecipe) else load_recipe(TrainRecipe, recipe, overrides)
    chosen = settings.source if source is None else source
    label = settings.label if label is None else label
    folder = settings.output if out is None else out
    if chosen is None:
        raise InputError("no cells to train on: pass SOURCE, a file of cells or a corpus, or set source in the recipe")
    if folder is None and needs_folder:
        raise InputError("no folder for the model: pass -o FOLDER, or set output in the recipe")
    if is_corpus_source(chosen):
        given = {
            "label": label is not None,
            "split_by": split_by != "auto",
            "split": split is not None,
            "layer": layer is not None,
            "gene_options": gene_options != DEFAULT_GENES,
        }
        _refuse_settings_of_files(chosen, settings, [name for name, is_given in given.items() if is_given])
    elif settings.sources:
        raise InputError("sources can be weighed in a corpus only; build one with `cytoglot corpus build`")
    elif label is None and settings.kind == "grpo":
        label = _label_of_base(str(settings.model.base))
    elif label is None:
        raise InputError(
            "pass --label, the column of obs with the cell types, or set label in the recipe (a corpus needs none)"
        )
    if settings.push_to_hub is not None:
        check_repository(settings.push_to_hub)
    # What is settled by now is no setting of the model: other paths must not keep a run from being resumed, and a
    # published model does not tell them.
    settled = settings.model_copy(update={"source": None, "label": None, "output": None, "push_to_hub": None})
    return TrainJob(
        source=chosen,
        label=label,
        out=Path(folder or "."),
        recipe=_pinned(settled, Path(folder or ".")),
        push_to_hub=settings.push_to_hub,
        split_by=split_by,
        split=split,
        layer=layer,
        gene_options=gene_options,
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )


def _refuse_settings_of_files(source: object, recipe: TrainRecipe, given: list[str]) -> None:
    """Refuse what says how a file of cells is read, divided or ranked: it would be passed over without a word."""
    name = source.folder.name if isinstance(source, Corpus) else str(source)
    if given:
        raise InputError(
            f"{name} is a corpus, in which cells, genes, labels and splits are settled; leave out {', '.join(given)}"
        )
    found = [f"sentence.{one}" for one in sorted(recipe.sentence.model_fields_set - {"top_genes"})]
    found += [one for one in _FILE_SETTINGS if one in recipe.model_fields_set]
    if found:
        raise InputError(
            f"{', '.join(found)} cannot be set for a corpus: its cells were chosen and ranked when it was built"
        )


def _label_of_base(base: str) -> str:
    label = CellModelSpec.load(base).label_column if is_model_folder(base) else None
    if label is None:
        raise InputError("pass the label, the column of obs with the cell types: the base model names none")
    return label


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
