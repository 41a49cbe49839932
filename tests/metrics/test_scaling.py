"""A law that made the numbers is found again; too few runs are refused; intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from cytoglot.metrics.scaling import PowerLaw, fit_ladder, fit_power_law


def sweep() -> tuple[np.ndarray, np.ndarray]:
    sizes, amounts = np.array([1e4, 4e4, 2e5, 1e6]), np.array([300.0, 1000.0, 5000.0])
    n, d = np.meshgrid(sizes, amounts)
    return n.ravel(), d.ravel()


def law_of(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.7 + 40 * n**-0.4 + 12 * d**-0.3


def test_a_law_without_noise_is_found_again() -> None:
    n, d = sweep()
    law = fit_power_law(n, d, law_of(n, d))
    assert law.floor == pytest.approx(1.7, rel=0.02)
    assert law.size_exponent == pytest.approx(0.4, rel=0.03)
    assert law.data_exponent == pytest.approx(0.3, rel=0.03)
    np.testing.assert_allclose(law(n, d), law_of(n, d), rtol=1e-3)


def test_the_law_speaks_of_sizes_that_were_not_run() -> None:
    n, d = sweep()
    law = fit_power_law(n, d, law_of(n, d))
    np.testing.assert_allclose(law(np.array([3e6]), np.array([20_000.0])), law_of(np.array([3e6]), 20_000.0), rtol=0.02)


def test_an_axis_that_does_not_vary_has_no_term() -> None:
    n = np.array([1e4, 4e4, 2e5, 1e6])
    law = fit_power_law(n, np.full(4, 500.0), 2 + 30 * n**-0.3)
    assert law.data_coefficient == 0
    assert np.isnan(law.data_exponent)
    assert law.size_exponent == pytest.approx(0.3, rel=0.05)
    assert law.to_dict()["data_exponent"] is None


@pytest.mark.parametrize(
    ("n", "d", "loss", "message"),
    [
        ([1e4, 1e5], [10, 10], [2, 1], "at least three sizes or amounts, found 2 sizes and 1 amounts"),
        ([1, 2, 3], [1, 1, 1], [1, 0, 1], "losses must be finite and above 0"),
        ([1, 2, 3], [1, 1], [1, 1, 1], "one size, amount and loss per run"),
        ([1, 2, 3, 1], [1, 2, 3, 3], [1, 1, 1, 1], "in 4 runs"),
    ],
)
def test_what_cannot_be_fitted_is_refused(n: list[float], d: list[float], loss: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(np.array(n, float), np.array(d, float), np.array(loss, float))


@pytest.mark.slow
def test_intervals_cover_the_truth_and_shrink_with_the_held_out_units() -> None:
    n, d = sweep()
    rng = np.random.default_rng(0)

    def width(n_units: int) -> tuple[float, tuple[float, float]]:
        # Every unit has a difficulty of its own, the same for all runs, and noise of each run.
        difficulty_u = rng.normal(1, 0.1, n_units)
        loss_ru = 50 * law_of(n, d)[:, None] * difficulty_u + rng.normal(0, 0.5, (len(n), n_units))
        fit = fit_ladder(n, d, loss_ru, np.full(n_units, 50.0), n_resamples=30)
        low, high = fit.intervals["size_exponent"]
        assert fit.r2_log > 0.99
        assert fit.leave_one_out["size_exponent"][0] <= fit.law.size_exponent <= fit.leave_one_out["size_exponent"][1]
        return high - low, (low, high)

    few, (low, high) = width(20)
    many, _ = width(2000)
    assert many < few
    assert low <= 0.4 <= high


@pytest.mark.slow
def test_seeds_of_one_place_are_drawn_from() -> None:
    n, d = sweep()
    n2, d2, seeds = np.tile(n, 2), np.tile(d, 2), [0] * len(n) + [1] * len(n)
    rng = np.random.default_rng(1)
    loss_r1 = (law_of(n2, d2) * np.exp(rng.normal(0, 0.02, len(n2))))[:, None]
    without = fit_ladder(n2, d2, loss_r1, np.ones(1), n_resamples=20)
    drawn = fit_ladder(n2, d2, loss_r1, np.ones(1), seed_r=seeds, n_resamples=20)
    assert without.intervals["floor"][0] == pytest.approx(without.intervals["floor"][1], rel=1e-3)  # one unit, no seeds
    assert drawn.intervals["floor"][1] > drawn.intervals["floor"][0]


def test_a_law_is_a_function_of_arrays() -> None:
    law = PowerLaw(
        floor=1, size_coefficient=2, size_exponent=1, data_coefficient=0, data_exponent=np.nan, n_unit=10, d_unit=1
    )
    np.testing.assert_allclose(law(np.array([10.0, 20.0]), np.array([1.0, 5.0])), [3, 2])
