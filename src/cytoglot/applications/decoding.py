"""Files of sentences back to files of expression: encoded Parquet or plain text in, AnnData out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.write import write_h5ad
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.sentence.decode import decode
from cytoglot.sentence.parquet import read_sentences
from cytoglot.sentence.parse import Repeated
from cytoglot.sentence.rank_curve import DEFAULT_CURVE, RankCurve, rank_curve_from_dict
from cytoglot.texts import read_text

CURVES_FILE = "rank_curves.json"


@dataclass(frozen=True, kw_only=True)
class DecodeSummary:
    """What `decode_file` wrote."""

    cells: int
    genes: int
    empty_cells: int
    values: str
    """what X holds"""
    unknown_words: int
    """of a text: words that name no gene"""
    repeated_genes: int
    """of a text: words that name a gene again"""
    output: str


def decode_file(
    source: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    curves: str | Path | None = None,
    curve: str = DEFAULT_CURVE,
    repeated: Repeated = "mean",
) -> DecodeSummary:
    """Write the cells that a file of sentences describes, as `cytoglot.decode` does, atomically.

    Parameters
    ----------
    source
        Parquet of `cytoglot encode`, or a UTF-8 text file with one sentence per line (an empty line is an empty cell).
    model
        Model folder: its genes read a text, its rank curve gives the expression.
    curves, curve
        Folder that `cytoglot reconstruct` wrote, and the kind of curve to take from it. Without a model or curves X
        holds ranks.

    Raises
    ------
    InputError
        A file is missing or damaged, both `model` and `curves` are given, or a text comes without either.
    """
    source = Path(source)
    if model is not None and curves is not None:
        raise InputError("expected a model or a folder of curves, found both; pass one of them")
    sentences = read_sentences(source) if source.suffix == ".parquet" else None
    vocabulary: GeneVocabulary | None = None
    rank_curve: RankCurve | None = None
    if model is not None:
        spec = CellModelSpec.load(model)
        vocabulary = spec.vocabulary
        rank_curve = None if spec.rank_curve is None else rank_curve_from_dict(spec.rank_curve)
    elif curves is not None:
        path = Path(curves) / CURVES_FILE
        if not path.is_file():
            raise InputError(f"{curves} holds no {CURVES_FILE}; pass the folder that `cytoglot reconstruct -o` wrote")
        by_sentences: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        # The curves of the sentences that have these genes, else those of full sentences.
        fitted = by_sentences["full"]
        genes = None if sentences is None else sentences.vocabulary.fingerprint
        for one in by_sentences.values() if genes is not None else ():
            if GeneVocabulary.from_dict(one["vocabulary"]).fingerprint == genes:
                fitted = one
                break
        if curve not in fitted["curves"]:
            raise UnknownNameError("rank curve", curve, fitted["curves"])
        vocabulary = GeneVocabulary.from_dict(fitted["vocabulary"])
        rank_curve = rank_curve_from_dict(fitted["curves"][curve])
    if sentences is not None:
        adata = decode(sentences, rank_curve=rank_curve, repeated=repeated)
    elif vocabulary is None:
        raise InputError(
            f"{source} is read as text, which names its genes only by their words; pass --model or --curves, "
            "or a .parquet file that `cytoglot encode` wrote"
        )
    elif not source.is_file():
        raise InputError(f"{source} does not exist; pass a .parquet file of `cytoglot encode`, or a text file")
    else:
        lines = read_text(source).splitlines()
        adata = decode(lines, vocabulary=vocabulary, rank_curve=rank_curve, repeated=repeated)
    write_h5ad(adata, out)
    faults = {name: int(adata.obs[name].sum()) if name in adata.obs else 0 for name in ("n_unknown", "n_duplicates")}
    return DecodeSummary(
        cells=adata.n_obs,
        genes=adata.n_vars,
        empty_cells=int((adata.obs["n_genes"] == 0).sum()),
        values="rank (1 = highest)" if rank_curve is None else "log10(1 + counts per 10,000)",
        unknown_words=faults["n_unknown"],
        repeated_genes=faults["n_duplicates"],
        output=str(out),
    )
