"""One entry to every kind of training: what a recipe and the caller say together decides which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.cell_model.load import CellModel
from cytoglot.config import Overrides, load_recipe
from cytoglot.corpus.format.folder import Corpus
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import FRACTIONS
from cytoglot.training.job import TrainJob, settled
from cytoglot.training.loop.distributed import is_first
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.release.publish import publish

if TYPE_CHECKING:
    from anndata import AnnData


def train(
    source: AnnData | Corpus | str | Path | None = None,
    *,
    label: str | None = None,
    out: str | Path | None = None,
    recipe: TrainRecipe | str | Path | None = None,
    overrides: Overrides = (),
    split_by: str = "auto",
    split: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
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
        Column of `obs` with the cell types; cells without one train only tasks that need none. A corpus needs no
        column, and reinforcement learning none where the base model names it.
    out
        The model folder. A finished one is loaded and returned unless `overwrite`; an unfinished one is resumed.
    recipe, overrides
        A `TrainRecipe`, or a YAML file, with replacements: {"optim.steps": 800}, {"optim": {"steps": 800}}, the text
        "optim.steps=800" (one a line), or a list of such texts.
    split_by, split, fractions
        How cells are divided into training, validation and test cells (`cytoglot.data.splits.splitting.split_cells`),
        or a division made elsewhere; for a file of cells only. `fractions` are those of training, validation and test
        cells, as close as whole groups allow; (0.9, 0.1, 0) keeps no test cells. Test cells are never read; validation
        cells end the training and set temperature and threshold, and without any neither happens.
    layer, gene_options
        Which matrix of a file is read, and how its columns become genes.
    seed
        Of the split, the model's weights, and everything random about the examples.
    device, threads
        Where the model is trained, and threads of a CPU.
    overwrite
        Start anew, whatever run the folder holds.

    Raises
    ------
    InputError
        Neither recipe nor call names a source, a label (of a file) or a folder; an option does not fit the source; the
        source or the label column cannot be used; or `out` holds a run with other settings, or other files.

    Examples
    --------
    >>> import cytoglot as cg
    >>> few = ["optim.steps=5", "sentence.top_genes=20", "views=1"]  # far too few; the defaults are good ones
    >>> model = cg.train("cells.h5ad", label="cell_type", out="trained", overrides=few)
    >>> len(model.labels)
    3
    """
    job = TrainJob(
        source=source,
        label=label,
        out=out,
        recipe=load_recipe(TrainRecipe, recipe, overrides),
        split_by=split_by,
        split=split,
        fractions=fractions,
        layer=layer,
        gene_options=gene_options,
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    return run_job(settled(job))


def run_job(job: TrainJob) -> CellModel:
    """Train what a job says; modules are loaded only where they are needed."""
    if job.recipe.kind == "grpo":
        from cytoglot.training.rl.grpo import train_grpo as train_kind
    else:
        from cytoglot.training.supervised.train import train_supervised as train_kind
    model = train_kind(job)
    if job.push_to_hub is not None and is_first():
        publish(job.folder, job.push_to_hub, private=job.recipe.hub_private)
    return model
