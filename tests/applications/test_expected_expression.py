"""Expected ranks and expression: consistent with the cells that the model writes, and with one another."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cytoglot.applications.expected_expression import expected_expression
from cytoglot.applications.generation import generate
from cytoglot.cell_model.load import CellModel
from cytoglot.cli.main import run
from cytoglot.errors import InputError, UnknownNameError


@pytest.fixture(scope="module")
def expected(tiny_model: CellModel) -> pd.DataFrame:
    return expected_expression(tiny_model, "type A", n=200, n_genes=12, seed=1)


def test_it_is_the_mean_of_many_written_cells(expected: pd.DataFrame, tiny_model: CellModel) -> None:
    cells = generate(tiny_model, "type A", n=400, n_genes=12, seed=7)
    ranks, values = cells.layers["rank"].toarray(), cells.X.toarray()
    present = (ranks > 0).mean(axis=0)
    wanted = expected["p_present"]  # what the counts of 400 cells scatter around
    error = np.sqrt(wanted * (1 - wanted) / 400 + expected["p_present_error"] ** 2) + 1e-3
    assert (np.abs(expected["p_present"] - present) < 4.5 * error).all()
    spread = np.sqrt(values.var(axis=0) / 400 + expected["expression_error"] ** 2) + 1e-3
    common = present > 0.05  # the mean of a few cells that have a gene is not normal
    assert common.sum() > 15
    assert (np.abs(expected["expression_mean"] - values.mean(axis=0)) < 4.5 * spread)[common].all()
    # Of the cells, a tenth at most lie outside of the interval, up to chance.
    outside = (values < expected["expression_low"].to_numpy() - 1e-6) | (
        values > expected["expression_high"].to_numpy() + 1e-6
    )
    assert outside.mean(axis=0).max() < 0.1 + 4.5 * np.sqrt(0.09 / 400) + 0.02


def test_columns_agree_with_each_other(expected: pd.DataFrame, tiny_model: CellModel) -> None:
    assert tuple(expected["gene"]) == tiny_model.spec.vocabulary.symbols
    assert expected["p_present"].sum() == pytest.approx(12, abs=0.3)
    assert expected["p_present"].between(0, 1).all()
    named = expected[expected["p_present"] > 0]
    assert named["rank_low"].between(1, 12).all()
    assert (named["rank_low"] <= named["rank_high"]).all()
    assert named["rank_mean"].between(1, 12.5).all()
    assert (expected["expression_low"] <= expected["expression_high"]).all()
    assert not expected.drop(columns=["rank_mean", "rank_low", "rank_high", "rank_error"]).isna().any().any()


def test_more_sentences_make_errors_smaller_and_leave_intervals(tiny_model: CellModel) -> None:
    few = expected_expression(tiny_model, "type B", n=32, n_genes=6, seed=0)
    many = expected_expression(tiny_model, "type B", n=512, n_genes=6, seed=0)
    assert many["p_present_error"].mean() < 0.4 * few["p_present_error"].mean()
    widths = [(one["expression_high"] - one["expression_low"]).mean() for one in (few, many)]
    assert widths[0] == pytest.approx(widths[1], rel=0.3)


def test_lengths_are_those_of_the_type_when_none_is_asked_for(tiny_model: CellModel) -> None:
    expected = expected_expression(tiny_model, "type A", n=32, seed=0)
    low, *_, high = tiny_model.spec.words_per_label["type A"]
    assert low - 0.5 <= expected["p_present"].sum() <= high + 0.5
    pd.testing.assert_frame_equal(expected, expected_expression(tiny_model, "type A", n=32, seed=0))


def test_faults_are_named(tiny_model: CellModel) -> None:
    with pytest.raises(UnknownNameError, match="type Q"):
        expected_expression(tiny_model, "type Q")
    with pytest.raises(InputError, match=r"an interval in \(0, 1\), found 8 and 90"):
        expected_expression(tiny_model, "type A", interval=90)


def test_the_command_writes_the_table(tiny_model_folder, tmp_path, capsys) -> None:
    output = tmp_path / "expected.parquet"
    arguments = ["generate", "--model", str(tiny_model_folder), "--cell-type", "type A", "-n", "32", "--n-genes", "5"]
    assert run([*arguments, "--expected", "-o", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    table = pd.read_parquet(output)
    assert list(table.columns[:8]) == [
        "gene",
        "p_present",
        "rank_mean",
        "rank_low",
        "rank_high",
        "expression_mean",
        "expression_low",
        "expression_high",
    ]
    assert told["highest"][0]["gene"] == table.nlargest(1, "expression_mean")["gene"].iloc[0]
    assert told["expected_genes_of_a_sentence"] == pytest.approx(5, abs=0.3)
    assert run([*arguments, "--expected", "-o", str(tmp_path / "cells.h5ad")]) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err
