"""Tables of what is known of genes and cell types: gene sets (GMT), terms of the Cell Ontology, marker genes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cytoglot.errors import InputError
from cytoglot.texts import open_text, read_text


@dataclass(frozen=True, kw_only=True)
class GeneSetEntry:
    """One line of a GMT file."""

    name: str
    description: str
    genes: tuple[str, ...]
    """distinct, in the order of the file"""


@dataclass(frozen=True, kw_only=True)
class CellTypeEntry:
    """One term of the Cell Ontology."""

    term_id: str
    label: str
    definition: str
    """empty where the ontology has none"""
    synonyms: tuple[str, ...]


def read_gmt(path: str | Path) -> list[GeneSetEntry]:
    """Read gene sets: one a line, name, description and genes between tabs, plain or `.gz`.

    Blank lines are left out; a gene that a set names twice counts once.

    Raises
    ------
    InputError
        The file is missing or damaged, a line has no gene, or two sets have the same name; the line is named.
    """
    sets: dict[str, GeneSetEntry] = {}
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; expected a GMT file")
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes:
            raise InputError(
                f"{path}, line {number}: expected name, description and genes between tabs, found {line[:60]!r}"
            )
        if name in sets:
            raise InputError(f"{path}, line {number}: gene set {name!r} is there twice; rename or remove one")
        sets[name] = GeneSetEntry(name=name, description=rest[0], genes=genes)
    if not sets:
        raise InputError(f"{path} holds no gene set; expected a GMT file, one set a line")
    return list(sets.values())


_COLLECTIONS = re.compile(r"^(?:HALLMARK|REACTOME|KEGG(?:_MEDICUS)?|BIOCARTA|PID|WP|GOBP|GOCC|GOMF|HP)_")
_TERM_ID = re.compile(r"\s*\(?\b(?:GO:\d+|WP\d+|R-HSA-\d+)\)?$")
_KEEP_UPPER = frozenset(
    """
    ABC AKT AMPK APC ATP BCR DNA ECM EGFR ER FGFR GABA GPCR GTP HDL HIV IFN IGF JAK KRAS LDL MAPK MHC MRNA MTOR MYC
    NFKB NMDA NOD PDGF PKA RNA RRNA SNARE SRP TCA TCR TGF TLR TNF TNFA TRNA UPR UV WNT
    """.split()  # noqa: SIM905 - one quoted word a line would fill a page
)


def readable_set_name(name: str) -> str:
    """Return the name of a gene set as a person would write it.

    The prefix of a collection and the id of a term are left out, underscores become spaces, and names in capitals are
    written small, but for common abbreviations and words with a digit: "HALLMARK_TNFA_SIGNALING_VIA_NFKB" becomes
    "TNFA signaling via NFKB". A name in mixed case stays as it is.
    """
    bare = _TERM_ID.sub("", _COLLECTIONS.sub("", name.strip()))
    words = bare.replace("_", " ").split()
    if bare != bare.upper():
        return " ".join(words)
    kept = [w if w in _KEEP_UPPER or any(c.isdigit() for c in w) else w.lower() for w in words]
    return " ".join("down" if w == "dn" else w for w in kept)


def read_cell_types(path: str | Path) -> list[CellTypeEntry]:
    """Read terms from a table with the columns id, label, definition and synonyms (`|` between them), plain or `.gz`.

    Raises
    ------
    InputError
        The file is missing or damaged, lacks a column, or a term has no label.
    """
    table = read_table(path, ["id", "label", "definition", "synonyms"])
    if (table["label"] == "").any():
        raise InputError(f"{path}: the term {table.loc[table['label'] == '', 'id'].iloc[0]!r} has no label")
    return [
        CellTypeEntry(
            term_id=term_id,
            label=label,
            definition=" ".join(definition.split()),
            synonyms=tuple(s for s in synonyms.split("|") if s),
        )
        for term_id, label, definition, synonyms in table.itertuples(index=False)
    ]


def read_markers(path: str | Path, *, species: str = "human") -> dict[str, tuple[str, ...]]:
    """Return Cell Ontology id → its positive marker genes, best supported first.

    The table has the columns species, CL_ID, marker, marker_type, ECs_global (how many sources agree) and SPs_global
    (how specific a marker is). Markers are ordered by agreement, then by specificity, then by name.

    Raises
    ------
    InputError
        The file is missing or damaged, lacks a column, or knows nothing of the species.
    """
    columns = ["species", "CL_ID", "marker", "marker_type", "ECs_global", "SPs_global"]
    table = read_table(path, columns)
    of_species = table[table["species"].str.lower() == species.lower()]
    if of_species.empty:
        known = ", ".join(sorted(table["species"].unique()))
        raise InputError(f"{path} has no markers of {species!r}; it knows {known}")
    positive = of_species[(of_species["marker_type"] == "positive") & (of_species["CL_ID"] != "")]
    ranked = positive.assign(
        agreement=pd.to_numeric(positive["ECs_global"], errors="coerce").fillna(0),
        specificity=pd.to_numeric(positive["SPs_global"], errors="coerce").fillna(0),
    ).sort_values(["CL_ID", "agreement", "specificity", "marker"], ascending=[True, False, False, True])
    distinct = ranked.drop_duplicates(["CL_ID", "marker"])
    return {str(term): tuple(markers) for term, markers in distinct.groupby("CL_ID", sort=True)["marker"]}


def read_table(
    path: str | Path, columns: Sequence[str], *, optional: Sequence[str] = (), comment: str | None = None
) -> pd.DataFrame:
    """Return columns of a tab-separated table as texts, plain or `.gz`; an empty field is an empty text.

    An `optional` column that is absent is empty throughout. What follows a `comment` sign is left out.

    Raises
    ------
    InputError
        The file is missing or damaged, or lacks a column.
    """
    listed = ", ".join(columns)
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; pass a table (TSV in UTF-8, plain or .gz) with the columns {listed}")
    try:
        with open_text(path) as handle:
            header = handle.readline()
            while comment is not None and header.startswith(comment):
                header = handle.readline()
            found = header.rstrip("\n").split("\t")
            absent = [name for name in columns if name not in found]
            if absent:
                raise InputError(
                    f"{path} must have the columns {listed}; {', '.join(absent)} not found, but {', '.join(found)}"
                )
            used = [name for name in (*columns, *optional) if name in found]
            table = pd.read_csv(
                handle, sep="\t", names=found, usecols=used, dtype=str, keep_default_na=False, comment=comment
            )
    except (OSError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    return table[used].assign(**{name: "" for name in optional if name not in used})
