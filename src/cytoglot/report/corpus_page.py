"""One self-contained HTML page about a corpus: pictures inside, no network, readable on a phone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from cytoglot.atomic import write_text
from cytoglot.report import corpus_figures as figures

if TYPE_CHECKING:
    from cytoglot.corpus.format.folder import Part
    from cytoglot.corpus.inspect.statistics import ColumnNumbers, CorpusStatistics

_BARS = 30
"""bars of the large figures"""
_SMALL_BARS = 10
_ROWS = 100
"""rows of a table that may be long"""
_NOT_DRAWN = ("cell_type", "donor_id", "batch", "dataset_id")
"""columns with a figure of their own, or whose values are many and say little by their names"""
_FIRST = ("tissue", "disease", "organism")
_NAMES = {"tissue": "Tissues", "disease": "Diseases", "organism": "Organisms", "assay": "Assays", "sex": "Sexes"}


def write_corpus_page(statistics: CorpusStatistics, path: str | Path) -> Path:
    """Write the page about a corpus, and return its path.

    The same numbers give the same page. Figures of which the corpus has no numbers are left out.
    """
    loader = jinja2.PackageLoader("cytoglot.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["short"] = _short_count
    environment.filters["words"] = lambda value: str(value).replace("_", " ")
    page = environment.get_template("corpus.html").render(s=statistics, rows=_ROWS, **_content(statistics))
    write_text(path, page)
    return Path(path)


def _content(s: CorpusStatistics) -> dict[str, Any]:
    known = {column.column: column for column in s.columns if column.n_values}
    order = [*(name for name in _FIRST if name in known), *(name for name in known if name not in _FIRST)]
    types = known.get("cell_type")
    licences: Counter[str] = Counter()
    for source in s.sources:
        licences[source.licence or "not stated"] += sum(source.cells.values())
    return {
        "n_ids": sum(part.ranked_ids for part in s.parts),
        "n_bytes": sum(part.bytes for part in s.parts),
        "n_groups": sum(part.cell_groups for part in s.parts),
        "types": types,
        "types_note": _note(types, s.n_cells, _BARS) if types else "",
        "panels": [
            {
                "title": _NAMES.get(name, f"{name[:1].upper()}{name[1:]}".replace("_", " ")),
                "svg": figures.stacked_bars(known[name].values[:_SMALL_BARS], width=4.8),
                "note": _note(known[name], s.n_cells, _SMALL_BARS),
            }
            for name in order
            if name not in _NOT_DRAWN
        ],
        "licences": sorted(licences.items(), key=lambda item: (-item[1], item[0])),  # the most cells first
        "balanced": sorted(s.tasks, key=lambda line: line.task),
        "not_shown": {line.task: line.not_shown for line in s.tasks if line.not_shown},
        "figures": _figures(s, types),
    }


def _figures(s: CorpusStatistics, types: ColumnNumbers | None) -> dict[str, str]:
    """Draw what there are numbers for."""
    drawn = {"tasks": figures.task_balance(s.tasks)}
    if s.sources:
        # The largest sources, and all others together.
        ordered = sorted(s.sources, key=lambda source: -sum(source.cells.values()))
        bars = [(source.name, source.cells) for source in ordered[:_BARS]]
        others = ordered[_BARS:]
        if others:
            rest: dict[Part, int] = {part.part: sum(source.cells[part.part] for source in others) for part in s.parts}
            bars.append((f"{len(others)} other sources", rest))
        drawn["sources"] = figures.stacked_bars(bars)
    if types:
        drawn["types"] = figures.stacked_bars(types.values[:_BARS])
    if s.genes_per_cell.edges:
        drawn["genes_per_cell"] = figures.genes_per_cell(s.genes_per_cell)
        drawn["cut_off"] = figures.cut_off(s.tokens)
    if any(s.group_sizes.values()):
        drawn["group_sizes"] = figures.group_sizes(s.group_sizes)
    if s.cells_per_donor.edges:
        drawn["donors"] = figures.cells_per_donor(s.cells_per_donor)
    if s.genes.frequent:
        drawn["genes"] = figures.frequent_genes(s.genes)
    return drawn


def _note(column: ColumnNumbers, n_cells: int, n_bars: int) -> str:
    """Say what the bars leave out."""
    known = f"{100 * column.n_known / max(n_cells, 1):.1f} % of the cells have one"
    shown = sum(sum(parts.values()) for _, parts in column.values[:n_bars])
    more = column.n_values - n_bars
    rest = f"; {more:,} more value(s) have {column.n_known - shown:,} cells together" if more > 0 else ""
    return f"{column.n_values:,} value(s); {known}{rest}."


def _short_count(value: int) -> str:
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.1f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"
