"""What gene names tell: the species, symbols that were renamed, and names that a spreadsheet turned into dates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Species = Literal["human", "mouse"]

_ENSEMBL_SPECIES: Mapping[str, Species] = {"ENSG": "human", "ENSMUSG": "mouse"}
_HUMAN = re.compile(r"^(?:[A-Z0-9.\-]+|C\d+orf\d+[A-Z0-9\-]*)$")
_MOUSE = re.compile(r"^[A-Z][a-z0-9.\-]*[a-z][A-Za-z0-9.\-]*$|^\d{7}[A-Z]\d{2}Rik$")

#: renamed human symbols that are common in data sets (HGNC), without a table; `harmonize.outdated_symbols` takes one.
RENAMED: Mapping[str, str] = {
    **{f"SEPT{i}": f"SEPTIN{i}" for i in (*range(1, 13), 14)},
    **{f"MARCH{i}": f"MARCHF{i}" for i in range(1, 12)},
    "MARC1": "MTARC1",
    "MARC2": "MTARC2",
    "DEC1": "DELEC1",
    "AARS": "AARS1",
    "ATP5A1": "ATP5F1A",
    "ATP5B": "ATP5F1B",
    "ATP5C1": "ATP5F1C",
    "ATP5D": "ATP5F1D",
    "ATP5E": "ATP5F1E",
    "ATP5F1": "ATP5PB",
    "ATP5G1": "ATP5MC1",
    "ATP5G2": "ATP5MC2",
    "ATP5G3": "ATP5MC3",
    "ATP5H": "ATP5PD",
    "ATP5I": "ATP5ME",
    "ATP5J": "ATP5PF",
    "ATP5J2": "ATP5MF",
    "ATP5L": "ATP5MG",
    "ATP5O": "ATP5PO",
    "ATPIF1": "ATP5IF1",
    "CTGF": "CCN2",
    "CYR61": "CCN1",
    "EPRS": "EPRS1",
    "FAIM3": "FCMR",
    "GARS": "GARS1",
    "GLTSCR2": "NOP53",
    "GNB2L1": "RACK1",
    "H2AFV": "H2AZ2",
    "H2AFX": "H2AX",
    "H2AFY": "MACROH2A1",
    "H2AFZ": "H2AZ1",
    "H3F3A": "H3-3A",
    "H3F3B": "H3-3B",
    "HIST1H1C": "H1-2",
    "HIST1H4C": "H4C3",
    "HN1": "JPT1",
    "IGJ": "JCHAIN",
    "IL8": "CXCL8",
    "LINC00152": "CYTOR",
    "MINOS1": "MICOS10",
    "MLL": "KMT2A",
    "MYEOV2": "COPS9",
    "NARS": "NARS1",
    "NGFRAP1": "BEX3",
    "NOV": "CCN3",
    "PTRF": "CAVIN1",
    "SDPR": "CAVIN2",
    "SEPP1": "SELENOP",
    "SEPW1": "SELENOW",
    "SHFM1": "SEM1",
    "TCEB1": "ELOC",
    "TCEB2": "ELOB",
    "TMEM66": "SARAF",
    "WARS": "WARS1",
    "WISP1": "CCN4",
}

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
