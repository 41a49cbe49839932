"""Read an Arrow data set that the `cell2sentence` package saved: cell sentences as text, with columns of `obs`.

Such a folder holds no vocabulary, so ours is the set of its words, sorted, in the case that it has (that package writes
symbols in upper case). Its ties were shuffled by the row of a cell, so they cannot be made again. The files are Arrow
streams and are read as such: the `datasets` package is not needed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytoglot.corpus.sources.labelled_table import RESERVED, write_table
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest, fingerprint_file
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, gene_id_dtype

logger = logging.getLogger(__name__)

CELL_COLUMN, SENTENCE_COLUMN = "cell_name", "cell_sentence"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class C2SReport:
    """What was found that a reader should know."""

    repeated_words: int = 0
    """words that occurred before in the same sentence; the first stays"""
    case_collisions: tuple[str, ...] = ()
    """words that differ from another one in case only; they stay different genes"""
    repeated_cell_names: int = 0
    """cells whose name an earlier cell has; they get "-1", "-2", … after it"""
    renamed_columns: tuple[str, ...] = ()
    """label columns whose names mean something else here; they get "c2s_" before them"""
    missing_labels: tuple[tuple[str, int], ...] = ()
    """label columns with missing values ("nan" as text too), and how many"""

    def messages(self) -> list[str]:
        """Return one sentence for each finding."""
        found = []
        if self.repeated_words:
            found.append(f"{self.repeated_words} words repeat a gene of their sentence; the first position was kept")
        if self.case_collisions:
            names = ", ".join(self.case_collisions[:5])
            found.append(f"{len(self.case_collisions)} words differ from others in case only, such as {names}")
        if self.repeated_cell_names:
            found.append(f"{self.repeated_cell_names} cells had the name of an earlier one and were numbered")
        if self.renamed_columns:
            found.append(f"columns renamed with the prefix c2s_: {', '.join(self.renamed_columns)}")
        found += [f"column {name!r} is missing in {n} cells" for name, n in self.missing_labels]
        return found


@dataclass(frozen=True, kw_only=True)
class C2SCells:
    """What the folder holds."""

    sentences: CellSentences
    obs: pd.DataFrame
    report: C2SReport


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What `import_c2s` wrote."""

    cells: int
    genes: int
    empty_cells: int
    columns: tuple[str, ...]
    """of `obs`"""
    output: str
    messages: tuple[str, ...]


def import_c2s(folder: str | Path, out: str | Path, *, delimiter: str = " ") -> ImportSummary:
    """Turn a `cell2sentence` data set into a Parquet file of cell sentences with its label columns, atomically."""
    cells = read_c2s(folder, delimiter=delimiter)
    write_table(cells.sentences, cells.obs, out)
    messages = cells.report.messages()
    for message in messages:
        logger.info("%s: %s", folder, message)
    return ImportSummary(
        cells=len(cells.sentences),
        genes=len(cells.sentences.vocabulary),
        empty_cells=cells.sentences.n_empty,
        columns=tuple(cells.obs.columns),
        output=str(out),
        messages=tuple(messages),
    )


def read_c2s(folder: str | Path, *, delimiter: str = " ") -> C2SCells:
    """Read a data set that `CSData` saved (or `datasets.Dataset.save_to_disk`).

    Parameters
    ----------
    folder
        Holds `state.json` and `data-*.arrow` with the columns `cell_name` and `cell_sentence`; all others become `obs`.
    delimiter
        What stands between genes.

    Raises
    ------
    InputError
        The folder is missing or is no such data set, holds several splits, a file of it is damaged, a column is
        missing, or a word holds white space.

    Examples
    --------
    >>> import cytoglot as cg
    >>> import datasets
    >>> columns = {"cell_name": ["a"], "cell_sentence": ["LYZ CD74"], "cell_type": ["Monocyte"]}
    >>> datasets.Dataset.from_dict(columns).save_to_disk("c2s")
    >>> cells = cg.corpus.read_c2s("c2s")
    >>> cells.sentences.words(0), cells.obs["cell_type"].tolist()
    (['LYZ', 'CD74'], ['Monocyte'])
    """
    folder = Path(folder)
    words = _WordTable()
    lengths, names, labels = [], [], []
    for batch in _batches(folder):
        text = pc.fill_null(batch.column(SENTENCE_COLUMN).combine_chunks(), "")
        lengths.append(words.add(pc.split_pattern(text, delimiter)))
        names.append(batch.column(CELL_COLUMN).cast(pa.string()))
        labels.append(batch.drop_columns([CELL_COLUMN, SENTENCE_COLUMN]))
    cell_ids, n_renamed = _unique_names(pa.chunked_array(names, pa.string()).to_pylist())
    obs = pd.DataFrame(index=pd.Index(cell_ids, dtype=object))
    renamed_columns: tuple[str, ...] = ()
    if labels and labels[0].column_names:
        table = pa.concat_tables(labels).replace_schema_metadata()
        renamed_columns = tuple(name for name in table.column_names if name in RESERVED)
        obs = table.to_pandas().set_index(obs.index).rename(columns={name: f"c2s_{name}" for name in renamed_columns})
    missing = {str(name): int((obs[name].isna() | (obs[name].astype(str) == "nan")).sum()) for name in obs.columns}
    sentences, n_repeated = _sentences(words, np.concatenate(lengths or [np.empty(0, np.int64)]), cell_ids, folder)
    symbols = sentences.vocabulary.symbols
    folded = Counter(symbol.casefold() for symbol in symbols)
    report = C2SReport(
        repeated_words=n_repeated,
        case_collisions=tuple(symbol for symbol in symbols if folded[symbol.casefold()] > 1),
        repeated_cell_names=n_renamed,
        renamed_columns=renamed_columns,
        missing_labels=tuple((name, n) for name, n in missing.items() if n),
    )
    return C2SCells(sentences=sentences, obs=obs, report=report)


class _WordTable:
    """Numbers words in the order in which they turn up."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.parts: list[NDArray[np.int32]] = []

    def add(self, sentences: pa.ListArray) -> NDArray[np.int64]:
        """Number the words of some sentences; return how many each has."""
        lengths = pc.list_value_length(sentences).to_numpy(zero_copy_only=False).astype(np.int64)
        encoded = sentences.flatten().dictionary_encode()
        new = np.array([self.ids.setdefault(word, len(self.ids)) for word in encoded.dictionary.to_pylist()], np.int32)
        ids = new[encoded.indices.to_numpy()] if len(new) else np.empty(0, np.int32)
        empty = self.ids.get("")
        if empty is not None:  # an empty sentence, or two delimiters in a row
            cell = np.repeat(np.arange(len(lengths)), lengths)
            lengths -= np.bincount(cell[ids == empty], minlength=len(lengths))
            ids = ids[ids != empty]
        self.parts.append(ids)
        return lengths


def _batches(folder: Path) -> Iterator[pa.Table]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise InputError(f"{folder} holds several data sets; pass one of: {', '.join(str(folder / s) for s in splits)}")
    state = folder / "state.json"
    if not state.is_file():
        raise InputError(
            f"{folder} is not a cell2sentence data set: expected a folder with state.json and data-*.arrow files"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder} lacks {len(absent)} of the {len(names)} files of its state.json: {absent[:3]}")
    for file in (folder / name for name in names):
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                absent = [name for name in (CELL_COLUMN, SENTENCE_COLUMN) if name not in stream.schema.names]
                if absent:
                    raise InputError(f"{file} lacks the columns {absent}; found: {', '.join(stream.schema.names)}")
                for batch in stream:
                    table = pa.Table.from_batches([batch])
                    for start in range(0, len(table), _ROWS_AT_ONCE):
                        yield table.slice(start, _ROWS_AT_ONCE)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} cannot be read as an Arrow stream: {error}") from error


def _sentences(
    words: _WordTable, lengths: NDArray[np.int64], cell_ids: NDArray[np.object_], folder: Path
) -> tuple[CellSentences, int]:
    symbols = sorted(word for word in words.ids if word)
    spaced = [word for word in symbols if word.split() != [word]]
    if spaced:
        raise InputError(
            f"{folder}: {len(spaced)} of {len(symbols)} words hold white space, such as {spaced[0]!r}; pass the "
            "delimiter that stands between genes"
        )
    vocabulary = GeneVocabulary(symbols=tuple(symbols))
    place = np.full(len(words.ids), -1, np.int64)
    place[[words.ids[word] for word in symbols]] = np.arange(len(symbols))
    gene_ids = place[np.concatenate(words.parts or [np.empty(0, np.int32)])]
    cell = np.repeat(np.arange(len(lengths)), lengths)
    # A word that repeats in its sentence stands where it was first.
    first = np.sort(np.unique(cell * max(len(symbols), 1) + gene_ids, return_index=True)[1])
    kept_lengths = np.bincount(cell[first], minlength=len(lengths))
    typed_ids: NDArray[Any] = gene_ids[first].astype(gene_id_dtype(len(symbols)))
    manifest = Manifest(
        command="import-c2s",
        config={"ties": "shuffled by row in cell2sentence; not those of the settings"},
        inputs={folder.name: fingerprint_file(folder)},
    )
    sentences = CellSentences(
        cell_ids=cell_ids,
        offsets=np.concatenate([[0], np.cumsum(kept_lengths)]).astype(np.int64),
        gene_ids=typed_ids,
        n_expressed=kept_lengths.astype(np.int32),
        vocabulary=vocabulary,
        settings=RankSettings(ties="random", seed=42),
        manifest=manifest,
    )
    return sentences, int(lengths.sum() - kept_lengths.sum())


def _unique_names(names: list[Any]) -> tuple[NDArray[np.object_], int]:
    taken, seen = set(names), Counter[str]()
    unique = []
    for name in map(str, names):
        candidate = name
        if seen[name]:
            while candidate in taken:
                candidate = f"{name}-{seen[name]}"
                seen[name] += 1
            taken.add(candidate)
        else:
            seen[name] = 1
        unique.append(candidate)
    n_renamed = sum(a != b for a, b in zip(names, unique, strict=True))
    return np.array(unique, dtype=object), n_renamed
