"""The data set card of a corpus: what a person wants to know before using it, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from cytoglot.corpus.format.folder import PARTS, CorpusDescription

#: Values listed of a column; the description holds all.
_LISTED = 25
#: Columns whose values are many and say little by their names.
_SUMMARISED = ("donor_id", "batch", "dataset_id")
_TITLE = {
    "cell_type": "Cell types",
    "tissue": "Tissues",
    "organism": "Organisms",
    "disease": "Diseases",
    "assay": "Assays",
    "sex": "Sexes",
    "development_stage": "Development stages",
    "donor_id": "Donors",
    "batch": "Batches",
    "dataset_id": "Data sets",
}


def corpus_card(description: CorpusDescription, *, warnings: Sequence[str] = ()) -> str:
    """Return the card; the same description and warnings give the same text.

    Its head is what the Hugging Face Hub reads: which files are which part.
    """
    parts = [
        _head(description),
        "# A corpus of cell sentences\n",
        _size(description),
        _sources(description),
        _warnings(description, warnings),
        *(_column(name, description) for name in description.metadata_columns),
        _making(description),
        _loading(description),
    ]
    return "\n".join(part for part in parts if part)


def _head(description: CorpusDescription) -> str:
    held = [part for part in PARTS if description.total("n_cells", part)]
    files = "".join(f"  - split: {part}\n    path: {part}/*.parquet\n" for part in held)
    return f"---\nconfigs:\n- config_name: cells\n  data_files:\n{files}---\n"


def _size(description: CorpusDescription) -> str:
    n_ids, n_cells = description.total("n_ids"), description.total("n_cells")
    text = (
        f"{n_cells:,} cells of {len(description.sources)} source(s), each as its expressed genes from highest to "
        f"lowest: {n_ids:,} ranked genes of a vocabulary of {description.genes:,}, {n_ids / max(n_cells, 1):,.0f} in a "
        f"cell. Fingerprint `{description.fingerprint}`.\n"
    )
    rows = [
        (
            part,
            description.total("n_cells", part),
            description.total("n_groups", part),
            description.total("n_ids", part),
            sum(shard.part == part for shard in description.shards),
            f"{description.total('bytes', part) / 1e6:,.1f}",
        )
        for part in PARTS
    ]
    return text + "\n" + _table(("part", "cells", "cell groups", "ranked genes", "shards", "MB"), rows)


def _sources(description: CorpusDescription) -> str:
    rows = [
        (s.name, s.study, s.organism, s.licence or "not stated", s.n_cells, s.n_kept, s.fingerprint)
        for s in description.sources
    ]
    text = "## Sources\n\n" + _table(
        ("source", "study", "organism", "licence", "cells", "in the corpus", "fingerprint"), rows
    )
    licences: dict[str, int] = {}
    for source in description.sources:
        name = source.licence or "not stated"
        licences[name] = licences.get(name, 0) + source.n_kept
    text += "\nCells by licence: " + "; ".join(f"{name}: {n:,}" for name, n in sorted(licences.items())) + ".\n"
    for source in description.sources:
        removed = "; ".join(f"{n:,} {reason}" for reason, n in source.removed.items())
        details = [source.title, *source.messages, f"left out: {removed}" if removed else ""]
        text += f"\n- **{source.name}**: " + ". ".join(detail for detail in details if detail)
    return text + "\n"


def _warnings(description: CorpusDescription, warnings: Sequence[str]) -> str:
    lines = [*warnings, *(f"source {name!r} was left out: {reason}" for name, reason in description.skipped.items())]
    return "## Warnings\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _column(name: str, description: CorpusDescription) -> str:
    counts = description.counts.get(name, {})
    if not counts:
        return ""
    title = _TITLE.get(name, name.replace("_", " ").capitalize())
    n_known = sum(counts.values())
    share = 100 * n_known / max(description.total("n_cells"), 1)
    text = f"## {title}\n\n`{name}`: {len(counts):,} value(s), known of {share:.1f} % of the cells"
    if name in _SUMMARISED:
        numbers = sorted(counts.values())
        middle = numbers[len(numbers) // 2]
        return text + f"; {numbers[0]:,} to {numbers[-1]:,} cells each, half of them {middle:,} or more.\n"
    shown = list(counts.items())[:_LISTED]
    text += ".\n\n" + _table((name, "cells"), shown)
    rest = list(counts.values())[_LISTED:]
    return text + (f"\nand {len(rest):,} more with {sum(rest):,} cells.\n" if rest else "")


def _making(description: CorpusDescription) -> str:
    recipe = {name: value for name, value in description.recipe.items() if name != "sources"}
    settings = description.settings
    kept = "all expressed genes" if settings.top_genes is None else f"the first {settings.top_genes:,} genes"
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    return (
        "## How it was made\n\n"
        f"By `cytoglot corpus build` with seed {description.seed}; the same recipe, seed and sources give the same "
        f"bytes. Of each cell {kept} are kept, ties in the order `{settings.ties}`. Cells are shuffled over all "
        "shards; cells of one group stand together. `corpus.json` has the whole recipe and all counts, `splits.json` "
        f"which donor is in which part.\n\nVersions: {versions}.\n\n"
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False)}```\n"
    )


def _loading(description: CorpusDescription) -> str:
    first = description.shards[0].file if description.shards else "train/shard-00000.parquet"
    return (
        "## How to read it\n\n"
        "```python\n"
        "from cytoglot.corpus.format.folder import open_corpus\n\n"
        "corpus = open_corpus(FOLDER)\n"
        'block = next(iter(corpus.blocks("train")))\n'
        "print([corpus.vocabulary.symbols[gene] for gene in block.ids(0)])\n"
        "```\n\n"
        f'A shard is plain Parquet: `pyarrow.parquet.read_table("{first}")`; `gene_ids` are places in the `symbols` of '
        "`vocabulary.json`. `cytoglot corpus show` prints examples as a model reads them.\n"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]] | Mapping[str, Any]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
