"""Examples as a person would read them: long runs of genes and long texts are shortened in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from cytoglot.tasks.masking import MASK
from cytoglot.tasks.task import Example

_WORDS_OF_PROSE = 80


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """An example with its long sentences shortened."""

    task: str
    template: str
    key: str
    prompt: str
    completion: str


def shown(example: Example, genes: frozenset[str], *, max_genes: int = 12) -> ShownExample:
    """Return an example whose runs of more than `max_genes` genes show their first and last ones.

    "… (182 more) …" stands for the genes between, and for the words between in a long line of prose. With 0 nothing is
    shortened.
    """
    return ShownExample(
        task=example.task,
        template=example.template,
        key=example.key,
        prompt=shortened(example.prompt, genes, max_genes=max_genes),
        completion=shortened(example.completion, genes, max_genes=max_genes),
    )


def shortened(text: str, genes: frozenset[str], *, max_genes: int) -> str:
    """Return the text with long runs of genes, and long lines of prose, cut in the middle."""
    lines = []
    for line in text.split("\n") if max_genes > 0 else ():
        kept: list[str] = []
        for is_genes, run in groupby(line.split(" "), key=lambda word: word == MASK or word.rstrip(".,") in genes):
            words = list(run)
            kept += _cut(words, max_genes) if is_genes else words
        lines.append(" ".join(_cut(kept, _WORDS_OF_PROSE)))
    return "\n".join(lines) if max_genes > 0 else text


def _cut(words: list[str], most: int) -> list[str]:
    if len(words) <= most + 2:
        return words
    n_last = max(1, most // 4)
    return [*words[: most - n_last], f"… ({len(words) - most} more) …", *words[-n_last:]]
