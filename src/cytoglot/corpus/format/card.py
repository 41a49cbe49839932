"""The data set card of a corpus: what a person wants to know before using it, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cytoglot.cards import render_card
from cytoglot.corpus.format.folder import PARTS, CorpusDescription

#: Values listed of a column; the description holds all.
_LISTED = 25
#: Columns whose values are many and say little by their names.
_SUMMARIZED = ("donor_id", "batch", "dataset_id")
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
    total, sources = description.total, description.sources
    licences: Counter[str] = Counter()
    for source in sources:
        licences[source.licence or "not stated"] += source.n_kept
    removed = ["; ".join(f"{n:,} {reason}" for reason, n in source.removed.items()) for source in sources]
    details = [
        [source.title, *source.messages, f"left out: {gone}" if gone else ""]
        for source, gone in zip(sources, removed, strict=True)
    ]
    skipped = (f"source {name!r} was left out: {reason}" for name, reason in description.skipped.items())
    return render_card(
        __package__,
        "card.md.j2",
        d=description,
        n_cells=total("n_cells"),
        held=[part for part in PARTS if total("n_cells", part)],
        parts=[
            (
                part,
                *(total(name, part) for name in ("n_cells", "n_groups", "n_ids")),
                sum(shard.part == part for shard in description.shards),
                f"{total('bytes', part) / 1e6:,.1f}",
            )
            for part in PARTS
        ],
        sources=[
            (s.name, s.study, s.organism, s.licence or "not stated", s.n_cells, s.n_kept, s.fingerprint)
            for s in sources
        ],
        licences="; ".join(f"{name}: {n:,}" for name, n in sorted(licences.items())),
        notes=[(source.name, ". ".join(filter(None, each))) for source, each in zip(sources, details, strict=True)],
        warnings=[*warnings, *skipped],
        columns=[
            {
                "name": name,
                "title": _TITLE.get(name, name.replace("_", " ").capitalize()),
                "n_values": len(counts),
                "share": 100 * sum(counts.values()) / max(total("n_cells"), 1),
                "numbers": sorted(counts.values()) if name in _SUMMARIZED else [],
                "listed": list(counts.items())[:_LISTED],
                "rest": list(counts.values())[_LISTED:],
            }
            for name in description.metadata_columns
            if (counts := description.counts.get(name))
        ],
        versions=", ".join(f"{name} {version}" for name, version in description.versions.items()),
        recipe={name: value for name, value in description.recipe.items() if name != "sources"},
    )
