"""Cells: expression against rank, one sentence, a map with confidence, and generated beside real cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.pl import draw
from cytoglot.pl.results import stored
from cytoglot.pl.style import ACCENT, GRID, INK, MUTED, SECOND, axes_for, colors_of, finish, plain, shuffled

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cytoglot.benchmark.evaluate import Evaluation
    from cytoglot.cell_model.load import CellModel
    from cytoglot.sentence.cell_sentence import CellSentences
    from cytoglot.sentence.rank_curve import IsotonicCurve, PolynomialCurve, RankCurve

EXPRESSION = "expression, log₁₀(1 + counts per 10,000)"
MAX_CELLS = 2000
"""cells that a rank curve is drawn of, at most; drawn at random, the same ones each time"""


def rank_curve(
    data: AnnData | CellModel | RankCurve | str | Path,
    *,
    model: CellModel | RankCurve | str | Path | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the expression of genes against their rank in the cell, of cells, of a model's rank curve, or both.

    Cells are drawn as hexagons of density, at most 2,000 of them, or with `groupby` as one line for each group, the
    median expression at each rank. Genes of equal expression get ranks by the tie rule, so they lie side by side. A
    curve that depends on the number of expressed genes is drawn at three of them (of the cells the 10 %, 50 % and 90 %
    quantiles); of a curve with a line for each gene the part common to all genes is drawn. Cells without an expressed
    gene and groups of NaN are left out.

    Parameters
    ----------
    data
        Cells, or a trained model, its folder, or a rank curve.
    model
        A model, its folder or a rank curve to draw on top of the cells.
    groupby
        Column of obs.
    layer
        "X", "raw" or a layer, to read that matrix and no other; see `cytoglot.read`.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        No matrix of the cells can be read, the model has no rank curve, or there is no such column.

    Examples
    --------
    >>> import cytoglot as cg
    >>> ax = cg.pl.rank_curve(cg.load_dataset("pbmc68k_reduced"))
    """
    from anndata import AnnData

    cells = data if isinstance(data, AnnData) else None
    curve = _curve_of(data if cells is None else model)
    ax = axes_for(ax, width=5.6, height=4.4)
    last_rank, lengths = (0, []) if curve is None else _reach(curve)
    if cells is not None:
        chosen = np.sort(shuffled(cells.n_obs)[:MAX_CELLS])
        sentences, expression_w, adata = _words(cells[chosen], layer)
        last_rank = int(sentences.lengths.max(initial=1))
        expressed = sentences.n_expressed[sentences.n_expressed > 0]
        lengths = np.percentile(expressed, (10, 50, 90)).tolist() if len(expressed) else []
        if groupby is None:
            draw.density(ax, sentences.ranks(), expression_w, x_log=True)
        else:
            _group_lines(ax, sentences, expression_w, adata.obs, groupby)
    if curve is not None:
        by_length = curve.kind.endswith("length")
        shades = ("#f2a477", SECOND, "#7a2a08") if by_length else (SECOND,)
        for length, shade in zip(lengths if by_length else lengths[1:2] or [1], shades, strict=False):
            label = f"rank curve, {length:,.0f} expressed genes" if by_length else "rank curve"
            reached = min(last_rank, int(length)) if by_length else last_rank
            draw.curve_line(ax, curve, last_rank=reached, n_expressed=length, color=shade, lw=1.8, label=label)
    draw.density(ax, [], [], x_log=True)
    ax.set(xlabel="rank of the gene in its cell", ylabel=EXPRESSION)
    ax.grid(color=GRID)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc="upper right")
    return finish(ax, show=show, save=save, return_fig=return_fig)


def sentence(
    adata: AnnData,
    cell: int | str = 0,
    *,
    n_genes: int = 20,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the first genes of one cell's sentence with their expression, from left to right as a model reads them.

    Genes of equal expression are pale: their order among each other is made by the tie rule ("symbol", a fixed hash
    of the gene's name), not by the cell. A cell that expresses nothing gives empty axes that say so.

    Parameters
    ----------
    adata
        Cells; the matrix is found as by `cytoglot.read`.
    cell
        Name of the cell, or its row.
    n_genes
        Genes to draw, at most.
    layer
        "X", "raw" or a layer, to read that matrix and no other.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        There is no such cell, `n_genes` is below 1, or no matrix can be read.

    Examples
    --------
    >>> import cytoglot as cg
    >>> ax = cg.pl.sentence(cg.load_dataset("pbmc68k_reduced"), "AAAGCCTGGCTAAC-1", n_genes=10)
    """
    if isinstance(cell, str) and cell not in adata.obs_names:
        raise UnknownNameError("cell", cell, map(str, adata.obs_names))
    rows = np.flatnonzero(adata.obs_names == cell) if isinstance(cell, str) else [cell]
    if len(rows) > 1:
        raise InputError(f"{len(rows)} cells are called {cell!r}; pass the row of one, such as {rows[0]}")
    row = int(rows[0])
    if not -adata.n_obs <= row < adata.n_obs:
        raise InputError(f"cell {row} is outside of the {adata.n_obs} cells")
    if n_genes < 1:
        raise InputError(f"n_genes must be at least 1, found {n_genes}")
    sentences, expression_w, _ = _words(adata[[row]], layer)
    # all genes of the cell, as the last one drawn may be tied with the first one that is not
    before, after = np.diff(expression_w, prepend=np.nan) == 0, np.diff(expression_w, append=np.nan) == 0
    genes, heights, tied = sentences.words(0)[:n_genes], expression_w[:n_genes], (before | after)[:n_genes]
    ax = axes_for(ax, width=max(3.2, 1.2 + 0.3 * len(genes)), height=3.4)
    for is_tied, alpha, label in ((False, 1.0, ""), (True, 0.45, "equal expression")):
        places = np.flatnonzero(tied == is_tied)
        ax.bar(places, heights[places], color=ACCENT, alpha=alpha, width=0.75, label=label if len(places) else "")
    ax.set_xticks(range(len(genes)), [plain(gene) for gene in genes], rotation=90)
    ax.set(ylabel=EXPRESSION.replace(", ", ",\n"), xlim=(-0.6, max(len(genes), 1) - 0.4))
    name = adata.obs_names[row]
    ax.set_title(plain(f"{name}: {len(genes)} of {sentences.n_expressed[0]:,} expressed genes"), fontsize=10, color=INK)
    if not genes:
        ax.text(0.5, 0.5, "this cell expresses no gene", transform=ax.transAxes, ha="center", color=MUTED)
    if tied.any():
        ax.legend(frameon=False, fontsize=8, loc="upper right")
    return finish(ax, show=show, save=save, return_fig=return_fig)


def embedding(
    adata: AnnData,
    basis: str = "X_umap",
    color: str = "cytoglot_cell_type",
    *,
    confidence: str | None = "auto",
    confidence_as: Literal["alpha", "size", "both"] = "alpha",
    dimensions: tuple[int, int] = (0, 1),
    colors: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw cells at two dimensions of an embedding, colored by label; pale or small cells have a low confidence.

    Cells lie in mixed order, so that the last label does not cover the others. Cells without a label and `unassigned`
    ones are gray. Cells with a confidence of NaN are drawn as those with a confidence of 0; cells with a coordinate of
    NaN are not seen. Labels beyond the thirtieth share the colors of the first ones.

    Parameters
    ----------
    adata
        Cells.
    basis
        Key of obsm; "umap" means "X_umap".
    color
        Column of obs with labels. The order of a categorical column is kept.
    confidence
        Column of obs with numbers from 0 to 1. "auto" takes `{color}_confidence` where obs has it; None draws all cells
        alike.
    confidence_as
        What the confidence changes: the opacity of a point, its size, or both.
    dimensions
        Columns of the embedding to draw, counted from 0.
    colors
        Color of each label ("unassigned" and "no label" may be left out); by default those that scanpy keeps in
        `uns["{color}_colors"]`, else cytoglot's own.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        There is no such key or column, the embedding has too few dimensions, or a label has no color.

    Examples
    --------
    >>> import cytoglot as cg
    >>> ax = cg.pl.embedding(cg.load_dataset("pbmc68k_reduced"), color="bulk_labels")
    """
    key = basis if basis in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        raise InputError(
            f"obsm has no {basis!r}, found {', '.join(map(repr, adata.obsm)) or 'nothing'}; for a map of an embedding "
            "run sc.pp.neighbors(adata, use_rep='X_cytoglot') and sc.tl.umap(adata)"
        )
    place_nd = np.asarray(adata.obsm[key])
    if max(dimensions) >= place_nd.shape[1]:
        raise InputError(f"obsm[{key!r}] has {place_nd.shape[1]} dimensions, found dimensions={dimensions}")
    if color not in adata.obs:
        raise UnknownNameError("column of obs", color, map(str, adata.obs.columns))
    values = adata.obs[color].astype("category")
    order = [str(name) for name in values.cat.categories]
    names = values.astype(object).where(values.notna(), "no label").astype(str).to_numpy()
    if colors is None:
        kept = [str(shade) for shade in adata.uns.get(f"{color}_colors", ())]
        colors = {**colors_of(order), **(dict(zip(order, kept, strict=False)) if len(kept) >= len(order) else {})}
    else:
        colors = {**colors_of(()), **colors}
    missing = sorted(set(names) - set(colors))
    if missing:
        raise InputError(f"colors has no color for {missing[0]!r}")
    if confidence == "auto":
        confidence = f"{color}_confidence" if f"{color}_confidence" in adata.obs else None
    if confidence is not None and confidence not in adata.obs:
        raise UnknownNameError("column of obs", confidence, map(str, adata.obs.columns))
    sure_n = np.ones(adata.n_obs) if confidence is None else adata.obs[confidence].to_numpy(float)
    sure_n = np.clip(np.nan_to_num(sure_n), 0, 1)
    size = float(np.clip(12000 / max(adata.n_obs, 1), 3, 26))
    ax = axes_for(ax, width=6.6 if len(order) <= 16 else 8.4, height=4.6)
    draw.points(
        ax,
        place_nd[:, dimensions[0]],
        place_nd[:, dimensions[1]],
        names,
        colors=colors,
        sizes=size * (0.12 + 0.88 * sure_n**2) if confidence_as in ("size", "both") else size,
        alpha=0.08 + 0.87 * sure_n**1.5 if confidence_as in ("alpha", "both") else 0.9,
    )
    title = key.removeprefix("X_")
    ax.set(xlabel=plain(f"{title} {dimensions[0] + 1}"), ylabel=plain(f"{title} {dimensions[1] + 1}"))
    ax.set_xticks([])
    ax.set_yticks([])
    if confidence is not None:
        for sure in (0.25, 0.5, 1.0):
            mark = size * (0.12 + 0.88 * sure**2) if confidence_as in ("size", "both") else 22
            alpha = 0.08 + 0.87 * sure**1.5 if confidence_as in ("alpha", "both") else 0.9
            ax.scatter([], [], color=INK, alpha=alpha, label=f"confidence {sure:g}", linewidths=0, s=mark)
    _legend_beside(ax)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def generated(
    generated: AnnData | Evaluation | str | Path,
    real: AnnData | None = None,
    *,
    groupby: str = "cell_type",
    kind: Literal["markers", "map"] = "markers",
    markers: Mapping[str, Sequence[str]] | None = None,
    n_markers: int = 3,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw generated cells beside real ones of the same types: the share of cells with each marker, or a map.

    Generated cells hold as many genes as their sentences have words. So that shares can be compared, the sentences of
    the real cells are cut off at the median length of the generated ones of the type. Only genes of the generated
    cells are used; types without real cells, real cells without a type and empty cells are left out.

    The map is a truncated SVD of gene presence weighted by 1 / log2(rank + 1), fitted on the real cells; dots are real,
    crosses generated.

    Parameters
    ----------
    generated
        What `cytoglot.generate` returned (several types: `anndata.concat`), or an evaluation or its folder, whose map
        is drawn.
    real
        Real cells, best those that the model was not trained on; not used for an evaluation.
    groupby
        Column of obs with the types of the real cells. The generated cells have it too, or "cell_type".
    kind
        "markers" or "map".
    markers
        Type → genes. By default, for each type, the `n_markers` genes whose share among its real cells is farthest
        above the mean of the other real types, also those that were not generated; of equal ones the first by gene
        order. They are chosen on the cells that are drawn, which favors the real ones a little where a type has few;
        pass markers from elsewhere to avoid that.
    n_markers
        Genes of each type.
    layer
        Matrix of the real cells; see `cytoglot.read`.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        Real cells are missing, no type is in both, a column or a gene is missing, or the folder holds no map.

    Examples
    --------
    >>> import cytoglot as cg
    >>> real = cg.read("cells.h5ad")
    >>> ax = cg.pl.generated(cg.generate("model", "type A", n=5, n_genes=20), real)
    """
    content = stored(generated, "generation.json")
    if content is not None:
        table = pd.DataFrame(content["generated_vs_real_2d"], columns=["cell_type", "method", "x", "y"])
        table["is_generated"] = table["method"] != "held_out_cells"
        ax = axes_for(ax, width=7.2, height=4.8)
        draw.generated_points(ax, table)
        _legend_beside(ax)
        return finish(ax, show=show, save=save, return_fig=return_fig)
    if real is None:
        raise InputError("pass real, the cells to compare the generated ones with")
    words, others = _sentences_by_type(generated, real, groupby, layer)
    if kind == "map":
        ax = axes_for(ax, width=7.2, height=4.8)
        draw.generated_points(ax, _map(words))
        _legend_beside(ax)
    else:
        rows = _marker_shares(words, others, markers, n_markers)
        ax = axes_for(ax, width=6.4, height=1.0 + 0.2 * len(rows))
        _draw_markers(ax, rows)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _words(adata: AnnData, layer: str | None) -> tuple[CellSentences, NDArray[np.float64], AnnData]:
    """Return the sentences of cells, the expression of each word, and the cells as read."""
    from cytoglot.data.normalize import log_normalize
    from cytoglot.data.readers.read import matrix_state_of, read
    from cytoglot.sentence.encode import encode

    read_cells = read(adata, layer=layer)
    log_ng = log_normalize(read_cells.X, matrix_state_of(read_cells), base=10.0)
    sentences = encode(read_cells, genes=[str(name) for name in read_cells.var_names])
    if not len(sentences.gene_ids):  # scipy would return a matrix
        return sentences, np.zeros(0), read_cells
    expression_w = np.asarray(log_ng[sentences.cells(), sentences.gene_ids.astype(np.int64)]).ravel()
    return sentences, expression_w.astype(float), read_cells


def _curve_of(given: Any) -> PolynomialCurve | IsotonicCurve | None:
    """Return the rank curve of a model, of its folder, or as given; of lines per gene the common part."""
    from cytoglot.sentence.rank_curve import GeneLines, rank_curve_from_dict

    if given is None:
        return None
    if isinstance(given, (str, Path)):
        from cytoglot.cell_model.spec import CellModelSpec

        stored_curve = CellModelSpec.load(given).rank_curve
        if stored_curve is None:
            raise InputError(f"the model {given} has no rank curve; fit one with `cytoglot reconstruct`")
        given = rank_curve_from_dict(stored_curve)
    curve: RankCurve = getattr(given, "rank_curve", given)
    return curve.base if isinstance(curve, GeneLines) else curve


def _reach(curve: PolynomialCurve | IsotonicCurve) -> tuple[int, list[float]]:
    """Return the last rank that a curve was fitted on, and three numbers of expressed genes of its training cells."""
    from cytoglot.sentence.rank_curve import PolynomialCurve

    if isinstance(curve, PolynomialCurve):
        shortest, longest = curve.length_range
        return curve.max_rank, np.geomspace(shortest, longest, 3).tolist()
    last = max(steps[-1] for steps in curve.last_ranks)
    return last, (10.0 ** np.linspace(curve.lengths[0], curve.lengths[-1], 3)).tolist()


def _group_lines(
    ax: Axes, sentences: CellSentences, expression_w: NDArray[np.float64], obs: pd.DataFrame, groupby: str
) -> None:
    from cytoglot.data.schema import labels

    names = labels(obs, groupby).to_numpy(object)[sentences.cells()]
    # ranks in bins that are equal on the logarithmic axis; the first ones hold one rank each
    edges = np.unique(np.geomspace(1, max(int(sentences.lengths.max(initial=1)), 2) + 1, 40).astype(np.int64))
    table = pd.DataFrame({"group": names, "bin": np.searchsorted(edges, sentences.ranks(), side="right") - 1})
    table["expression"] = expression_w
    medians = table.groupby(["group", "bin"])["expression"].median()
    shades = colors_of(sorted({name for name in names if isinstance(name, str)}))
    for group in medians.index.unique("group"):
        line = medians[group]
        ax.plot(edges[line.index.to_numpy()], line.to_numpy(), color=shades[group], lw=1.6, label=plain(group))


def _sentences_by_type(
    generated: AnnData, real: AnnData, groupby: str, layer: str | None
) -> tuple[dict[str, tuple[CellSentences, CellSentences]], list[CellSentences]]:
    """Return type → sentences of its generated and of its real cells, over the genes of the generated ones.

    Also those of the real types that were not generated, against which markers are chosen too.
    """
    from cytoglot.data.schema import labels
    from cytoglot.sentence.encode import encode

    genes = [str(name) for name in generated.var_names]
    column = groupby if groupby in generated.obs else "cell_type"
    sides = []
    for cells, name, matrix in ((generated, column, None), (real, groupby, layer)):
        sentences = encode(cells, genes=genes, layer=matrix)
        sides.append((sentences, labels(cells.obs, name).where(sentences.lengths > 0).to_numpy(object)))
    (new, new_types), (old, old_types) = sides
    types = sorted({name for name in new_types if isinstance(name, str)} & {*old_types})
    if not types:
        raise InputError(
            f"no cell type is both in {column!r} of the generated cells and in {groupby!r} of the real ones; "
            "groupby names the column of the types"
        )
    found = {}
    for name in types:
        ours = new[new_types == name]
        found[name] = (ours, old[old_types == name].truncate(max(1, int(np.median(ours.lengths)))))
    usual = max(1, int(np.median(new.lengths)))
    absent = sorted({name for name in old_types if isinstance(name, str)} - {*types})
    return found, [old[old_types == name].truncate(usual) for name in absent]


def _marker_shares(
    words: Mapping[str, tuple[CellSentences, CellSentences]],
    other_types: Sequence[CellSentences],
    markers: Mapping[str, Sequence[str]] | None,
    n_markers: int,
) -> pd.DataFrame:
    """Return one row for each type and marker: the share of generated and of real cells that have it."""
    symbols = next(iter(words.values()))[0].vocabulary.symbols
    shares = {
        name: [np.bincount(side.gene_ids, minlength=len(symbols)) / len(side) for side in sides]
        for name, sides in words.items()
    }
    of_other_types = [np.bincount(side.gene_ids, minlength=len(symbols)) / len(side) for side in other_types]
    place = {symbol: i for i, symbol in enumerate(symbols)}
    rows = []
    for name, (ours, theirs) in shares.items():
        if markers is None:
            others = [real for other, (_, real) in shares.items() if other != name] + of_other_types
            usual = np.mean(others, axis=0) if others else np.zeros(len(symbols))
            chosen = [symbols[i] for i in np.argsort(usual - theirs, kind="stable")[:n_markers]]
        else:
            chosen = list(markers.get(name, ()))
        for gene in chosen:
            if gene not in place:
                raise UnknownNameError("gene of the generated cells", gene, symbols)
            rows.append((name, gene, ours[place[gene]], theirs[place[gene]]))
    return pd.DataFrame(rows, columns=["cell_type", "gene", "generated", "real"])


def _draw_markers(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw a line from the real to the generated share of each marker, the types below each other."""
    y = np.arange(len(rows)) + 0.6 * pd.factorize(rows["cell_type"])[0]  # a gap between types
    shades = colors_of(rows["cell_type"].unique())
    color_n = [shades[name] for name in rows["cell_type"]]
    ax.hlines(y, rows["real"], rows["generated"], color=color_n, lw=2, alpha=0.5)
    ax.scatter(rows["real"], y, s=34, facecolor="white", edgecolor=color_n, linewidths=1.6, zorder=3)
    ax.scatter(rows["generated"], y, s=34, color=color_n, linewidths=0, zorder=3)
    ax.scatter([], [], s=34, facecolor="white", edgecolor=INK, linewidths=1.6, label="real")
    ax.scatter([], [], s=34, color=INK, linewidths=0, label="generated")
    ax.set_yticks(y, [plain(gene) for gene in rows["gene"]])
    for name, members in pd.Series(y).groupby(rows["cell_type"].to_numpy(), sort=False):
        ax.text(1.03, members.mean(), plain(name), va="center", color=shades[str(name)], fontsize=9, clip_on=False)
    ax.set(xlim=(-0.03, 1.03), xlabel="share of the cells with this gene in their sentence")
    ax.set_ylim(float(y[-1]) + 0.8 if len(y) else 1, -0.8)
    ax.xaxis.grid(color=GRID)
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _map(words: Mapping[str, tuple[CellSentences, CellSentences]]) -> pd.DataFrame:
    """Return cell_type, is_generated, x and y of all cells."""
    from sklearn.decomposition import TruncatedSVD

    def weights(side: CellSentences) -> csr_matrix:
        values = 1 / np.log2(side.ranks() + 1.0)
        return csr_matrix((values, side.gene_ids, side.offsets), shape=(len(side), len(side.vocabulary)))

    real = vstack([weights(theirs) for _, theirs in words.values()])
    svd = TruncatedSVD(n_components=2, random_state=0).fit(real)
    tables = []
    for name, sides in words.items():
        for is_generated, side in zip((True, False), sides, strict=True):
            table = pd.DataFrame(svd.transform(weights(side)), columns=["x", "y"])
            tables.append(table.assign(cell_type=name, is_generated=is_generated))
    return pd.concat(tables, ignore_index=True)


def _legend_beside(ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    if handles:
        columns = 1 if len(names) <= 19 else 2
        ax.legend(
            handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=columns
        )
