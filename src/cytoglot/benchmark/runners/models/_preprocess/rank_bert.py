"""Rank-value tokens through a BERT of `transformers`, and the pooled vector of each cell. Needs torch, transformers.

Axes: n cells, t tokens, d embedding dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rank_value import padded


def embed_tokens(
    model: Any, rows: list[np.ndarray], *, layer: int, pooling: str, n_first: int, n_last: int, batch_size: int
) -> np.ndarray:
    """Return float32 (n, d): the first token's hidden state ("cls"), or the mean over the genes of a cell ("mean").

    `layer` counts hidden states as `transformers` does: 0 the token vectors, −1 the last, −2 the one before it. The
    first `n_first` and last `n_last` tokens of a row are no genes, and are left out of the mean. A cell without genes
    has zeros.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            tokens, mask = padded(rows[start : start + batch_size])
            inputs = {"input_ids": torch.as_tensor(tokens), "attention_mask": torch.as_tensor(mask)}
            outputs = model(**{name: one.to(device) for name, one in inputs.items()}, output_hidden_states=True)
            hidden_ntd = outputs.hidden_states[layer].float().cpu().numpy()
            if pooling == "cls":
                vectors.append(hidden_ntd[:, 0])
                continue
            genes = mask.copy()
            genes[:, :n_first] = 0
            for i, n_tokens in enumerate(mask.sum(axis=1)):
                genes[i, max(n_tokens - n_last, 0) :] = 0
            n_genes = genes.sum(axis=1, keepdims=True)
            vectors.append((hidden_ntd * genes[:, :, None]).sum(axis=1) / np.maximum(n_genes, 1))
    return np.concatenate(vectors).astype(np.float32)


def rank_rows(
    cells: Any,
    ids: list[str],
    tokens: dict[str, int],
    medians: dict[str, float],
    *,
    max_tokens: int,
    first: int | None = None,
    last: int | None = None,
) -> list[np.ndarray]:
    """Return the tokens of each cell of an AnnData with counts; a cell is scaled by the counts of all its genes."""
    from gene_tables import columns_of
    from rank_value import rank_tokens, scaled_values

    known = {name: token for name, token in tokens.items() if name in medians}
    columns, names = columns_of(ids, known)
    tokens_g, usual_g = np.array([known[name] for name in names]), np.array([medians[name] for name in names])
    counts_ng = cells.X.tocsr()
    total_n = np.asarray(counts_ng.sum(axis=1)).ravel()
    chosen_ng = counts_ng[:, columns]
    return [
        rank_tokens(
            scaled_values(chosen_ng[n].toarray().ravel(), usual_g, total=total_n[n]),
            tokens_g,
            max_tokens=max_tokens,
            first=first,
            last=last,
        )
        for n in range(chosen_ng.shape[0])
    ]
