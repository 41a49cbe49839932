"""The readings of the data behind `reconstruct`: choose genes and tie rates, fit curves, score them; all by chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cytoglot.applications.reconstruction_plots import N_EXPRESSED, OBSERVED, RANK
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.hvg import select_hvg
from cytoglot.data.normalize import log_normalize
from cytoglot.data.readers.read import CellStream
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.curve_score import SPEARMAN_WORDS, CurveScore, CurveScorer, scored_cells
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.fit_curves import CurveFitter
from cytoglot.sentence.rank_curve import CurveKind, RankCurve, predict_words
from cytoglot.sentence.rank_sums import hash_uniform
from cytoglot.sentence.ranker import detection_rates

#: Highly variable genes are chosen on about this many training cells at most, drawn by a hash of their ids.
HVG_CELLS = 20_000
#: Words of held-out cells that a plot shows, about, at most.
PLOT_WORDS = 300_000


@dataclass(frozen=True, kw_only=True)
class SentenceKind:
    """The genes that one kind of sentences is made of, and how they are ranked."""

    name: str
    columns: NDArray[np.int64] | None
    """of the stream's vocabulary; None: all"""
    vocabulary: GeneVocabulary
    settings: RankSettings
    tie_rates: NDArray[np.float32] | None

    def encode(
        self, counts: csr_matrix, log_ng: csr_matrix, cell_ids: NDArray[Any]
    ) -> tuple[CellSentences, csr_matrix]:
        """Return the sentences of a chunk and the log expression of their genes."""
        if self.columns is not None:
            counts, log_ng = counts[:, self.columns], log_ng[:, self.columns]
        sentences = encode_matrix(
            counts, self.vocabulary, cell_ids=cell_ids, settings=self.settings, tie_rates=self.tie_rates
        )
        return sentences, log_ng


@dataclass(frozen=True, kw_only=True)
class FittedCurves:
    """The curves of one kind of sentences."""

    sentences: SentenceKind
    curves: dict[CurveKind, RankCurve]
    words_per_cell: float
    """of the training cells"""


class Passes:
    """A stream of cells with a split; every method reads the stream anew.

    Raises
    ------
    InputError
        The split has no training cell or no test cell among the cells of the stream.
    """

    def __init__(self, stream: CellStream, split: Split, *, seed: int, chunk_cells: int) -> None:
        self._stream, self._seed, self._chunk_cells = stream, seed, chunk_cells
        self._ids = np.asarray(stream.obs.index.astype(str), dtype=object)
        self._train_n = split.mask(stream.obs.index, "train")
        self._test_n = split.mask(stream.obs.index, "test")
        n_train, n_test = int(self._train_n.sum()), int(self._test_n.sum())
        if not n_train or not n_test:
            raise InputError(
                f"reconstruction needs training and held-out cells, found {n_train} and {n_test} of "
                f"{len(self._ids)} cells; pass another split"
            )

    def sentence_kinds(self, *, hvg: int | None, settings: RankSettings) -> list[SentenceKind]:
        """Return full sentences and, with `hvg`, those of that many genes chosen on training cells."""
        vocabulary = self._stream.vocabulary
        rates = None
        if settings.needs_tie_rates:
            n_detected_g = np.zeros(len(vocabulary))
            for counts, _ in self._chunks(self._train_n):
                n_detected_g += detection_rates(counts).astype(np.float64) * counts.shape[0]
            rates = np.asarray(n_detected_g / self._train_n.sum(), dtype=np.float32)
        full = SentenceKind(name="full", columns=None, vocabulary=vocabulary, settings=settings, tie_rates=rates)
        if hvg is None:
            return [full]
        drawn_n = hash_uniform(self._ids, self._seed) < HVG_CELLS / int(self._train_n.sum())
        kept = list(self._chunks(self._train_n & drawn_n))
        adata = AnnData(
            X=vstack([counts for counts, _ in kept], format="csr"),
            obs=pd.DataFrame(index=pd.Index(np.concatenate([ids for _, ids in kept]), dtype=object)),
            var=pd.DataFrame(index=pd.Index(vocabulary.symbols, dtype=object)),
        )
        chosen = vocabulary.subset(select_hvg(adata, n_top=hvg))
        columns = vocabulary.index_of(chosen.symbols).astype(np.int64)
        hvg_rates = None if rates is None else rates[columns]
        return [
            full,
            SentenceKind(name="hvg", columns=columns, vocabulary=chosen, settings=settings, tie_rates=hvg_rates),
        ]

    def fit(self, kinds: Sequence[CurveKind], sentence_kinds: Sequence[SentenceKind]) -> list[FittedCurves]:
        """Return the curves of every kind of sentences, fitted on the training cells."""
        fitters = [CurveFitter(kinds, made.vocabulary, seed=self._seed) for made in sentence_kinds]
        for reading in (1, 2):
            if reading == 2:
                if not fitters[0].needs_second_reading:
                    break
                for fitter in fitters:
                    fitter.start_second_reading()
            for counts, ids in self._chunks(self._train_n):
                log_ng = log_normalize(counts, self._stream.state, base=10.0)
                for made, fitter in zip(sentence_kinds, fitters, strict=True):
                    fitter.add(*made.encode(counts, log_ng, ids))
        n_train = int(self._train_n.sum())
        return [
            FittedCurves(sentences=made, curves=fitter.curves(), words_per_cell=fitter.n_words / n_train)
            for made, fitter in zip(sentence_kinds, fitters, strict=True)
        ]

    def score(self, fitted: Sequence[FittedCurves]) -> tuple[list[CurveScore], dict[str, pd.DataFrame]]:
        """Return the rows of held-out and of training cells, and a sample of the held-out words to plot."""
        held_out, samples = self._score_part(fitted, self._test_n, held_out=True)
        trained_on, _ = self._score_part(fitted, self._train_n, held_out=False)
        return held_out + trained_on, samples

    def _score_part(
        self, fitted: Sequence[FittedCurves], mask_n: NDArray[np.bool_], *, held_out: bool
    ) -> tuple[list[CurveScore], dict[str, pd.DataFrame]]:
        n_words = [max(f.words_per_cell * int(mask_n.sum()), 1.0) for f in fitted]
        scorers = [
            CurveScorer(list(f.curves), spearman_share=SPEARMAN_WORDS / n) for f, n in zip(fitted, n_words, strict=True)
        ]
        samples: list[list[pd.DataFrame]] = [[] for _ in fitted]
        for counts, ids in self._chunks(mask_n):
            log_ng = log_normalize(counts, self._stream.state, base=10.0)
            for f, n, scorer, sample in zip(fitted, n_words, scorers, samples, strict=True):
                ranked, expression = f.sentences.encode(counts, log_ng, ids)
                cells = scored_cells(ranked, expression, seed=self._seed)
                predicted = {kind: predict_words(curve, ranked) for kind, curve in f.curves.items()}
                scorer.add(cells, predicted)
                drawn = (cells.chance_n < PLOT_WORDS / n)[cells.rows]
                n_expressed = np.repeat(ranked.n_expressed, ranked.lengths)
                words: dict[str, NDArray[Any]] = {str(kind): values for kind, values in predicted.items()}
                words |= {RANK: ranked.ranks(), N_EXPRESSED: n_expressed, OBSERVED: cells.observed}
                sample.append(pd.DataFrame({name: values[drawn] for name, values in words.items()}))
        names = [f.sentences.name for f in fitted]
        rows = [row for name, s in zip(names, scorers, strict=True) for row in s.scores(genes=name, held_out=held_out)]
        return rows, {name: pd.concat(part, ignore_index=True) for name, part in zip(names, samples, strict=True)}

    def _chunks(self, mask_n: NDArray[np.bool_]) -> Iterator[tuple[csr_matrix, NDArray[np.object_]]]:
        """Yield the chosen cells of every chunk and their ids."""
        for rows, counts in self._stream.chunks(self._chunk_cells):
            chosen = np.flatnonzero(mask_n[rows])
            if chosen.size:
                yield csr_matrix(counts)[chosen], self._ids[rows][chosen]
