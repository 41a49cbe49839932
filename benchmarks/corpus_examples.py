"""Twenty random examples of every task, from the sources of the demo corpus whose licence lets them be shown.

    python -m benchmarks.corpus_examples

Writes docs/corpus_examples.md; needs the folder CYTOGLOT_DATA. Long sentences are cut in the middle, groups after
three cells.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from cytoglot.corpus.build.build import build_corpus
from cytoglot.corpus.format.folder import Corpus, open_corpus
from cytoglot.corpus.inspect.preview import shown
from cytoglot.corpus.read.examples import available_tasks, sample_examples
from cytoglot.corpus.sources.recipe import load_corpus_recipe
from cytoglot.tasks.task import tasks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "corpus_examples.md"
N_EXAMPLES, MAX_GENES, MAX_CELLS = 20, 8, 3
_CELL = re.compile(r"^(→ )?Cell \d+:")


def main() -> None:
    recipe = load_corpus_recipe(ROOT / "recipes" / "demo_corpus.yaml")
    shown_sources = [source for source in recipe.sources if "not to be published" not in (source.licence or "")]
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(recipe.model_copy(update={"sources": shown_sources}), Path(folder) / "corpus")
        corpus = open_corpus(Path(folder) / "corpus")
        PAGE.write_text(page(corpus, [source.label for source in shown_sources]), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


def page(corpus: Corpus, sources: list[str]) -> str:
    asked = available_tasks(corpus, "train")
    genes = frozenset(corpus.vocabulary.symbols)
    lines = [
        "# Examples of a corpus",
        "",
        f"Up to {N_EXAMPLES} random training examples of each task, from {', '.join(sources)}",
        "of `recipes/demo_corpus.yaml`, with gene sets of Hallmark and Reactome and terms of the Cell Ontology.",
        f"Sentences of more than {MAX_GENES} genes are cut in the middle, groups after {MAX_CELLS} cells. An arrow",
        "stands between prompt and completion. Made by `python -m benchmarks.corpus_examples`.",
        "",
        f"Not shown, because nothing in these sources can be asked: {', '.join(sorted(set(tasks) - set(asked)))}.",
        "",
    ]
    for name in asked:
        lines += [f"## {name}", ""]
        for example in sample_examples(corpus, "train", N_EXAMPLES, task=name, seed=1):
            found = shown(example, genes, max_genes=MAX_GENES)
            lines += ["```text", *few_cells(f"{found.prompt}\n→{found.completion}"), "```", ""]
    return "\n".join(lines)


def few_cells(text: str) -> list[str]:
    """Return the lines, of each run of "Cell n:" lines only the first ones."""
    kept: list[str] = []
    n_cells = n_left_out = 0
    for line in [*text.split("\n"), ""]:
        if _CELL.match(line):
            n_cells = 1 if line.startswith("→") else n_cells + 1
            if n_cells > MAX_CELLS:
                n_left_out += 1
                continue
        elif n_left_out:
            kept.append(f"… ({n_left_out} more cells) …")
            n_left_out = 0
        if not _CELL.match(line):
            n_cells = 0
        kept.append(line)
    return kept[:-1]


if __name__ == "__main__":
    main()
