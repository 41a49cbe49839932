"""How highly a gene program is ranked, beside control genes that are usually ranked alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.knowledge.tables import read_gmt, read_markers
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.training.rl.rewards.context import Answer, RewardInputs
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward

Genes = tuple[str, ...]


class ProgramScoreSettings(RewardSettings):
    """Of `program_score`; exactly one of `genes`, `genes_of_type`, `gmt` and `markers`."""

    genes: Genes = ()
    """the program"""
    genes_of_type: dict[str, Genes] = Field(default_factory=dict)
    """cell type → its program; prompts of other types are not rated"""
    gmt: str | None = None
    """file of gene sets, of which `gene_set` is the program"""
    gene_set: str | None = None
    """name of the gene set in `gmt`"""
    markers: str | None = None
    """table of marker genes by Cell Ontology id: each type's program is its best supported markers"""
    n_markers: int = Field(default=20, gt=0)
    """markers of a type at most"""
    direction: Literal["up", "down"] = "up"
    """down rewards cells that lack the program"""
    controls_per_gene: int = Field(default=10, gt=0)
    """control genes drawn for each gene of the program"""
    seed: int = 0
    """of that draw"""

    @model_validator(mode="after")
    def _one_source(self) -> ProgramScoreSettings:
        given = [name for name in ("genes", "genes_of_type", "gmt", "markers") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"name exactly one of genes, genes_of_type, gmt (with gene_set) and markers, found {given}"
            )
        if (self.gmt is None) != (self.gene_set is None):
            raise ValueError("gmt and gene_set go together: the file and the name of the set in it")
        return self


@register_reward
class ProgramScore(AnswerReward[ProgramScoreSettings]):
    """Mean rank weight of the program's genes less that of its control genes, as written.

    The weight of the word at rank r of n asked is 1 − (r − 1) / n, and 0 for a gene that is absent or stands beyond n;
    a repeated gene has its first rank, and every word takes a rank. Between −1 and 1. Controls of a gene are drawn from
    the genes outside of the program whose mean weight in the training cells is nearest, so a program of genes that are
    high in every cell earns nothing by itself :cite:p:`tirosh2016melanoma`. Genes outside of the
    vocabulary are left out.
    """

    name = "program_score"
    low = -1.0
    settings_type = ProgramScoreSettings

    def __init__(self, settings: ProgramScoreSettings, context: RewardInputs) -> None:
        super().__init__(settings, context)
        programs = self._read_programs()
        known = {
            name: tuple(g for g in dict.fromkeys(genes) if g in context.gene_set) for name, genes in programs.items()
        }
        self.programs: Mapping[str, Genes] = {name: genes for name, genes in known.items() if genes}
        if not self.programs:
            raise InputError(f"none of the program's genes is in the vocabulary of {len(context.genes)} genes")
        # Gene → mean rank weight in the training cells of all types.
        self._usual: dict[str, float] = {}
        sentences = context.profiles.cells("")
        for sentence in sentences:
            for gene, weight in _rank_weights(sentence, len(sentence)).items():
                self._usual[gene] = self._usual.get(gene, 0.0) + weight / len(sentences)
        self.controls: Mapping[str, Genes] = {name: self._draw_controls(genes) for name, genes in self.programs.items()}

    def rate(self, answer: Answer) -> float | None:
        """Return the score; None for what is no sentence, and for a type without a program."""
        program = "" if "" in self.programs else answer.cell_type
        if not answer.is_sentence or program not in self.programs:
            return None
        weight = _rank_weights(answer.words, answer.num_genes)
        genes, controls = self.programs[program], self.controls[program]
        score = _mean_weight(genes, weight) - _mean_weight(controls, weight)
        return score if self.settings.direction == "up" else -score

    def favorites(self, cell_type: str) -> Genes:
        """Return the genes of the program, or of the controls if the program is to be low."""
        program = "" if "" in self.programs else cell_type
        return (self.programs if self.settings.direction == "up" else self.controls).get(program, ())

    def _read_programs(self) -> Mapping[str, Genes]:
        """Return cell type → genes, with "" for a program of all types."""
        settings = self.settings
        if settings.genes:
            return {"": settings.genes}
        if settings.gmt is not None:
            sets = {entry.name: entry.genes for entry in read_gmt(settings.gmt)}
            if settings.gene_set not in sets:
                raise UnknownNameError("gene set", str(settings.gene_set), sets)
            return {"": sets[settings.gene_set]}
        if settings.markers is None:
            return settings.genes_of_type
        markers, labels = read_markers(settings.markers), {*self.context.labels, *self.context.reference}
        ids = {**map_labels(sorted(labels)).ids, **self.context.label_ids}
        return {name: markers.get(str(ids.get(name)), ())[: settings.n_markers] for name in labels}

    def _draw_controls(self, program: Genes) -> Genes:
        usual = self._usual
        others = np.array(sorted(self.context.gene_set.difference(program)), dtype=object)
        others = others[np.argsort([usual.get(gene, 0.0) for gene in others], kind="stable")]
        levels = np.array([usual.get(gene, 0.0) for gene in others])
        rng, chosen = np.random.default_rng(self.settings.seed), []
        n = min(self.settings.controls_per_gene, len(others))
        for gene in program:
            # Among the nearest 5 n genes, so that a list in the order of expression does not settle them all.
            place = int(np.searchsorted(levels, usual.get(gene, 0.0)))
            first = min(max(0, place - 5 * n // 2), max(0, len(others) - 5 * n))
            chosen += [str(g) for g in rng.choice(others[first : first + 5 * n], n, replace=False)]
        return tuple(chosen)


def _rank_weights(words: Genes, n: int) -> dict[str, float]:
    """Return word → 1 − (rank − 1) / n for the first n words."""
    weights: dict[str, float] = {}
    for place, word in enumerate(words[:n]):
        weights.setdefault(word, 1 - place / n)
    return weights


def _mean_weight(genes: Genes, weight: Mapping[str, float]) -> float:
    return sum(weight.get(gene, 0.0) for gene in genes) / len(genes) if genes else 0.0
