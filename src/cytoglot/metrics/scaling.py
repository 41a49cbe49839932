"""Power laws of loss against model size and amount of data.

Axes: r runs of a sweep, u units that were held out (cells, donors), b resamples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Floats = NDArray[np.float64]

_HUBER = 1e-3
_STARTS = (0.1, 0.3, 0.8)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """loss = floor + size_coefficient · (N / n_unit)^-size_exponent + data_coefficient · (D / d_unit)^-data_exponent.

    N is the size of the model, D the amount of data; the units are the geometric means over the runs. A term is 0, and
    its exponent NaN, where the runs do not vary in it.
    """

    floor: float
    size_coefficient: float
    size_exponent: float
    data_coefficient: float
    data_exponent: float
    n_unit: float
    d_unit: float

    def __call__(self, n: Floats, d: Floats) -> Floats:
        """Return the loss at each size and amount."""
        loss = np.full(np.broadcast_shapes(np.shape(n), np.shape(d)), self.floor)
        if self.size_coefficient:
            loss = loss + self.size_coefficient * (np.asarray(n) / self.n_unit) ** -self.size_exponent
        if self.data_coefficient:
            loss = loss + self.data_coefficient * (np.asarray(d) / self.d_unit) ** -self.data_exponent
        return loss

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers by name, None for NaN."""
        return {name: None if np.isnan(value) else float(value) for name, value in asdict(self).items()}


def fit_power_law(n_r: Floats, d_r: Floats, loss_r: Floats, *, start: PowerLaw | None = None) -> PowerLaw:
    """Fit the law by the Huber loss of log residuals, from many starts :cite:p:`hoffmann2022chinchilla`.

    Parameters
    ----------
    n_r, d_r
        Size and amount of each run, above 0.
    loss_r
        Its held-out loss, above 0, in any unit.
    start
        Start from this law alone, as for resamples of the runs that it was fitted to.

    Raises
    ------
    ValueError
        The arrays differ in length or hold values that are not above 0, or there are fewer runs than parameters: a
        varying axis needs three values at least, and brings two parameters beside the floor.
    """
    n_r, d_r, loss_r = (np.asarray(values, dtype=np.float64) for values in (n_r, d_r, loss_r))
    if not len(n_r) == len(d_r) == len(loss_r):
        raise ValueError(f"need one size, amount and loss per run, found {len(n_r)}, {len(d_r)} and {len(loss_r)}")
    for name, values in (("sizes", n_r), ("amounts", d_r), ("losses", loss_r)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be finite and above 0, found {values.min()} to {values.max()}")
    n_values = np.array([len(np.unique(values)) for values in (n_r, d_r)])
    varies = n_values > 1
    n_terms = int(varies.sum())
    if not n_terms or n_values[varies].min() < 3 or len(loss_r) < 1 + 2 * n_terms:
        raise ValueError(
            f"a power law needs at least three sizes or amounts, found {n_values[0]} sizes and {n_values[1]} amounts "
            f"in {len(loss_r)} runs"
        )
    units = [float(np.exp(np.log(values).mean())) for values in (n_r, d_r)]
    x_ra = np.stack([-np.log(values / unit) for values, unit in zip((n_r, d_r), units, strict=True)], axis=1)[:, varies]
    log_loss_r = np.log(loss_r)
    # Parameters are the log floor, then log coefficient and exponent of each term.
    if start is not None:
        terms = np.array(
            [(start.size_coefficient, start.size_exponent), (start.data_coefficient, start.data_exponent)]
        )[varies]
        starts = [np.array([np.log(start.floor), *(v for c, e in terms for v in (np.log(c), e))])]
    else:
        lowest = log_loss_r.min()
        starts = [
            np.array([lowest + np.log(share), *([lowest + np.log((1 - share) / n_terms), exponent] * n_terms)])
            for share in (0.2, 0.6, 0.95)
            for exponent in _STARTS
        ]
    best = min(
        (minimize(_objective, first, args=(x_ra, log_loss_r), method="L-BFGS-B", jac=True) for first in starts),
        key=lambda found: float(found.fun),
    ).x
    coefficients, exponents = np.zeros(2), np.full(2, np.nan)
    coefficients[varies], exponents[varies] = np.exp(best[1::2]), best[2::2]
    return PowerLaw(
        floor=float(np.exp(best[0])),
        size_coefficient=float(coefficients[0]),
        size_exponent=float(exponents[0]),
        data_coefficient=float(coefficients[1]),
        data_exponent=float(exponents[1]),
        n_unit=units[0],
        d_unit=units[1],
    )


def _objective(parameters: Floats, x_ra: Floats, log_loss_r: Floats) -> tuple[float, Floats]:
    """Return the summed Huber loss and its gradient; every term of the law is an exponential of a line."""
    floor, coefficients_a, exponents_a = parameters[0], parameters[1::2], parameters[2::2]
    terms_rk = np.concatenate([np.full((len(x_ra), 1), floor), coefficients_a + exponents_a * x_ra], axis=1)
    predicted_r = logsumexp(terms_rk, axis=1)
    residual_r = predicted_r - log_loss_r
    inside_r = np.abs(residual_r) <= _HUBER
    value = np.where(inside_r, 0.5 * residual_r**2, _HUBER * (np.abs(residual_r) - 0.5 * _HUBER)).sum()
    slope_r = np.where(inside_r, residual_r, _HUBER * np.sign(residual_r))
    share_rk = np.exp(terms_rk - predicted_r[:, None])
    gradient = np.empty_like(parameters)
    gradient[0] = slope_r @ share_rk[:, 0]
    gradient[1::2] = slope_r @ share_rk[:, 1:]
    gradient[2::2] = slope_r @ (share_rk[:, 1:] * x_ra)
    scale = 1 / _HUBER**2  # the optimizer's tolerances are for objectives near 1
    return float(value * scale), gradient * scale


@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """A law with its uncertainty."""

    law: PowerLaw
    intervals: Mapping[str, tuple[float, float]]
    """parameter → 95 % interval over resamples of the held-out units and of the seeds"""
    leave_one_out: Mapping[str, tuple[float, float]]
    """parameter → its range when one run at a time is left out: what the interval does not know"""
    r2_log: float
    """share of the variance of log loss over the runs that the law explains"""


def fit_ladder(
    n_r: Floats,
    d_r: Floats,
    loss_ru: Floats,
    weight_u: Floats,
    *,
    seed_r: Sequence[int] | None = None,
    n_resamples: int = 200,
    seed: int = 0,
) -> SweepFit:
    """Fit the law of a sweep's runs, with intervals by resampling what was held out.

    Parameters
    ----------
    loss_ru
        Summed loss of each run on each held-out unit, shape (r, u); all runs are judged on the same units.
    weight_u
        What a unit's sum is made of (its genes): the loss of a run is Σ loss / Σ weight.
    seed_r
        Seed of each run; runs that differ in it alone are drawn from as well.

    Raises
    ------
    ValueError
        As `fit_power_law`, or shapes that do not agree.
    """
    if loss_ru.shape != (len(n_r), len(weight_u)):
        raise ValueError(f"expected losses of shape {(len(n_r), len(weight_u))}, found {loss_ru.shape}")
    loss_r = loss_ru.sum(axis=1) / weight_u.sum()
    law = fit_power_law(n_r, d_r, loss_r)
    rng = np.random.default_rng(seed)
    group_r = np.arange(len(n_r))  # the runs of each size and amount; one run each where there are no seeds
    if seed_r is not None:
        group_r = np.unique(np.stack([n_r, d_r]), axis=1, return_inverse=True)[1].ravel()
    replicates = [np.flatnonzero(group_r == group) for group in range(int(group_r.max()) + 1)]
    fits = []
    for _ in range(n_resamples):
        units = rng.integers(len(weight_u), size=len(weight_u))
        runs = np.array([rng.choice(same) for same in replicates for _ in same])
        loss = loss_ru[runs][:, units].sum(axis=1) / weight_u[units].sum()
        fits.append(fit_power_law(n_r[runs], d_r[runs], loss, start=law))
    left_out = []
    for run in range(len(n_r)):
        kept = np.arange(len(n_r)) != run
        with contextlib.suppress(ValueError):  # too few runs are left
            left_out.append(fit_power_law(n_r[kept], d_r[kept], loss_r[kept]))
    predicted, observed = np.log(law(n_r, d_r)), np.log(loss_r)
    return SweepFit(
        law=law,
        intervals=_spread(fits, lambda values: np.nanquantile(values, [0.025, 0.975])),
        leave_one_out=_spread(left_out, lambda values: np.array([values.min(), values.max()])),
        r2_log=float(1 - ((observed - predicted) ** 2).sum() / max(((observed - observed.mean()) ** 2).sum(), 1e-300)),
    )


def _spread(laws: Sequence[PowerLaw], summary: Callable[[Floats], Floats]) -> dict[str, tuple[float, float]]:
    found = {}
    for name in ("floor", "size_exponent", "data_exponent"):
        values = np.array([getattr(law, name) for law in laws], dtype=np.float64)
        if len(values) and not np.isnan(values).all():
            low, high = summary(values)
            found[name] = (float(low), float(high))
    return found
