"""What a corpus is made of. Every field can be set in a YAML recipe or with `--set a.b=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cytoglot.config import Overrides, Settings, load_recipe
from cytoglot.data.schema import COMMON_NAMES, OBS_FIELDS
from cytoglot.errors import InputError, nearest_names
from cytoglot.sentence.cell_sentence import RankSettings, TieRule


def _known(field: str) -> str:
    if field not in OBS_FIELDS:
        raise InputError(f"{field!r} is no field of a cell; {nearest_names(field, OBS_FIELDS)}")
    return field


class CensusRecipe(Settings):
    """Cells of CELLxGENE Census, or of a SOMA experiment that is laid out as Census is."""

    version: str = "stable"
    """release of Census: a date, `stable` or `latest`"""
    uri: str | None = None
    """a SOMA experiment (a local folder) to read instead of a release of Census"""
    organism: str | None = None
    """name of Census, such as `homo_sapiens`; None: what the source's organism means"""
    value_filter: str | None = None
    """which cells, in the words of SOMA: `tissue_general == "lung" and disease == "normal"`"""
    measurement: str = "RNA"
    """measurement of the experiment"""
    layer: str = "raw"
    """X layer of the measurement"""


class SourceRecipe(Settings):
    """Where cells come from, and what is known of them beyond the file."""

    name: str = ""
    """unique; empty: the stem of the path"""
    path: str | None = None
    """a file, a zarr or 10x folder, a folder of such files, or the name of a data set; relative to the recipe"""
    census: CensusRecipe | None = None
    """cells of CELLxGENE Census, instead of a path"""
    organism: str = "human"
    """species, in every prompt that names it; decides how gene names are read"""
    study: str = ""
    """sources of one study share donors and stay in one part of the split; empty: the name"""
    title: str | None = None
    """title of the study"""
    abstract: str | None = None
    """abstract of the study: the text, or a path ending in .txt"""
    licence: str | None = None
    """licence of the data, as stated at their source"""
    columns: dict[str, str] = Field(default_factory=dict)
    """canonical field → column of obs, over what is recognized by name"""
    metadata: dict[str, str] = Field(default_factory=dict)
    """canonical field → value of the cells that have none of their own"""
    keep: dict[str, list[str]] = Field(default_factory=dict)
    """column of obs → values of the cells to keep; several columns must all agree"""
    layer: str | None = None
    """matrix to read: X, raw or the name of a layer; None: the first that holds counts"""
    gene_column: str | None = None
    """column of var with the gene names; None finds symbols"""
    gene_mapping: str | None = None
    """file of two columns, name in the file and name wanted"""
    primary_only: bool = True
    """leave out cells that `is_primary_data` marks as copies of another study's"""
    max_cells: int | None = Field(default=None, gt=0)
    """cells drawn from this source at most"""

    @field_validator("organism")
    @classmethod
    def _common_name(cls, organism: str) -> str:
        return COMMON_NAMES.get(organism.strip().lower().replace("_", " "), organism.strip())

    @field_validator("columns", "metadata")
    @classmethod
    def _canonical(cls, fields: dict[str, str]) -> dict[str, str]:
        return {_known(field): text for field, text in fields.items()}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.census is None):
            found = "both" if self.path is not None else "neither"
            raise InputError(f"a source has either a path or census, found {found} in source {self.name!r}")
        return self

    @property
    def label(self) -> str:
        """The name, or what the path gives as one."""
        if self.name:
            return self.name
        return "census" if self.path is None else Path(self.path).stem


class GeneRecipe(Settings):
    """How the columns of many files become one vocabulary."""

    vocabulary: str | None = None
    """a list of genes, one a line (or vocabulary.json); None: the genes of all sources"""
    min_overlap: float = Field(default=0.5, ge=0, le=1)
    """share of a source's genes that must be in the vocabulary, or of the vocabulary in the source"""
    repair: bool = True
    """replace previous symbols and aliases by approved ones, and Ensembl ids by symbols"""
    hgnc: str | None = None
    """table of HGNC; None: the one of the knowledge folder, else a built-in list of common renamings"""
    mouse: Literal["keep", "to_human"] = "keep"
    """mouse genes stay, or become their one-to-one human orthologs"""
    orthologs: str | None = None
    """table of human and mouse orthologs; None: the one of the knowledge folder"""


class CellRecipe(Settings):
    """Which cells, and how each is ranked."""

    min_genes: int = Field(default=1, ge=1)
    """expressed genes of the vocabulary that a cell must have"""
    top_genes: int | None = Field(default=None, gt=0)
    """genes kept of each cell; None keeps all that are expressed"""
    ties: TieRule = RankSettings.ties
    """order of equally expressed genes"""
    duplicates: Literal["drop", "keep"] = "drop"
    """what becomes of a cell whose ranked genes are those of an earlier one"""

    def rank_settings(self, seed: int) -> RankSettings:
        """Return the settings of the ranking; the seed matters to random ties alone."""
        return RankSettings(top_genes=self.top_genes, ties=self.ties, seed=seed if self.ties == "random" else 0)


class CapRecipe(Settings):
    """How many cells of each label."""

    per: str = "cell_type"
    """the field whose values are capped"""
    max_cells: int | None = Field(default=None, gt=0)
    """cells of a value at most"""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """shares become share ** temperature: 1 leaves them, 0 makes values equal; None: no such sampling"""

    @field_validator("per")
    @classmethod
    def _known_field(cls, field: str) -> str:
        return _known(field)


class SplitRecipe(Settings):
    """Which cells are held out."""

    by: Literal["auto", "donor_id", "dataset_id", "batch", "cell"] = "auto"
    """what stays whole; auto: the first of donor, batch and data set that tells two of them apart"""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """shares of the cells for training, validation and test"""
    held_out_sources: list[str] = Field(default_factory=list)
    """names of sources or studies whose cells are all test cells"""

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] <= 0:
            raise InputError(
                f"expected three shares that sum to 1, the first above 0, found {list(fractions)}; "
                "pass shares of training, validation and test cells such as [0.8, 0.1, 0.1]"
            )
        return fractions


class GroupRecipe(Settings):
    """Cell groups: cells of one donor and tissue that are shown together."""

    min_cells: int = Field(default=2, ge=2)
    """cells of the smallest group"""
    max_cells: int = Field(default=20, ge=2)
    """cells of the largest group"""
    within: list[str] = Field(default_factory=lambda: ["donor_id", "tissue"])
    """fields that the cells of a group share"""

    @field_validator("within")
    @classmethod
    def _known_fields(cls, fields: list[str]) -> list[str]:
        return [_known(field) for field in fields]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_cells < self.min_cells:
            raise InputError(f"expected max_cells of at least min_cells, found {self.max_cells} < {self.min_cells}")
        return self


class GeneSetRecipe(Settings):
    """One GMT file."""

    path: str
    """the file, plain or .gz, relative to the recipe or in the knowledge folder"""
    collection: str = ""
    """name of the collection in prompts and counts; empty: the stem of the path"""


class CellTypeRecipe(Settings):
    """Tables of cell types."""

    ontology: str | None = None
    """terms of the Cell Ontology with definitions; None: no tasks from them"""
    markers: str | None = None
    """markers of cell types; None: terms without markers"""


class CorpusRecipe(Settings):
    """One corpus."""

    sources: list[SourceRecipe] = Field(min_length=1)
    """where the cells come from"""
    genes: GeneRecipe = GeneRecipe()
    """one vocabulary"""
    cells: CellRecipe = CellRecipe()
    """which cells"""
    caps: CapRecipe = CapRecipe()
    """how many of each"""
    split: SplitRecipe = SplitRecipe()
    """which are held out"""
    groups: GroupRecipe = GroupRecipe()
    """which are shown together"""
    gene_sets: list[GeneSetRecipe] = Field(default_factory=list)
    """gene sets for enumeration and naming"""
    cell_types: CellTypeRecipe = CellTypeRecipe()
    """definitions and markers of cell types"""
    shard_ids: int = Field(default=1 << 25, gt=0)
    """ranked gene ids of a shard, about"""
    templates: dict[str, str] = Field(default_factory=dict)
    """task → where its prompts come from, when not from this package"""

    @field_validator("sources")
    @classmethod
    def _unique_names(cls, sources: list[SourceRecipe]) -> list[SourceRecipe]:
        names = [source.label for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(
                f"expected sources of different names, found {', '.join(repr(n) for n in twice)} more than once; "
                "set name: in each"
            )
        return sources


def load_corpus_recipe(path: str | Path, overrides: Overrides = ()) -> CorpusRecipe:
    """Read the recipe of a corpus, then apply `a.b=value` overrides.

    Raises
    ------
    InputError
        As for `load_recipe`; also two sources of one name, or a source that is neither a path nor Census.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cytoglot as cg
    >>> _ = Path("corpus.yaml").write_text("sources: [{path: pbmc68k_reduced}]")
    >>> cg.corpus.load_corpus_recipe("corpus.yaml", ["cells.top_genes=100"]).cells.top_genes
    100
    """
    return load_recipe(CorpusRecipe, path, overrides)
