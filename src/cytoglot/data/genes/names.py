"""What gene names tell: the species, symbols that were renamed, and names that a spreadsheet turned into dates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cytoglot.data.knowledge.tables import read_table

Species = Literal["human", "mouse"]

_ENSEMBL_SPECIES: Mapping[str, Species] = {"ENSG": "human", "ENSMUSG": "mouse"}
_HUMAN = re.compile(r"^(?:[A-Z0-9.\-]+|C\d+orf\d+[A-Z0-9\-]*)$")
_MOUSE = re.compile(r"^[A-Z][a-z0-9.\-]*[a-z][A-Za-z0-9.\-]*$|^\d{7}[A-Z]\d{2}Rik$")

#: renamed human symbols that are common in data sets (HGNC), without a table; `harmonize.outdated_symbols` takes one.
RENAMED: Mapping[str, str] = dict(
    read_table(Path(__file__).with_name("renamed_symbols.tsv"), ["old", "new"], comment="#").itertuples(index=False)
)

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
_DATE = re.compile(
    rf"^(?:(?P<day>\d{{1,2}})[-/ ](?P<month>{_MONTHS})|(?P<month2>{_MONTHS})[-/ ](?P<day2>\d{{1,2}}))$", re.I
)
_ACCESSION = r"(?:gene:)?(?:ENS[A-Z]{0,6}G\d{11}(?:\.\d+)?|FBgn\d{7}|WBGene\d{8})"
_GENOME = r"(?:GRC[a-z]\d+[a-z]?|(?:hg|mm|rn|dm|ce|danRer|galGal|macFas|rheMac)\d+|hs|human|mouse|premrna)"
_WRAPPED = re.compile(
    rf"b'([^']+)'|b\"([^\"]+)\"|['\"](.+)['\"]|(?i:{_GENOME})_+(?:premrna_+)?([^_].*)"
    rf"|([^_|:.\-].*?)[_|:.\- ]+{_ACCESSION}|{_ACCESSION}[_|:\- ]+(?!PAR_Y)(.+)|gene:(.+)"
)
_OTHER_MANGLED = re.compile(r"^\d{4}-\d{2}-\d{2}(?: 00:00:00)?$|^\d{1,2}/\d{1,2}/\d{2,4}$|^\d+(?:\.\d+)?E\+\d+$")
_MONTH_GENES: Mapping[str, tuple[str, ...]] = {"sep": ("SEPTIN",), "mar": ("MARCHF", "MTARC"), "dec": ("DELEC",)}
_KNOWN = {*RENAMED.values()}


def guess_species(names: Sequence[str]) -> tuple[Species | None, str]:
    """Return the species that gene names speak of, None if they do not tell, and the evidence in words.

    Ensembl ids tell by their prefix, symbols by their case (`CD3E` human, `Cd3e` mouse) and by the prefix of
    mitochondrial genes (`MT-`, `mt-`), which decides where fewer than 70 % of the symbols agree. Mouse genes written
    as human symbols of their orthologs count as human.
    """
    if not len(names):
        return None, "no genes"
    ensembl = [match.group(1) for name in names if (match := re.match(r"^(ENS[A-Z]{0,6}G)\d{11}", name))]
    if len(ensembl) > len(names) / 2:
        prefix = max(set(ensembl), key=ensembl.count)
        return _ENSEMBL_SPECIES.get(prefix), f"{ensembl.count(prefix)} of {len(names)} ids begin with {prefix}"
    human = sum(_HUMAN.match(name) is not None for name in names) / len(names)
    mouse = sum(_MOUSE.match(name) is not None for name in names) / len(names)
    evidence = f"{human:.0%} of the symbols are in upper case, {mouse:.0%} capitalized"
    if human >= 0.7 or mouse >= 0.7:
        return ("human" if human > mouse else "mouse"), evidence
    n_human, n_mouse = (sum(name.startswith(prefix) for name in names) for prefix in ("MT-", "mt-"))
    if (n_human > 0) != (n_mouse > 0):
        return (
            "human" if n_human else "mouse"
        ), f"{evidence}; mitochondrial genes begin with {'MT-' if n_human else 'mt-'}"
    return None, evidence


def wrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names that a program wrapped in something else → what is probably the symbol in them.

    Such are byte strings that became text (`b'ACTB'`), names in quotes, names after their genome, as in files of
    several species (`GRCh38_ACTB`), and a symbol and an accession number in one (`ACTB_ENSG00000075624`).
    """
    matches = ((name, _WRAPPED.fullmatch(name)) for name in names)
    return {name: next(part for part in match.groups() if part) for name, match in matches if match}


def mangled_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the names that a spreadsheet turned into dates or numbers → the symbols that they may have been.

    `2-Sep` was SEPTIN2; `1-Mar` may have been MARCHF1 or MTARC1. Empty where the name cannot be told any more
    (`2020-09-02`, `2.31E+13`).
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        match = _DATE.match(name)
        if match is not None:
            month = (match["month"] or match["month2"]).lower()[:3]
            candidates = (f"{stem}{int(match['day'] or match['day2'])}" for stem in _MONTH_GENES.get(month, ()))
            found[name] = tuple(symbol for symbol in candidates if symbol in _KNOWN)
        elif _OTHER_MANGLED.match(name):
            found[name] = ()
    return found
