"""The genes of many files under one set of names: approved symbols, by HGNC's table of previous symbols and aliases.

What a name may become is decided by the table alone, so that a gene has the same name in every file, with one
exception: an alias is no proof, and is left as it is where its approved symbol is itself among the columns.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cytoglot.data.genes.columns import ensembl_share, strip_version
from cytoglot.data.genes.names import RENAMED, guess_species, mangled_names
from cytoglot.data.knowledge.tables import read_table
from cytoglot.errors import InputError
from cytoglot.texts import read_text

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G)\d{11}")
_PROBE = re.compile(r"^(?:\d+_(?:[a-z]_)?(?:st|at)|AFFX-.*|ILMN_\d+|A_\d\d_P\d+|\d+(?:_[a-z])?_at)$")
_REFSEQ = re.compile(r"^[NX][MR]_\d+(?:\.\d+)?$")
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class HgncTable:
    """What old names of human genes are called today."""

    approved: frozenset[str]
    """today's symbols; few of them where the built-in list stands in for the table"""
    previous: Mapping[str, str]
    """symbol that was approved once, for one gene alone → today's"""
    aliases: Mapping[str, str]
    """name that is in use for one gene alone and was never approved → its symbol"""
    ensembl: Mapping[str, str]
    """Ensembl id without version → symbol"""
    is_complete: bool = True
    """whether a name that is not `approved` is unknown to HGNC"""


#: Stands in for HGNC's table where there is none.
BUILT_IN = HgncTable(approved=frozenset(RENAMED.values()), previous=RENAMED, aliases={}, ensembl={}, is_complete=False)


@dataclass(frozen=True, kw_only=True)
class Change:
    """How many names of a kind there were, and the first of them."""

    n: int = 0
    examples: tuple[str, ...] = ()


_NONE = Change()


@dataclass(frozen=True, kw_only=True)
class HarmoniseReport:
    """What became of the names of a file's columns. Every number counts columns."""

    organism: str
    n_columns: int
    n_approved: int = 0
    """names that were approved symbols already"""
    dotted: Change = _NONE
    """names with dots for the dashes of an approved symbol, as R writes them"""
    previous: Change = _NONE
    """previous symbols that were replaced"""
    aliases: Change = _NONE
    """aliases that were replaced"""
    merged: Change = _NONE
    """replaced names whose gene has another column, with which they are summed"""
    kept_aliases: Change = _NONE
    """aliases left as they are, because the symbol has a column of its own or several aliases stand for it"""
    ensembl: Change = _NONE
    """Ensembl ids that became symbols"""
    kept_ensembl: Change = _NONE
    """Ensembl ids without a symbol"""
    orthologs: Change = _NONE
    """mouse genes that became human genes"""
    dropped: Change = _NONE
    """mouse genes without a one-to-one human ortholog"""
    unknown: Change = _NONE
    """names that the table does not hold, kept as they are"""

    def messages(self) -> list[str]:
        """Return one sentence per finding; empty when every name was approved."""
        kinds = [
            (self.dotted, "name(s) with dots for dashes mended"),
            (self.previous, "previous symbol(s) replaced by the approved"),
            (self.aliases, "alias(es) replaced by the approved symbol"),
            (self.merged, "column(s) of a gene that has another column, merged with it"),
            (self.kept_aliases, "alias(es) kept, because the approved symbol is taken"),
            (self.ensembl, "Ensembl id(s) replaced by symbols"),
            (self.kept_ensembl, "Ensembl id(s) without a symbol kept"),
            (self.orthologs, "mouse gene(s) mapped to their human orthologs"),
            (self.dropped, "mouse gene(s) without a one-to-one ortholog dropped"),
            (self.unknown, "name(s) unknown to HGNC kept"),
        ]
        return [f"{change.n:,} {words} ({', '.join(change.examples)})" for change, words in kinds if change.n]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Harmonized:
    """The name of each column, and how it was come by."""

    symbols: tuple[str | None, ...]
    """for each column; None where it is dropped. Columns of one name are one gene"""
    report: HarmoniseReport


def read_hgnc(path: str | Path) -> HgncTable:
    """Return HGNC's table, from a TSV (plain or .gz) with columns symbol, prev_symbol, alias_symbol, ensembl_gene_id.

    Several values of a cell are separated by "|". Columns other than `symbol` and `prev_symbol` may be absent. A name
    that stood for several genes is left out, and so is an alias that was once the symbol of any gene. The table is kept
    in memory for the next call.

    Raises
    ------
    InputError
        The table is missing, unreadable or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"table of symbols {path} does not exist; pass HGNC's complete set as TSV")
    stat = path.stat()
    return _read_hgnc(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read_hgnc(path: Path, _mtime_ns: int, _size: int) -> HgncTable:
    frame = read_table(path, ["symbol", "prev_symbol"], optional=["alias_symbol", "ensembl_gene_id"])
    approved = frozenset(frame["symbol"])
    symbols = frame["symbol"].tolist()
    previous = _names_of(symbols, frame["prev_symbol"], approved)
    aliases = _names_of(symbols, frame["alias_symbol"], approved | previous.keys())
    ids = zip(frame["ensembl_gene_id"], symbols, strict=True)
    return HgncTable(
        approved=approved,
        previous=_unambiguous(previous),
        aliases=_unambiguous(aliases),
        ensembl={gene_id: symbol for gene_id, symbol in ids if gene_id},
    )


def _names_of(symbols: Sequence[str], names: pd.Series, taken: Iterable[str]) -> dict[str, set[str]]:
    """Each name that is not taken → the symbols of the genes that bore it."""
    taken = frozenset(taken)
    found: dict[str, set[str]] = {}
    for symbol, joined in zip(symbols, names, strict=True):
        for name in joined.split("|") if joined else ():
            if name and name not in taken:
                found.setdefault(name, set()).add(symbol)
    return found


def _unambiguous(names: Mapping[str, set[str]]) -> dict[str, str]:
    return {name: next(iter(genes)) for name, genes in names.items() if len(genes) == 1}


def outdated_symbols(names: Iterable[str], *, hgnc: str | Path | None = None) -> dict[str, str]:
    """Return old symbol → approved symbol for those of `names` that were renamed.

    A name that is an approved symbol today is never outdated, and neither is one that stood for several genes. Human
    symbols only. Without `hgnc` (a table that `read_hgnc` takes) the short list `RENAMED` is all that is known.

    Raises
    ------
    InputError
        As `read_hgnc`.
    """
    renamed = RENAMED if hgnc is None else read_hgnc(hgnc).previous
    return {name: renamed[name] for name in names if name in renamed}


def read_orthologs(path: str | Path) -> dict[str, str]:
    """Return mouse symbol → human symbol for pairs that are one to one, from a TSV with columns of these names.

    The columns are `human_symbol` and `mouse_symbol`; a gene that occurs in two different pairs is left out.

    Raises
    ------
    InputError
        The table is missing, unreadable, lacks a column, or has no such pair.
    """
    frame = read_table(path, ["human_symbol", "mouse_symbol"])
    pairs = frame[(frame["human_symbol"] != "") & (frame["mouse_symbol"] != "")].drop_duplicates()
    single = ~(pairs["human_symbol"].duplicated(keep=False) | pairs["mouse_symbol"].duplicated(keep=False))
    pairs = pairs[single]
    if pairs.empty:
        raise InputError(f"table of orthologs {path} has no pair that is one to one; pass another table")
    return dict(zip(pairs["mouse_symbol"], pairs["human_symbol"], strict=True))


def harmonize(
    names: Sequence[str],
    *,
    organism: str = "human",
    hgnc: HgncTable = BUILT_IN,
    orthologs: Mapping[str, str] | None = None,
) -> Harmonized:
    """Return the name under which each column of a file goes into a vocabulary of many files.

    Human names, in this order: an approved symbol stays. An Ensembl id, whatever its version, becomes its symbol; one
    without a symbol stays. Dots that stand for the dashes of an approved symbol become dashes (`HLA.A`, as R writes
    it; `NKX6.1` is listed as an alias of another gene). A previous symbol becomes today's; where today's has a column
    too, both are the same gene and share the name, so that they are summed. An alias becomes the approved symbol
    unless that has a column (by any of these ways) or another alias claims it too. Names that stood for several
    genes, and unknown ones, stay.

    Mouse names stay, or with `orthologs` (mouse → human symbol, one to one) become human names, which are harmonized
    as above; a gene without ortholog becomes None. Names of other organisms stay. Ensembl ids lose their version in
    every case. Names are compared exactly.
    """
    plain = [strip_version(str(name)) for name in names]
    if organism == "mouse" and orthologs is not None:
        notes = _Notes(list)
        mapped = [orthologs.get(name) for name in plain]
        for name, human in zip(plain, mapped, strict=True):
            notes["dropped" if human is None else "orthologs"].append((name, human or ""))
        inner = _human([human for human in mapped if human is not None], hgnc)
        as_human = iter(inner.symbols)
        symbols = tuple(None if human is None else next(as_human) for human in mapped)
        n_approved = inner.report.n_approved
        report = HarmoniseReport(organism="mouse", n_columns=len(plain), n_approved=n_approved, **_changes(notes))
        return Harmonized(symbols=symbols, report=report)
    if organism != "human":
        return Harmonized(symbols=tuple(plain), report=HarmoniseReport(organism=organism, n_columns=len(plain)))
    return _human(plain, hgnc)


_Notes = defaultdict[str, list[tuple[str, str]]]
"""kind of change → old and new name of each, as they are found"""


def _changes(notes: _Notes) -> dict[str, Change]:
    return {
        kind: Change(n=len(pairs), examples=tuple(f"{a} → {b}" if b else a for a, b in pairs[:_EXAMPLES]))
        for kind, pairs in notes.items()
    }


def _human(names: list[str], hgnc: HgncTable) -> Harmonized:
    notes, symbols = _Notes(list), list(names)
    n_approved, waiting = 0, []
    for i, name in enumerate(names):
        if name in hgnc.approved:
            n_approved += 1
        elif _ENSEMBL.match(name):
            symbol = hgnc.ensembl.get(name.removesuffix("_PAR_Y"))
            symbols[i] = symbol or name
            notes["ensembl" if symbol else "kept_ensembl"].append((name, symbol or ""))
        elif "." in name and (dashed := name.replace(".", "-")) in hgnc.approved:
            symbols[i] = dashed
            notes["dotted"].append((name, dashed))
        elif name in hgnc.previous:
            symbols[i] = hgnc.previous[name]
            notes["previous"].append((name, symbols[i]))
        elif name in hgnc.aliases:
            waiting.append(i)
        elif hgnc.is_complete:
            notes["unknown"].append((name, ""))
    taken = {symbol for symbol in symbols if symbol in hgnc.approved}
    claims = Counter(hgnc.aliases[name] for name in {names[i] for i in waiting})
    for i in waiting:
        symbol = hgnc.aliases[names[i]]
        free = symbol not in taken and claims[symbol] == 1
        symbols[i] = symbol if free else names[i]
        notes["aliases" if free else "kept_aliases"].append((names[i], symbol))
    columns_of = Counter(symbols)
    for name, symbol in zip(names, symbols, strict=True):
        if name != symbol and columns_of[symbol] > 1:
            notes["merged"].append((name, symbol))
    report = HarmoniseReport(organism="human", n_columns=len(names), n_approved=n_approved, **_changes(notes))
    return Harmonized(symbols=tuple(symbols), report=report)


def namespace_of(names: Sequence[str]) -> str | None:
    """Say what kind of names most of `names` are, None where they do not tell.

    For example "Ensembl ids of mouse", "Entrez numbers", "probe ids of a microarray", "mouse symbols".
    """
    n = max(len(names), 1)
    if ensembl_share(names) > 0.5:
        species, _ = guess_species(names)
        prefixes = Counter(m.group(1) for name in names if (m := _ENSEMBL.match(name)))
        return f"Ensembl ids of {species or f'another species ({prefixes.most_common(1)[0][0]}…)'}"
    for pattern, words in ((_PROBE, "probe ids of a microarray"), (_REFSEQ, "RefSeq ids")):
        if sum(pattern.match(name) is not None for name in names) > n / 2:
            return words
    if sum(name.isdigit() for name in names) > n / 2:
        return "Entrez numbers (or positions)"
    if len(mangled_names(names)) > n / 2:
        return "dates and numbers, as a spreadsheet leaves them"
    species, _ = guess_species(names)
    return None if species is None else f"{species} symbols"


#: What to do about names of a kind.
_ADVICE = (
    ("Ensembl ids of", "pass genes.hgnc (a table with ensembl_gene_id), or gene_column or gene_mapping of the source"),
    ("mouse symbols", "set organism: mouse, and genes.mouse: to_human for human names"),
    ("human symbols", "set organism: human"),
    ("", "name the column of symbols with gene_column, or pass gene_mapping with a table to symbols"),
)


def check_overlap(names: Sequence[str], vocabulary: Iterable[str], *, min_overlap: float) -> float:
    """Return the share of the names that the vocabulary knows, or of the vocabulary that the names cover, if larger.

    Nothing is expected of an empty vocabulary. `names` are harmonized already.

    Raises
    ------
    InputError
        The share is below `min_overlap`; the message says what kind of names these look like.
    """
    known = frozenset(vocabulary)
    if not known:
        return 1.0
    unique = frozenset(names)
    share = len(unique & known) / max(min(len(unique), len(known)), 1)
    if share >= min_overlap:
        return share
    raise InputError(
        f"expected at least {min_overlap:.0%} of the genes in the vocabulary of {len(known):,}, found {share:.1%} "
        f"({_such_as(names)}); {_looks_like(names)}"
    )


def check_namespace(names: Sequence[str], *, organism: str) -> None:
    """Refuse names that are plainly no symbols of the organism; for a corpus without a vocabulary to compare with.

    Human and mouse alone. Names that tell nothing are let pass. `names` are harmonized already.

    Raises
    ------
    InputError
        Most names are identifiers or symbols of the other species.
    """
    if organism not in ("human", "mouse"):
        return
    kind = namespace_of(names)
    if kind is not None and kind != f"{organism} symbols":
        raise InputError(f"expected symbols of {organism} genes, found {_such_as(names)}; {_looks_like(names)}")


def _looks_like(names: Sequence[str]) -> str:
    kind = namespace_of(names)
    advice = next(words for start, words in _ADVICE if (kind or "").startswith(start))
    return f"the names look like {kind or 'none of a known kind'}: {advice}, or lower genes.min_overlap"


def _such_as(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) or "no names"


def read_gene_list(path: str | Path) -> tuple[str, ...]:
    """Return the genes of a list (one a line, the first of several columns) or of a vocabulary.json, in order.

    Raises
    ------
    InputError
        The file is missing, no text, empty, or names a gene twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"list of genes {path} does not exist; pass a text file with one gene a line")
    try:
        text = read_text(path)
        lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
        listed = json.loads(text)["symbols"] if path.suffix == ".json" else [words[0] for words in lines if words]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"list of genes {path} cannot be read ({error}); pass a text file, one gene a line") from error
    genes = tuple(str(gene) for gene in listed)
    twice = [gene for gene, n in Counter(genes).items() if n > 1]
    if not genes or twice:
        found = f"{twice[0]!r} twice" if twice else "nothing"
        raise InputError(f"list of genes {path}: expected each gene once, found {found}; mend the list")
    return genes
