"""Genes A to J, two types of cells, and a way to rate completions in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cytoglot.training.rl.rewards import RewardInputs, make_reward

Rate = Callable[..., list[float | None]]


@pytest.fixture
def context() -> RewardInputs:
    return RewardInputs(
        genes=tuple("ABCDEFGHIJ"),
        labels=("B cell", "CD4 T cell", "CD8 T cell", "Monocyte", "Weird cell"),
        reference={
            "B cell": (tuple("ABCD"), tuple("ABDE"), tuple("BAFG")),
            "Monocyte": (tuple("JIHG"), tuple("JHIF")),
        },
    )


@pytest.fixture
def rate(context: RewardInputs) -> Rate:
    """`rate(name, completions, **settings)`; columns are those of a cell of type "B cell" with the genes A B C D."""

    def call(
        name: str,
        completions: Sequence[str],
        *,
        answer: str = "A B C D",
        task: str = "cell_generation",
        cell_type: str = "B cell",
        num_genes: int = 4,
        prompts: Sequence[str] | None = None,
        given: RewardInputs | None = None,
        **settings: Any,
    ) -> list[float | None]:
        n = len(completions)
        term = make_reward({name: settings}, given or context).terms[0]
        return term(
            list(completions),
            prompts=list(prompts or ["Write a cell."] * n),
            task=[task] * n,
            answer=[answer] * n,
            cell_type=[cell_type] * n,
            num_genes=[num_genes] * n,
            key=["cell"] * n,
        )

    return call
