"""The plots hold the numbers of the cells, change nothing, and take ax, show, save and return_fig as scanpy's do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

import cytoglot as cg
from cytoglot.errors import InputError, MissingExtraError, UnknownNameError
from cytoglot.pl import draw
from cytoglot.pl.style import PALETTE, colors_of

pyplot = pytest.importorskip("matplotlib.pyplot")
ODD = "T&B $x"  # an unfinished formula


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


@pytest.fixture
def labeled() -> AnnData:
    """Four cells of known expression; the third has no label, the fourth is unassigned."""
    counts = np.array([[5, 3, 3, 0], [0, 0, 0, 0], [1, 0, 0, 9], [2, 8, 0, 0]], dtype=np.float32)
    obs = pd.DataFrame(
        {
            "truth": pd.Categorical([ODD, "NK", None, "NK"]),
            "cytoglot_cell_type": pd.Categorical([ODD, ODD, "NK", "unassigned"]),
            "cytoglot_cell_type_best": [ODD, ODD, "NK", "NK"],
            "cytoglot_cell_type_confidence": [0.95, 0.85, 0.7, np.nan],
        },
        index=list("abcd"),
    )
    adata = AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["MS4A1", "CD3E", "LYZ", "NKG7"]))
    adata.obsm["X_umap"] = np.array([[0.0, 1], [1, 0], [2, 2], [np.nan, 0]])
    return adata


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    points = [{"cell_type": ODD, "method": m, "x": 0.0, "y": 1.0} for m in ("cytoglot", "held_out_cells")]
    content: dict[str, Any] = {
        "confusion.json": {"labels": [ODD, "NK"], "counts": [[3, 1], [0, 2]]},
        "calibration.json": [{"bin_low": 0.5, "bin_high": 1.0, "confidence": 0.9, "accuracy": 0.8, "n": 137}],
        "generation.json": {"per_type": [], "generated_vs_real_2d": points},
    }
    for name, value in content.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    return tmp_path


Plot = Callable[..., Any]
OF_CELLS: list[Plot] = [
    lambda a, **o: cg.pl.rank_curve(a, **o),
    lambda a, **o: cg.pl.rank_curve(a, groupby="truth", **o),
    lambda a, **o: cg.pl.sentence(a, "a", **o),
    lambda a, **o: cg.pl.confusion(a, "truth", **o),
    lambda a, **o: cg.pl.calibration(a, "truth", **o),
    lambda a, **o: cg.pl.embedding(a, **o),
    lambda a, **o: cg.pl.generated(a, a, groupby="truth", **o),
    lambda a, **o: cg.pl.generated(a, a, groupby="truth", kind="map", **o),
]


@pytest.mark.parametrize("plot", OF_CELLS)
def test_every_plot_draws_on_the_given_axes_and_changes_nothing(plot: Plot, labeled: AnnData) -> None:
    before, (figure, ax) = labeled.copy(), pyplot.subplots()
    open_figures = pyplot.get_fignums()  # other tests may have left some
    assert plot(labeled, ax=ax) is ax
    figure.canvas.draw()  # a `$` in a name would fail here
    assert pyplot.get_fignums() == open_figures
    pd.testing.assert_frame_equal(labeled.obs, before.obs)
    assert (labeled.X != before.X).nnz == 0
    assert set(labeled.uns) == set(before.uns)


@pytest.mark.parametrize("plot", OF_CELLS)
def test_every_plot_makes_a_figure_saves_it_and_returns_what_is_wanted(
    plot: Plot, labeled: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new folder" / "plot.png"
    figure = plot(labeled, save=path, return_fig=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]
    assert figure.axes
    shown: list[bool] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(True))
    assert plot(labeled, show=True) is None
    assert shown == [True]


def test_a_format_that_cannot_be_written_is_refused_before_a_file_appears(labeled: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"save must end in one of .*\.pdf.*\.png.*found .*plot\.docx"):
        cg.pl.sentence(labeled, save=tmp_path / "plot.docx")
    assert list(tmp_path.iterdir()) == []


def test_a_sentence_is_drawn_in_its_order_and_ties_are_pale(labeled: AnnData) -> None:
    ax = cg.pl.sentence(labeled, "a")
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names[0] == "MS4A1"
    assert set(names) == {"MS4A1", "CD3E", "LYZ"}
    bars = sorted(ax.patches, key=lambda bar: bar.get_x())
    assert [bar.get_alpha() for bar in bars] == [1.0, 0.45, 0.45]
    assert bars[0].get_height() == pytest.approx(np.log10(1 + 5 / 11 * 1e4), rel=1e-5)
    # the last gene that is drawn is tied with the first that is not
    assert [bar.get_alpha() for bar in cg.pl.sentence(labeled, 0, n_genes=2).patches] == [1.0, 0.45]


def test_an_empty_cell_says_so_and_an_unknown_one_is_refused(labeled: AnnData) -> None:
    assert "expresses no gene" in cg.pl.sentence(labeled, "b").texts[0].get_text()
    with pytest.raises(UnknownNameError, match="unknown cell 'z'"):
        cg.pl.sentence(labeled, "z")
    with pytest.raises(InputError, match="cell 4 is outside of the 4 cells"):
        cg.pl.sentence(labeled, 4)


def test_the_confusion_leaves_out_unlabeled_cells_and_puts_unassigned_last(labeled: AnnData) -> None:
    ax = cg.pl.confusion(labeled, "truth")
    columns = [tick.get_text() for tick in ax.get_xticklabels()]
    assert columns == ["NK", ODD.replace("$", r"\$"), "unassigned"]
    assert len(ax.get_yticklabels()) == 2  # nothing is truly unassigned
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    assert numbers == {(1, 0): "1", (2, 0): "1", (1, 1): "1"}
    np.testing.assert_allclose(ax.images[0].get_array(), [[0, 0.5, 0.5], [0, 1, 0]])


def test_results_are_drawn_from_the_folder_of_an_evaluation(evaluation: Path, tmp_path: Path) -> None:
    assert sorted(text.get_text() for text in cg.pl.confusion(evaluation).texts) == ["1", "2", "3"]
    assert cg.pl.calibration(str(evaluation)).texts[0].get_text() == "ECE 0.100\n137 cells"
    legend = cg.pl.generated(evaluation).get_legend().get_texts()
    assert [text.get_text() for text in legend][1:] == ["real cells", "generated cells"]
    (evaluation / "confusion.json").unlink()
    with pytest.raises(InputError, match=r"holds no confusion\.json; pass the folder"):
        cg.pl.confusion(evaluation)


def test_calibration_bins_best_labels_and_leaves_out_nan(labeled: AnnData) -> None:
    ax = cg.pl.calibration(labeled, "truth", n_bins=10)
    points = ax.collections[-1].get_offsets()
    np.testing.assert_allclose(points, [[0.85, 0], [0.95, 1]])
    assert ax.texts[0].get_text() == "ECE 0.450\n2 cells"


def test_columns_and_keys_that_are_missing_are_named(labeled: AnnData) -> None:
    with pytest.raises(InputError, match="pass truth, the column of obs with the true labels"):
        cg.pl.confusion(labeled)
    with pytest.raises(InputError, match=r"obs has no column 'trutz'.*did you mean 'truth'"):
        cg.pl.confusion(labeled, "trutz")
    with pytest.raises(UnknownNameError, match="unknown column of obs 'sure'"):
        cg.pl.calibration(labeled, "truth", confidence="sure")
    with pytest.raises(InputError, match="obsm has no 'X_pca', found 'X_umap'"):
        cg.pl.embedding(labeled, "X_pca")
    with pytest.raises(InputError, match="has 2 dimensions"):
        cg.pl.embedding(labeled, dimensions=(0, 2))
    with pytest.raises(InputError, match="pass real"):
        cg.pl.generated(labeled)
    other = AnnData(labeled.X, obs=pd.DataFrame({"truth": ["T"] * 4}, index=labeled.obs_names), var=labeled.var)
    with pytest.raises(InputError, match="no cell type is both in"):
        cg.pl.generated(labeled, other, groupby="truth")


def test_confidence_is_opacity_and_unassigned_cells_are_gray(labeled: AnnData) -> None:
    cells = cg.pl.embedding(labeled).collections[0]
    order = np.argsort(cells.get_offsets()[:, 0])  # the last cell has no place
    alpha = cells.get_facecolors()[order, 3]
    assert alpha[0] > alpha[1] > alpha[2] > 0
    assert alpha[-1] == pytest.approx(0.08)  # NaN is no confidence
    red, green, blue, _ = cells.get_facecolors()[order][-1]
    assert max(red, green, blue) - min(red, green, blue) < 0.1
    sizes = cg.pl.embedding(labeled, confidence_as="size").collections[0].get_sizes()[order]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] > 0
    assert len(set(cg.pl.embedding(labeled, confidence=None).collections[0].get_facecolors()[:, 3])) == 1


def test_colors_that_scanpy_keeps_are_used(labeled: AnnData) -> None:
    labeled.uns["truth_colors"] = ["#ff0000", "#0000ff"]
    cells = cg.pl.embedding(labeled, color="truth").collections[0]
    first = cells.get_facecolors()[np.argsort(cells.get_offsets()[:, 0])][0]
    np.testing.assert_allclose(first[:3], [0, 0, 1])  # the categories are sorted: NK, then the other


def test_markers_are_compared_at_the_length_of_the_generated_sentences() -> None:
    """Real cells express all four genes, generated ones hold one; only the first of each real cell may count."""
    real = AnnData(
        csr_matrix(np.array([[9, 5, 2, 1], [8, 5, 2, 1], [1, 2, 5, 9], [1, 2, 5, 8]], np.float32)),
        obs=pd.DataFrame({"cell_type": list("AABB")}, index=list("abcd")),
        var=pd.DataFrame(index=["G1", "G2", "G3", "G4"]),
    )
    new = AnnData(
        csr_matrix(np.array([[1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1.5]], np.float32)),
        obs=pd.DataFrame({"cell_type": list("AAB")}, index=list("xyz")),
        var=real.var,
    )
    ax = cg.pl.generated(new, real, n_markers=1)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["G1", "G4"]
    real_points, new_points = ax.collections[1].get_offsets(), ax.collections[2].get_offsets()
    np.testing.assert_allclose(real_points[:, 0], [1, 1])
    np.testing.assert_allclose(new_points[:, 0], [0.5, 1])
    assert len(cg.pl.generated(new, real, markers={"A": ["G2"]}).get_yticklabels()) == 1
    with pytest.raises(UnknownNameError, match="unknown gene of the generated cells 'G9'"):
        cg.pl.generated(new, real, markers={"A": ["G9"]})


def test_markers_of_one_generated_type_are_chosen_against_all_real_types() -> None:
    """Every cell has the gene ALL; without the other type it would be as good a marker as the one of B."""
    real = AnnData(
        csr_matrix(np.array([[9, 5, 0], [8, 5, 0], [9, 0, 5], [8, 0, 5]], np.float32)),
        obs=pd.DataFrame({"cell_type": list("AABB")}, index=list("abcd")),
        var=pd.DataFrame(index=["ALL", "OF_A", "OF_B"]),
    )
    ax = cg.pl.generated(real[2:], real, n_markers=1)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["OF_B"]


def test_a_rank_curve_is_drawn_at_the_lengths_of_the_cells(labeled: AnnData) -> None:
    from cytoglot.sentence.rank_curve import PolynomialCurve

    options: dict[str, Any] = {"floor": 0.0, "max_rank": 4, "length_range": (1.0, 100.0), "n_pairs": 9}
    curve = PolynomialCurve(kind="line_length", coefficients=(3.0, -1.0, 0.5, 0.0), **options)
    lines = cg.pl.rank_curve(labeled, model=curve).get_lines()
    assert len(lines) == 3
    assert [line.get_ydata()[0] for line in lines] == pytest.approx(
        [3 + 0.5 * np.log10(n) for n in np.percentile([3, 2, 2], (10, 50, 90))], rel=1e-5
    )
    alone = cg.pl.rank_curve(PolynomialCurve(kind="line", coefficients=(3.0, -1.0), **options)).get_lines()
    assert len(alone) == 1
    np.testing.assert_allclose(alone[0].get_ydata()[[0, -1]], [3, 3 - np.log10(4)], rtol=1e-5)


def test_a_model_is_drawn_from_its_folder(tiny_model_folder: Path) -> None:
    assert cg.pl.rank_curve(tiny_model_folder).get_lines()


def test_nothing_to_draw_is_no_error(labeled: AnnData) -> None:
    none = labeled[:0].copy()
    for plot in (
        lambda: cg.pl.embedding(none),
        lambda: cg.pl.confusion(none, "truth"),
        lambda: cg.pl.calibration(none, "truth"),
    ):
        ax = plot()
        ax.get_figure().canvas.draw()
        assert not any(len(points.get_offsets()) for points in ax.collections if hasattr(points, "get_offsets"))


def test_colors_of_ones_own_need_none_for_cells_without_a_label(labeled: AnnData) -> None:
    labeled.obs["mine"] = pd.Series(["T", None, "T", "unassigned"], index=labeled.obs_names)
    cg.pl.embedding(labeled, color="mine", colors={"T": "red"})
    with pytest.raises(InputError, match="colors has no color for 'T'"):
        cg.pl.embedding(labeled, color="mine", colors={"B": "red"})


def test_a_cell_name_that_is_there_twice_is_refused(labeled: AnnData) -> None:
    labeled.obs_names = ["a", "a", "b", "c"]
    with pytest.raises(InputError, match="2 cells are called 'a'; pass the row of one, such as 0"):
        cg.pl.sentence(labeled, "a")


def test_thirty_colors_can_be_told_apart() -> None:
    def oklab(rgb_n3: np.ndarray) -> np.ndarray:  # https://bottosson.github.io/posts/oklab
        linear = np.where(rgb_n3 <= 0.04045, rgb_n3 / 12.92, ((rgb_n3 + 0.055) / 1.055) ** 2.4)
        cones = (
            linear
            @ np.array(
                [
                    [0.41222147, 0.53633254, 0.05144599],
                    [0.2119035, 0.6806995, 0.10739696],
                    [0.08830246, 0.28171884, 0.6299787],
                ]
            ).T
        )
        mix = [
            [0.21045426, 0.7936178, -0.00407205],
            [1.9779985, -2.4285922, 0.4505937],
            [0.0259040, 0.7827718, -0.8086758],
        ]
        return np.cbrt(cones) @ np.array(mix).T

    from matplotlib.colors import to_rgb

    place = oklab(np.array([to_rgb(color) for color in (*PALETTE, "white")]))
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1) + np.eye(len(place))
    assert len(PALETTE) == 30
    assert apart.min() > 0.095
    assert apart[:10, :10].min() > 0.15
    assert len(set(colors_of(map(str, range(30))).values())) == 31  # and gray


def test_points_of_several_names_lie_in_mixed_order() -> None:
    _, ax = pyplot.subplots()
    draw.points(ax, range(100), range(100), ["A"] * 50 + ["B"] * 50)
    shades = ax.collections[0].get_facecolors()[:, 0]
    assert 20 < np.abs(np.diff(shades)).astype(bool).sum() < 80


def test_matplotlib_is_named_where_it_is_missing(labeled: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("cytoglot.extras.importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match=r"a plot needs 'matplotlib'.*pip install 'cytoglot\[report\]'"):
        cg.pl.confusion(labeled, "truth")


def test_importing_the_plots_loads_no_plotting_library_and_no_model() -> None:
    code = "import sys, cytoglot as cg; cg.pl; print({'matplotlib', 'torch', 'anndata', 'numba'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
