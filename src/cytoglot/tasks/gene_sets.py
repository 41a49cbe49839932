"""What belongs together? The name of a gene set in, its genes out, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cytoglot.tasks.answers import GeneAnswer, NameAnswer, record_rng
from cytoglot.tasks.record import GeneSet, Record
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task

MOST_GENES = 100
"""genes of a set in a text; of a larger set a random choice, by the record's variant, in the order of the set"""


@register_task
class GeneSetEnumeration(GeneAnswer[GeneSet]):
    """The name of a gene set → its genes, in the order of its file, which means nothing."""

    name = "gene_set_enumeration"
    unit = "gene_set"
    reverse = "gene_set_naming"
    answer_field = "genes"
    metrics = ("gene_overlap", "gene_jaccard", "duplicate_share")

    def prompt_fields(self, record: GeneSet) -> Mapping[str, Field]:
        """Return the name, the collection and the number of genes: the record's, or `num_genes` where it has none."""
        n_genes = len(chosen_genes(self.name, record)) or record.num_genes or 0
        names = {"set_name": record.name, "collection": record.collection or "gene"}
        return self.common_fields(record) | names | {"num_genes": str(n_genes)}

    def answer_genes(self, record: GeneSet) -> Sequence[str]:
        """Return the genes, a choice of them from a large set."""
        return chosen_genes(self.name, record)


@register_task
class GeneSetNaming(NameAnswer[GeneSet]):
    """The genes of a set → its name. The genes stand in a random order, by the record's variant.

    So a set is not known by the gene that happens to be its first.
    """

    name = "gene_set_naming"
    unit = "gene_set"
    reverse = "gene_set_enumeration"
    answer_field, record_field = "set_name", "name"

    def prompt_fields(self, record: GeneSet) -> Mapping[str, Field]:
        """Return the genes, their number and the collection."""
        genes = shuffled(self.name, record, chosen_genes(self.name, record))
        texts = {"num_genes": str(len(genes)), "collection": record.collection or "gene"}
        return self.common_fields(record) | texts | {"genes": genes}


def chosen_genes(task: str, record: GeneSet) -> Sequence[str]:
    """Return the genes of a set, or `MOST_GENES` of a larger one, in the order of the set."""
    n = len(record.genes)
    if n <= MOST_GENES:
        return record.genes
    return [record.genes[i] for i in sorted(record_rng(task, record).permutation(n)[:MOST_GENES].tolist())]


def shuffled(task: str, record: Record, genes: Sequence[str]) -> list[str]:
    """Return the genes in an order that depends on the record's key and variant."""
    return [genes[i] for i in record_rng(f"{task} order", record).permutation(len(genes))]
