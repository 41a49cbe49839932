"""Texts with private characters for genes → token ids, without showing a single gene to the tokenizer.

A text is split into stretches of genes and what stands between them. Genes are looked up in a table of their pieces,
the rest is tokenised once and remembered. That this equals the tokenizer's own reading of the real text is checked,
not assumed: a tokenizer that merges across the borders of words gets the real text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.read.gene_characters import (
    FIRST_CHARACTER,
    LAST_CHARACTER,
    MAX_CHARACTERS,
    characters_of,
    genes_of,
    has_characters,
    replace_genes,
)
from cytoglot.data.genes.vocabulary import GeneVocabulary

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
"""texts → token ids of each, without special tokens"""

_log = logging.getLogger(__name__)
_GENES = re.compile(f"((?: [{FIRST_CHARACTER}-{LAST_CHARACTER}])+)")
_CLOSING_LINE = re.compile(r"[^\s\w]*\n*")
_CLOSING_WORD = re.compile(r"[^ ]*")
_CLOSINGS_OF_ALL_GENES = 16
"""so many closings are read with every gene at once; rarer ones with each gene when it occurs"""
_N_CHECKED = 24


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Text between genes, tokenised. `closing` belongs to the word of the gene before it."""

    ids: NDArray[np.int32]
    """of the whole stretch, closing included, behind an ordinary gene"""
    rest: NDArray[np.int32]
    """of the stretch without its closing"""
    closing: str


@dataclass(slots=True)
class _Closing:
    """What stands directly behind a gene: a full stop, the end of a line, …."""

    tail: list[int]
    """its ids behind an ordinary gene"""
    unlike: dict[int, NDArray[np.int32] | None]
    """gene → the ids of both, if they are not those of the gene and then the tail"""
    n_genes: int
    """the genes below this id were read with it; others are when they occur"""


class GeneTokenizer:
    """Tokenises prompts and answers whose genes are private characters.

    Parameters
    ----------
    encode
        The tokenizer as a function of a list of texts, without special tokens and without a limit of length.
    vocabulary
        The genes that the characters stand for.
    opening
        Ids in front of every prompt, such as the beginning of a text.
    eos
        Id behind every answer.
    remembered
        Stretches between genes that are kept; beyond it the older half is forgotten.

    Notes
    -----
    Prompt and answer are tokenised apart and joined, like everywhere in the package. Where the tokenizer does not keep
    words apart, or there are more genes than private characters, `reads_characters` is False: then every text is given
    to `encode` with the genes' names, and it is best to have them in the text at once.
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
        self.why_plain: str | None = None
        """why texts are tokenised as they are, or None"""
        self._find_borders()
        if self.why_plain is None and len(vocabulary):
            self._fill_table()
            self.check(*_random_texts(len(vocabulary)))

    @property
    def reads_characters(self) -> bool:
        """Whether texts with private characters are put together from pieces; else names are as good."""
        return self.why_plain is None

    def encode_pairs(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[NDArray[np.int32], int]]:
        """Return for each prompt with its completion the ids of both, and the number that belong to the prompt.

        The arrays are views of one array. Texts of all pairs are tokenised together, so many pairs at once are faster.
        """
        texts = list(chain.from_iterable(zip(prompts, completions, strict=True)))
        ids_of = self._join(texts) if self.reads_characters else self._plain(texts)
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

    def check(self, prompts: Sequence[str], completions: Sequence[str]) -> bool:
        """Compare the reading of texts with that of the real ones; where they differ, tokenise as they are from now on.

        Returns whether texts with private characters are read.
        """
        if not self.reads_characters:
            return False
        found = self.encode_pairs(prompts, completions)
        texts = list(chain.from_iterable(zip(prompts, completions, strict=True)))
        expected = self._plain(texts)
        for i, (ids, n_prompt) in enumerate(found):
            body = ids[len(self._opening) : len(ids) - len(self._eos)]
            for text, part, (true,) in (
                (texts[2 * i], body[: n_prompt - len(self._opening)], expected[2 * i]),
                (texts[2 * i + 1], body[n_prompt - len(self._opening) :], expected[2 * i + 1]),
            ):
                if not np.array_equal(part, true):
                    self._give_up(f"it does not keep words apart in {replace_genes(text, self._names)[:60]!r}")
                    return False
        return True

    def _give_up(self, reason: str) -> None:
        self.why_plain = reason
        _log.info("the tokenizer gets every text as it is, which is slower: %s", reason)

    def _plain(self, texts: list[str]) -> list[list[NDArray[np.int32]]]:
        """Tokenise real texts: prompts at even places, completions, which go on from a prompt, at odd ones."""
        named = [replace_genes(text, self._names) if has_characters(text) else text for text in texts]
        bare = [self._bare(text) if i % 2 else text for i, text in enumerate(named)]
        return [[np.array(ids, np.int32)] for ids in (self._encode(bare) if bare else [])]

    def _find_borders(self) -> None:
        """Find out how this tokenizer reads a text that goes on behind another one."""
        whole, begin, spaced, bare = (list(ids) for ids in self._encode(["b a", "b", " a", "a"]))
        self._strip = begin + spaced != whole and begin + bare == whole
        self._closing = _CLOSING_WORD
        if begin + (bare if self._strip else spaced) != whole:
            self._give_up("it reads a word otherwise at the start of a text than behind another word")
        elif len(self._names) > MAX_CHARACTERS:
            self._give_up(f"{len(self._names)} genes are more than the {MAX_CHARACTERS} private characters")
        else:
            line, first, second = (list(ids) for ids in self._encode(["b.\na", "b.\n", "a"]))
            if first + second == line:
                self._closing = _CLOSING_LINE

    def _fill_table(self) -> None:
        pieces = self._behind([f" {name}" for name in self._names])
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._flat = np.fromiter(chain.from_iterable(pieces), np.int32, int(self._lengths.sum()))
        self._one_each = bool((self._lengths == 1).all())

    def _behind(self, texts: list[str]) -> Sequence[Sequence[int]]:
        """Tokenise texts that go on behind others."""
        return self._encode([self._bare(text) for text in texts])

    def _bare(self, text: str) -> str:
        """Take away the space that this tokenizer puts there itself."""
        return text.removeprefix(" ") if self._strip else text

    def _tokens(self, genes: NDArray[np.uint32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of genes one after another, and where each gene's begin and the last one's end."""
        if self._one_each:
            return self._flat[genes], np.arange(len(genes) + 1)
        lengths = self._lengths[genes]
        ends = np.cumsum(lengths)
        place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self._starts[genes] - (ends - lengths), lengths)
        return self._flat[place], np.concatenate([[0], ends])

    def _join(self, texts: list[str]) -> list[list[NDArray[np.int32]]]:
        """Return the ids of each text in parts."""
        split = [_GENES.split(text) for text in texts]  # stretch, genes, stretch, …, genes, stretch
        self._remember(split)
        runs = [run for parts in split for run in parts[1::2]]
        genes = genes_of("".join(runs)[1::2])
        ids, edges = self._tokens(genes)
        bounds = pairwise(accumulate((len(run) // 2 for run in runs), initial=0))
        return [
            self._assemble(text, parts, list(islice(bounds, len(parts) // 2)), genes, ids, edges)
            for text, parts in zip(texts, split, strict=True)
        ]

    def _assemble(
        self,
        text: str,
        parts: list[str],
        bounds: list[tuple[int, int]],
        genes: NDArray[np.uint32],
        ids: NDArray[np.int32],
        edges: NDArray[np.int64],
    ) -> list[NDArray[np.int32]]:
        start = self._stretches[parts[0], False]
        joined = [] if start is None else [start.ids]
        for (first, last), part in zip(bounds, parts[2::2], strict=True):
            stretch = self._stretches[part, True]
            if start is None or stretch is None:
                return self._unsplit(text)
            unlike = self._unlike(int(genes[last - 1]), stretch.closing)
            if unlike is None:
                joined += (ids[edges[first] : edges[last]], stretch.ids)
            else:
                joined += (ids[edges[first] : edges[last - 1]], unlike, stretch.rest)
        return joined if start is not None else self._unsplit(text)

    def _unsplit(self, text: str) -> list[NDArray[np.int32]]:
        """Tokenise a real text: a gene without a space before it, or a letter behind one."""
        return self._plain(["", text])[1] if text[:1] == " " else self._plain([text])[0]

    def _remember(self, split: list[list[str]]) -> None:
        """Tokenise what was not seen before, all at once."""
        if len(self._stretches) > self._remembered:
            for old in list(self._stretches)[: self._remembered // 2]:
                del self._stretches[old]
        new = {
            (part, i > 0)
            for parts in split
            for i, part in enumerate(parts[::2])
            if (part, i > 0) not in self._stretches
        }
        todo: list[tuple[str, bool, str, str]] = []
        for part, is_behind in sorted(new):
            closing = self._closing.match(part)[0] if is_behind else ""  # type: ignore[index]
            rest = part[len(closing) :]
            starts_well = not is_behind or rest[:1] in {"", " "} or closing.endswith("\n")
            if has_characters(part) or not starts_well or part.endswith(" "):
                self._stretches[part, is_behind] = None
            else:
                todo.append((part, is_behind, closing, rest))
        encoded = self._behind([rest for *_, rest in todo]) if todo else []
        for (part, is_behind, closing, _), ids in zip(todo, encoded, strict=True):
            rest_ids = np.array(ids, np.int32)
            tail = np.array(self._tail(closing), np.int32)
            self._stretches[part, is_behind] = _Stretch(np.concatenate([tail, rest_ids]), rest_ids, closing)

    def _tail(self, closing: str) -> list[int]:
        """Return the ids of a closing behind an ordinary gene."""
        if closing == "":
            return []
        if closing not in self._closings:
            n = len(self._names) if len(self._closings) < _CLOSINGS_OF_ALL_GENES else min(len(self._names), 8)
            self._closings[closing] = _Closing([], {}, n)
            self._learn(closing, n)
        return self._closings[closing].tail

    def _learn(self, closing: str, n: int) -> None:
        """Read a closing behind the first n genes: its usual ids, and the genes with which it is read otherwise."""
        found = [list(ids) for ids in self._behind([f" {name}{closing}" for name in self._names[:n]])]
        tails = [self._tail_of(gene, ids) for gene, ids in enumerate(found)]
        known = self._closings[closing]
        known.tail = list(next((tail for tail in tails if tail), ()))
        for gene, (ids, tail) in enumerate(zip(found, tails, strict=True)):
            if tail != known.tail:
                known.unlike[gene] = np.array(ids, np.int32)

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
            ids = list(self._behind([f" {self._names[gene]}{closing}"])[0])
            known.unlike[gene] = None if self._tail_of(gene, ids) == known.tail else np.array(ids, np.int32)
        return known.unlike.get(gene)


def _random_texts(n_genes: int) -> tuple[list[str], list[str]]:
    """Return prompts and completions of random genes, in the forms that tasks have."""
    rng = np.random.default_rng(0)
    prompts, completions = [], []
    for number in range(_N_CHECKED):
        first, second = (" ".join(characters_of(rng.integers(n_genes, size=24))) for _ in range(2))
        prompts.append(
            f"{number} genes: {first}. Cell type:"
            if number % 2
            else f"2 cells, up to {number} genes each:\nCell 1: {first}\nCell 2: {second}\nTissue:"
        )
        completions.append(f" {second}." if number % 2 else " CD4 T.")
    return prompts, completions
