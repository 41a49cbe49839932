"""A causal language model of cells as an embedder: trained here, a base model, or a released checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.benchmark.embedders.base import EMBEDDERS

if TYPE_CHECKING:
    from anndata import AnnData


@EMBEDDERS.register("language_model")
class LanguageModelEmbedder:
    """Hidden states of the prompt of a cell, pooled, as `cytoglot.embed` gives them.

    Parameters
    ----------
    model
        A model folder, a name on the Hugging Face hub such as "vandijklab/C2S-Pythia-410M", or a base model that comes
        as a package such as "smollm2-135m".
    templates
        The words around the sentence: those of the model, "cell2sentence" for checkpoints of that project, or a folder
        of templates.
    n_genes
        Genes of a sentence, the highest first; None: as many as the model was trained on.
    layer
        Which hidden state: 0 the token vectors, -1 the last.
    pooling
        "mean" over all tokens of the prompt, its "last" token, or "sentence": the mean over the tokens of the genes.
    device
        Where the model runs.
    seed
        Not used; every embedder has one.
    """

    def __init__(
        self,
        *,
        model: str | Path,
        templates: str | None = None,
        n_genes: int | None = None,
        layer: int = -1,
        pooling: Literal["mean", "last", "sentence"] = "mean",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        # Loaded here and not at the top, so that the names of embedders are known without torch.
        from cytoglot.cell_model.load import check_pooling, is_model_folder, load_cell_model
        from cytoglot.lm.model.load import load_model

        check_pooling(pooling)
        load = load_cell_model if is_model_folder(model) else load_model
        self._model = load(model, device=device)
        self._templates, self._n_genes, self._layer, self._pooling = templates, n_genes, layer, pooling

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d)."""
        from cytoglot.cell_model.load import as_cell_model

        model = as_cell_model(self._model, labels=(), cells=adata)
        if self._templates is not None:
            model = model.with_templates(self._templates)
        sentences, _ = model.sentences(adata)
        if self._n_genes is not None:
            sentences = sentences.truncate(self._n_genes)
        return model.embeddings(sentences, layer=self._layer, pooling=self._pooling)
