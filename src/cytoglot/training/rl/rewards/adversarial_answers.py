"""Answers without content, and the real ones that they are compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cytoglot.errors import InputError
from cytoglot.tasks.task import tasks
from cytoglot.training.rl.rewards.context import RewardInputs, RewardPrompts, known_types

TRUE = "true answers"
OTHER = "other real cells of the type"
ONE_CELL = "one training cell of the type"

_HOUSEKEEPING = tuple(
    """
    MALAT1 EEF1A1 B2M TMSB4X ACTB GAPDH FTL FTH1 TPT1 TMSB10 PTMA FAU UBA52 NACA EEF1B2 EIF1 HNRNPA1 PABPC1 ACTG1 PFN1
    CFL1 MYL6 OAZ1 UBC UBB YWHAZ PPIA HPRT1 TBP GUSB HMBS SDHA TUBB LDHA PGK1 ALDOA ENO1 TPI1 COX4I1 ATP5F1E
    """.split()  # noqa: SIM905 - one quoted gene a line would fill a page
)
_MEMORIZED = 5
"""training cells of a type that are tried as an answer to all of its prompts"""
_N_WORDS = 10
"""genes of a probe where no sentence was asked for"""


class AdversarialAnswers:
    """`completions`: kind of answer → completions, `group_size` to each prompt, in the order of `columns`.

    Where other real cells are the standard, prompts of types that have fewer than a group of them are left out.

    Parameters
    ----------
    prompts
        Prompts of one task.
    favorites
        Reward → genes of a cell type that please it alone; each makes a probe that writes them first.
    """

    def __init__(
        self,
        prompts: RewardPrompts,
        context: RewardInputs,
        *,
        favorites: Mapping[str, Callable[[str], tuple[str, ...]]] | None = None,
        group_size: int,
        max_words: int | None,
        seed: int,
    ) -> None:
        self._context, self.group_size = context, group_size
        self._max_words, self._rng = max_words, np.random.default_rng([seed, 8])
        self._favorites = favorites or {}
        task = tasks[str(prompts.columns["task"][0])]
        # The true answer is one draw among many cells of the type.
        self._is_draw = task.answer_kind == "genes" and not task.identifies_record
        self._prompts = prompts = self._with_other_cells(prompts) if self._is_draw else prompts
        self._asked = [int(n or 0) for n in prompts.columns["num_genes"]]
        self.types = known_types(prompts.columns)
        self._by_name = {gene.upper(): gene for gene in reversed(context.genes)}
        repeated = prompts.take(i for i in range(len(prompts)) for _ in range(self.group_size))
        self.columns: dict[str, list[Any]] = repeated.as_columns()
        self.completions: dict[str, list[str]] = self._write()
        self.memorized: list[list[str]] = []
        """candidates for `ONE_CELL`: the same training cell for all prompts of a type"""
        self.standard = OTHER if self._is_draw else TRUE
        self.real = frozenset({TRUE, OTHER})
        cells = {name: [c for c in context.profiles.cells(name) if c] for name in set(self.types)}
        if self._is_draw and all(cells.values()):
            for at in (np.arange(_MEMORIZED) + 0.5) / _MEMORIZED:
                known = {name: " ".join(some[int(at * len(some))]) for name, some in cells.items()}
                self.memorized.append(self._each(lambda i, of=known: self._cut(of[self.types[i]], i)))  # type: ignore[misc]

    def _write(self) -> dict[str, list[str]]:
        # A cell of the type with most training cells, or the commonest of the true answers.
        constant = str(Counter(self._prompts.columns["answer"]).most_common(1)[0][0])
        types = [cells for cells in self._context.reference.values() if cells]
        if any(self._asked) and types:
            commonest = max(types, key=len)
            longest: tuple[str, ...] = max(commonest, key=len)
            constant = " ".join(longest)
        ribosomal = sorted(name for name in self._by_name if name.startswith(("RPL", "RPS", "MT-")))
        housekeeping = [self._by_name[name] for name in (*_HOUSEKEEPING, *ribosomal) if name in self._by_name]
        writers: dict[str, Callable[[int], str]] = {
            TRUE: lambda i: str(self._prompts.columns["answer"][i]),
            "a constant answer": lambda i: self._cut(constant, i),
            "a copy of the prompt": self._copy,
            "housekeeping genes": lambda i: self._sentence(housekeeping, i),
            "the mean profile of the type": lambda i: " ".join(self._profile(i)),
            "one gene repeated": lambda i: " ".join([self._usual(1)[0]] * self._n_words(i)),
            "an empty answer": lambda i: "",
        }
        for name, genes_of in self._favorites.items():
            if any(map(genes_of, set(self.types))) and any(self._asked):
                writers[f"genes that please {name}"] = lambda i, of=genes_of: self._sentence(  # type: ignore[misc]
                    [*of(self.types[i]), *self._profile(i)], i
                )
        written = {kind: self._each(writer) for kind, writer in writers.items()}
        if self._is_draw:
            written[OTHER] = self._other_cells()
        if self._context.labels and not any(self._asked):
            written["every label"] = self._each(lambda i: ", ".join(self._context.labels))
        written["random genes"] = self._drawn(lambda i: self._n_words(i))
        written["random genes, as many as allowed"] = self._drawn(lambda i: self._max_words or 4 * self._n_words(i))
        return written

    def _each(self, writer: Callable[[int], str]) -> list[str]:
        return [self._completed(writer(i)) for i in range(len(self._prompts)) for _ in range(self.group_size)]

    def _completed(self, text: str) -> str:
        """Return a text as a completion; nothing stays nothing."""
        return f" {text}{self._context.terminator}" if text else ""

    def _cut(self, text: str, i: int) -> str:
        return " ".join(text.split()[: self._asked[i]]) if self._asked[i] else text

    def _copy(self, i: int) -> str:
        """Return the genes that the prompt shows, or its text where it shows none."""
        prompt = self._prompts.prompts[i]
        shown = [word for word in (w.strip(".,:;") for w in prompt.split()) if word in self._context.gene_set]
        return " ".join(shown or prompt.split()).rstrip(". ")

    def _sentence(self, genes: list[str], i: int) -> str:
        """Return as many genes as were asked for: these, then the usual ones of all cells."""
        n = self._n_words(i)
        return " ".join(list(dict.fromkeys([*genes, *self._usual(n + len(genes))]))[:n])

    def _profile(self, i: int) -> tuple[str, ...]:
        profile = self._context.profiles.top(self.types[i], self._n_words(i))
        return profile or self._usual(self._n_words(i))

    def _usual(self, n: int) -> tuple[str, ...]:
        """Return the genes that most training cells hold, whatever their type."""
        return self._context.profiles.top("", n) or self._context.genes[:n]

    def _drawn(self, n_words: Callable[[int], int]) -> list[str]:
        """Return sentences of distinct random genes, each answer another draw."""
        genes = np.array(self._context.genes, dtype=object)
        numbers = [i for i in range(len(self._prompts)) for _ in range(self.group_size)]
        return [self._completed(" ".join(self._rng.permutation(genes)[: n_words(i)])) for i in numbers]

    def _n_words(self, i: int) -> int:
        return self._asked[i] or _N_WORDS

    def _with_other_cells(self, prompts: RewardPrompts) -> RewardPrompts:
        """Return the prompts whose type has other real cells enough for a group, which is made smaller if none has.

        No cell may stand twice in a group: real answers would look less diverse than they are.
        """
        n_others = [len(held_out) + len(training) for held_out, training in self._others_of(prompts)]
        self.group_size = min(self.group_size, max(n_others))
        if self.group_size < 1:
            types = ", ".join(sorted(set(known_types(prompts.columns))))
            raise InputError(
                f"probes of {prompts.columns['task'][0]!r} compare with other real cells of the same types, found none "
                f"of {types}; give the context sentences of training cells"
            )
        return prompts.take(i for i, n in enumerate(n_others) if n >= self.group_size)

    def _other_cells(self) -> list[str]:
        """Return real cells of each prompt's type, not its own: held-out ones, and training cells where those lack."""
        chosen: list[list[str]] = []
        for i, (others, training) in enumerate(self._others_of(self._prompts)):
            pool = others if len(others) >= self.group_size else [*others, *training]
            # At random among those that have the words asked for, else the longest.
            order = self._rng.permutation(len(pool))
            missing = np.array([max(0, self._asked[i] - len(pool[j])) for j in order])
            best = order[np.argsort(missing, kind="stable")]
            chosen += (pool[j][: self._asked[i]] for j in best[: self.group_size])
        return [self._completed(" ".join(words)) for words in chosen]

    def _others_of(self, prompts: RewardPrompts) -> Iterator[tuple[list[list[str]], list[list[str]]]]:
        """Yield for each prompt the held-out and the training cells of its type.

        The prompt's own cell is in neither, nor is a cell of equal genes: the true answer must not be compared with
        itself. One cell that several prompts ask about is there once.
        """
        types = known_types(prompts.columns)
        answers = [tuple(str(answer).split()) for answer in prompts.columns["answer"]]
        held_out: defaultdict[str, dict[tuple[str, ...], None]] = defaultdict(dict)
        for name, answer in zip(types, answers, strict=True):
            held_out[name].setdefault(answer)
        for name, own in zip(types, answers, strict=True):
            training = self._context.profiles.cells(name)
            yield (
                [list(words) for words in held_out[name] if words != own],
                [list(words) for words in training if words[: len(own)] != own],
            )
