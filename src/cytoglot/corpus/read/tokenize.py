"""Texts in segments → token ids, without showing a single gene to the tokenizer.

Genes are looked up in a table of their pieces, what stands between them is tokenized once and remembered. That this
equals the tokenizer's own reading of the whole text is checked, not assumed: a tokenizer that merges across the borders
of words gets the whole text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.tasks.segments import Genes, Segments, join

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
"""texts → token ids of each, without special tokens"""

_log = logging.getLogger(__name__)
_CLOSING_LINE = re.compile(r"[^\s\w]*\n*")
_CLOSING_WORD = re.compile(r"[^ ]*")
_CLOSINGS_OF_ALL_GENES = 16
"""so many closings are read with every gene at once; rarer ones with each gene when it occurs"""
_N_CHECKED = 24
Split = tuple[list[str], list[NDArray[np.integer]]]
"""a text as stretches, and the words of the table between them: one stretch more than runs of words"""

_NO_WORDS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Text between genes, tokenized. `closing` belongs to the word of the gene before it."""

    ids: NDArray[np.int32]
    """of the whole stretch, closing included, after an ordinary gene"""
    rest: NDArray[np.int32]
    """of the stretch without its closing"""
    closing: str


@dataclass(slots=True)
class _Closing:
    """What stands directly after a gene: a full stop, the end of a line, …."""

    tail: list[int]
    """its ids after an ordinary gene"""
    unlike: dict[int, NDArray[np.int32] | None]
    """gene → the ids of both, if they are not those of the gene and then the tail"""
    n_genes: int
    """the genes below this id were read with it; others are when they occur"""


class GeneTokenizer:
    """Tokenizes prompts and answers in segments.

    Parameters
    ----------
    encode
        The tokenizer as a function of a list of texts, without special tokens and without a limit of length.
    vocabulary
        The genes that are known by their ids; other words that stand among genes are added when they occur.
    opening
        Ids in front of every prompt, such as the beginning of a text.
    eos
        Id after every answer.
    remembered
        Stretches between genes that are kept; beyond it the older half is forgotten.

    Notes
    -----
    Prompt and answer are tokenized apart and joined, like everywhere in the package. Where the tokenizer does not keep
    words apart, `why_plain` says so: then every text is given to `encode` as it is.
    """

    def __init__(
        self,
        encode: Encode,
        vocabulary: GeneVocabulary,
        *,
        opening: Sequence[int] = (),
        eos: int | None = None,
        remembered: int = 1 << 17,
    ) -> None:
        self._encode, self._names, self._remembered = encode, vocabulary.names, remembered
        self._opening = np.array(opening, np.int32)
        self._eos = np.array([] if eos is None else [eos], np.int32)
        self._stretches: dict[tuple[str, bool], _Stretch | None] = {}
        self._closings: dict[str, _Closing] = {}
        self._words: list[str] = []
        """the words of the table: the genes by their ids, then others as they came"""
        self._place_of: dict[str, int] = {}
        self._flat, self._lengths = np.empty(0, np.int32), np.empty(0, np.int64)
        self._capitals: NDArray[np.integer] | None = None
        self._same_names = vocabulary.names
        self._is_gene: NDArray[np.bool_] | None = None
        self.why_plain: str | None = None
        """why texts are tokenized as they are, or None"""
        # How does this tokenizer read a text that goes on after another one?
        whole, begin, spaced, bare = (list(ids) for ids in encode(["b a", "b", " a", "a"]))
        self._strip = begin + spaced != whole and begin + bare == whole
        self._closing = _CLOSING_WORD
        if begin + (bare if self._strip else spaced) != whole:
            self._give_up("it reads a word otherwise at the start of a text than after another word")
        else:
            line, first, second = (list(ids) for ids in encode(["b.\na", "b.\n", "a"]))
            if first + second == line:
                self._closing = _CLOSING_LINE
        if self.why_plain is None and len(vocabulary):
            self._add_words(list(vocabulary.names))
            self.check(*_random_texts(vocabulary.names))

    def encode_pairs(
        self, prompts: Sequence[Segments], completions: Sequence[Segments]
    ) -> list[tuple[NDArray[np.int32], int]]:
        """Return for each prompt with its completion the ids of both, and the number that belong to the prompt.

        The arrays are views of one array. Texts of all pairs are tokenized together, so many pairs at once are faster.
        """
        texts = list(chain.from_iterable(zip(prompts, completions, strict=True)))
        ids_of = self._join(texts) if self.why_plain is None else self._plain(texts)
        parts = []
        for prompt, completion in zip(ids_of[::2], ids_of[1::2], strict=True):
            parts += [self._opening, *prompt, *completion, self._eos]
        everything = np.concatenate(parts) if parts else np.empty(0, np.int32)
        pairs, begin = [], 0
        for prompt, completion in zip(ids_of[::2], ids_of[1::2], strict=True):
            n_prompt = len(self._opening) + sum(map(len, prompt))
            end = begin + n_prompt + sum(map(len, completion)) + len(self._eos)
            pairs.append((everything[begin:end], n_prompt))
            begin = end
        return pairs

    def are_genes(self, ids: NDArray[np.int32]) -> bool:
        """Return whether each of these ids is a whole gene of the vocabulary."""
        if self._is_gene is None:
            pieces = self._behind([f" {name}" for name in self._names]) if len(self._names) else []
            whole = np.array([piece[0] for piece in pieces if len(piece) == 1], np.int64)
            self._is_gene = np.zeros(int(whole.max(initial=-1)) + 2, np.bool_)
            self._is_gene[whole] = True
        return bool(self._is_gene[np.minimum(ids, len(self._is_gene) - 1)].all())

    def check(self, prompts: Sequence[Segments], completions: Sequence[Segments]) -> bool:
        """Compare the reading of segments with that of whole texts; if they differ, read whole texts from now on.

        Returns whether segments are read.
        """
        if self.why_plain is not None:
            return False
        texts = list(chain.from_iterable(zip(prompts, completions, strict=True)))
        for text, found, (true,) in zip(texts, self._join(texts), self._plain(texts), strict=True):
            if not np.array_equal(np.concatenate([*found, true[:0]]), true):
                self._give_up(f"it does not keep words apart in {text.text[:60]!r}")
                return False
        return True

    def _give_up(self, reason: str) -> None:
        self.why_plain = reason
        _log.info("the tokenizer gets every text as it is, which is slower: %s", reason)

    def _plain(self, texts: Sequence[Segments]) -> list[list[NDArray[np.int32]]]:
        """Tokenize whole texts: prompts at even places, completions, which go on from a prompt, at odd ones."""
        whole = [self._bare(text.text) if i % 2 else text.text for i, text in enumerate(texts)]
        return [[np.array(ids, np.int32)] for ids in (self._encode(whole) if whole else [])]

    def _add_words(self, words: list[str]) -> None:
        """Put words into the table."""
        first = len(self._words)
        pieces = self._behind([f" {word}" for word in words])
        self._words += words
        self._place_of.update({word: first + i for i, word in enumerate(words)})
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._flat = np.concatenate(
            [self._flat, np.fromiter(chain.from_iterable(pieces), np.int32, int(lengths.sum()))]
        )
        self._lengths = np.concatenate([self._lengths, lengths])
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._one_each = bool((self._lengths == 1).all())

    def _places(self, genes: Sequence[str]) -> NDArray[np.integer] | None:
        """Return the places of words in the table, into which new ones are put; None if one is not a single word."""
        is_known = isinstance(genes, Genes) and genes.names is self._same_names
        if isinstance(genes, Genes) and not is_known and np.array_equal(genes.names, self._names):
            # Ids stand for the same genes as here; compared once for each table of names.
            self._same_names, is_known = genes.names, True
        if isinstance(genes, Genes) and is_known:
            if not genes.in_capitals:
                return genes.ids
            if self._capitals is None:
                self._capitals = self._places([name.upper() for name in self._names])
            return None if self._capitals is None else self._capitals[genes.ids]
        places = self._place_of
        new = [word for word in dict.fromkeys(genes) if word not in places]
        if any(word.split() != [word] for word in new):
            return None
        if new:
            self._add_words(new)
        return np.array([places[word] for word in genes], np.int64)

    def _behind(self, texts: list[str]) -> Sequence[Sequence[int]]:
        """Tokenize texts that go on after others."""
        return self._encode([self._bare(text) for text in texts])

    def _bare(self, text: str) -> str:
        """Take away the space that this tokenizer puts there itself."""
        return text.removeprefix(" ") if self._strip else text

    def _split(self, text: Segments, *, is_prompt: bool) -> Split | None:
        """Return stretches and runs of words in turn, the space before a run with its first word; None if in vain."""
        stretches, runs, stretch = [], [], ""
        if is_prompt and self._strip and text and text[0][:1] == " ":
            return None
        for piece in text:
            if isinstance(piece, str):
                stretch += piece
                continue
            places = self._places(piece) if stretch[-1:] == " " else None
            if places is None:  # no space before the genes, or words that are none
                return None
            stretches.append(stretch[:-1])
            runs.append(places)
            stretch = ""
        return [*stretches, stretch], runs

    def _join(self, texts: Sequence[Segments]) -> list[list[NDArray[np.int32]]]:
        """Return the ids of each text in parts; prompts are at even places, completions at odd ones."""
        split = [self._split(text, is_prompt=i % 2 == 0) for i, text in enumerate(texts)]
        self._remember([found[0] for found in split if found is not None])
        words = np.concatenate([_NO_WORDS, *(run for found in split if found is not None for run in found[1])])
        # The ids of all genes one after another, and where each gene's begin and the last one's end.
        ids, edges = self._flat[:0], np.arange(len(words) + 1)
        if len(words) and self._one_each:
            ids = self._flat[words]
        elif len(words):
            lengths = self._lengths[words]
            ends = np.cumsum(lengths)
            ids = self._flat[np.arange(ends[-1]) + np.repeat(self._starts[words] - (ends - lengths), lengths)]
            edges = np.concatenate([[0], ends])
        begin, joined = 0, list[list[NDArray[np.int32]]]()
        for found in split:
            joined.append([] if found is None else self._assemble(*found, begin, ids, edges))
            begin += 0 if found is None else sum(map(len, found[1]))
        whole = [i for i, parts in enumerate(joined) if not parts]
        bare = [self._bare(texts[i].text) if i % 2 else texts[i].text for i in whole]
        for i, found_ids in zip(whole, self._encode(bare) if bare else (), strict=True):
            joined[i] = [np.array(found_ids, np.int32)]
        return joined

    def _assemble(
        self,
        stretches: list[str],
        runs: list[NDArray[np.integer]],
        begin: int,
        ids: NDArray[np.int32],
        edges: NDArray[np.int64],
    ) -> list[NDArray[np.int32]]:
        """Return the parts of a text whose words begin at this place among all; none if it must be read as a whole."""
        start = self._stretches[stretches[0], False]
        joined = [] if start is None else [start.ids]
        for run, text in zip(runs, stretches[1:], strict=True):
            stretch, end = self._stretches[text, True], begin + len(run)
            if start is None or stretch is None:
                return []
            unlike = self._unlike(int(run[-1]), stretch.closing)
            if unlike is None:
                joined += (ids[edges[begin] : edges[end]], stretch.ids)
            else:
                joined += (ids[edges[begin] : edges[end - 1]], unlike, stretch.rest)
            begin = end
        return joined

    def _remember(self, texts: Sequence[list[str]]) -> None:
        """Tokenize what was not seen before, all at once."""
        if len(self._stretches) > self._remembered:
            for old in list(self._stretches)[: self._remembered // 2]:
                del self._stretches[old]
        known = self._stretches
        new = {(text, i > 0) for stretches in texts for i, text in enumerate(stretches) if (text, i > 0) not in known}
        todo: list[tuple[str, bool, str, str]] = []
        for text, is_behind in sorted(new):
            closing = self._closing.match(text)[0] if is_behind else ""  # type: ignore[index]
            rest = text[len(closing) :]
            starts_well = not is_behind or rest[:1] in {"", " "} or closing.endswith("\n")
            if not starts_well or text.endswith(" "):
                known[text, is_behind] = None
            else:
                todo.append((text, is_behind, closing, rest))
        encoded = self._behind([rest for *_, rest in todo]) if todo else []
        for (text, is_behind, closing, _), ids in zip(todo, encoded, strict=True):
            if closing and closing not in self._closings:
                n = len(self._words) if len(self._closings) < _CLOSINGS_OF_ALL_GENES else min(len(self._words), 8)
                found = [list(read) for read in self._behind([f" {name}{closing}" for name in self._words[:n]])]
                tails = [self._tail_of(gene, read) for gene, read in enumerate(found)]
                usual = list(next((tail for tail in tails if tail), ()))
                known_closing = self._closings[closing] = _Closing(usual, {}, n)
                for gene in (gene for gene, tail in enumerate(tails) if tail != usual):
                    known_closing.unlike[gene] = np.array(found[gene], np.int32)
            rest_ids = np.array(ids, np.int32)
            tail = np.array(self._closings[closing].tail if closing else [], np.int32)
            known[text, is_behind] = _Stretch(np.concatenate([tail, rest_ids]), rest_ids, closing)

    def _tail_of(self, gene: int, ids: list[int]) -> list[int] | None:
        """Return what follows the pieces of a gene, None if they are not there."""
        start, n = int(self._starts[gene]), int(self._lengths[gene])
        return ids[n:] if ids[:n] == self._flat[start : start + n].tolist() else None

    def _unlike(self, gene: int, closing: str) -> NDArray[np.int32] | None:
        """Return the ids of a gene with its closing where they are not those of both in turn."""
        if closing == "":
            return None
        known = self._closings[closing]
        if gene >= known.n_genes and gene not in known.unlike:
            ids = list(self._behind([f" {self._words[gene]}{closing}"])[0])
            known.unlike[gene] = None if self._tail_of(gene, ids) == known.tail else np.array(ids, np.int32)
        return known.unlike.get(gene)


def _random_texts(names: NDArray[np.object_]) -> tuple[list[Segments], list[Segments]]:
    """Return prompts and completions of random genes, in the forms that tasks have."""
    rng = np.random.default_rng(0)
    prompts, completions = [], []
    for number in range(_N_CHECKED):
        first, second = (Genes(rng.integers(len(names), size=24), names) for _ in range(2))
        if number % 2:
            prompts.append(join([f"{number} genes: ", first, ". Cell type:"]))
        else:
            lines = ["Cell 1: ", first, "\nCell 2: ", second, "\nTissue:"]
            prompts.append(join([f"2 cells, up to {number} genes each:\n", *lines]))
        completions.append(join([" ", second, "."] if number % 2 else [" CD4 T."]))
    return prompts, completions
