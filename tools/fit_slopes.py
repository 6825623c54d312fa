"""Fit the polynomials of `pyrovae/distributions/special/surfaces.py` to the quadratures.

The pathwise derivatives of log-Gamma and Student's t draws are smooth surfaces once their limits
and their logarithms are taken out (the module's docstring says how). Here each is evaluated by a
quadrature finer than any the package uses, on the whole rectangle of the two coordinates, and
fitted by least squares in relative error, in Chebyshev polynomials, which are then written out in
powers: the coefficients fall fast enough for that to be stable.

    python tools/fit_slopes.py > pyrovae/distributions/special/surface_tables.py
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np
import torch
from numpy.polynomial import chebyshev

from pyrovae.distributions.special import incomplete_gamma, student
from pyrovae.distributions.special.quadrature import Rule
from pyrovae.distributions.special.stirling import log1p_minus
from pyrovae.distributions.special.surfaces import GAMMA_RANGE, GAMMA_RATE

ORACLE = Rule(48, 44.0)
STUDENT_RANGE = -40.0, 45.0
PIECE = 20_000
FALL = 2.4  # of Chebyshev coefficients whose powers have coefficients of one size


def points(n: int, low: float, high: float) -> np.ndarray:
    """Chebyshev points."""
    return low + (high - low) * (1 - np.cos(np.pi * (np.arange(n) + 0.5) / n)) / 2


def powers(coefficients: np.ndarray) -> np.ndarray:
    """A two-dimensional Chebyshev series, `[i, j]`, as one in powers."""
    rows = np.array([chebyshev.cheb2poly(row) for row in coefficients])
    return np.array([chebyshev.cheb2poly(column) for column in rows.T]).T


def by_quadrature(slope: Callable[..., torch.Tensor], *at: np.ndarray) -> np.ndarray:
    """A slope of the package, in pieces."""
    pieces = zip(*(np.array_split(x, len(x) // PIECE + 1) for x in at), strict=True)
    return np.concatenate([slope(*map(torch.tensor, piece)).numpy() for piece in pieces])


def solve(
    features: np.ndarray,
    rest: np.ndarray,
    size: np.ndarray,
    fall: np.ndarray | float = 1.0,
    rcond: float = 1e-14,
) -> tuple[np.ndarray, float]:
    """Least squares in relative error; the coefficients, and the greatest error left.

    Of the many solutions that are as good, the one that is small in proportion to `fall`.
    """
    matrix, target = features * fall / size[:, None], rest / size
    found, *_ = np.linalg.lstsq(matrix, target, rcond=rcond)
    return found * fall, float(np.abs(matrix @ found - target).max())


def grid(values: np.ndarray, shapes: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a value and of s = 1/(1 + a), flat."""
    pairs = np.meshgrid(values, points(shapes, 0.0, 1.0), indexing="ij")
    return pairs[0].ravel(), pairs[1].ravel()


def fit_gamma(degree: int, order: int) -> tuple[np.ndarray, float]:
    """G: a dy/da less softplus(-m), over sigmoid(-m), in x, which is affine in tanh(k m)."""
    low, high = (np.tanh(GAMMA_RATE * end) for end in GAMMA_RANGE)
    x, s = grid(points(2 * degree + 16, -1.0, 1.0), 40)
    m = np.arctanh((low + high + (high - low) * x) / 2) / GAMMA_RATE
    a = (1 - s) / s
    h = a * by_quadrature(lambda a, y: incomplete_gamma._tail(a, y, ORACLE)[1], a, m - np.log(s))
    basis = chebyshev.chebvander2d(x, 2 * s - 1, [degree, order]) / (1 + np.exp(m))[:, None]
    found, error = solve(basis, h - np.logaddexp(0, -m), h)
    return powers(found.reshape(degree + 1, order + 1)), error


def fit_student(degree: int, order: int, rcond: float) -> tuple[np.ndarray, float]:
    """-nu dlog|t|/dnu less its limit, over s: [A and B, powers of 2s - 1, powers of x]."""
    low, high = STUDENT_RANGE
    inner = 6 * np.arctanh(points(80, np.tanh(low / 6), np.tanh(high / 6)))
    y, s = grid(np.concatenate([inner, np.linspace(low, high, 40)]), 44)
    df = (1 - s) / s
    # there the package's own expansion at large df is only good to 2e-10
    good = (df < 1e3) | (df > 1e4) | (y > -9)
    y, s, df = y[good], s[good], df[good]
    h = by_quadrature(
        lambda df, log_abs: -df * student._slope(df, log_abs, ORACLE),
        df,
        0.5 * (y + np.log(df)),
    )
    w = torch.tensor(np.exp(y))
    log, mean = torch.log1p(w).numpy(), (torch.log1p(w) / w).numpy()
    limit = 0.5 * (log + (log1p_minus(w) / w).numpy())
    basis = chebyshev.chebvander2d(2 * s - 1, np.tanh(y / 2), [order, degree]) * s[:, None]
    basis = np.concatenate([basis, basis * mean[:, None]], 1)
    fall = FALL ** -np.add.outer(np.arange(order + 1.0), np.arange(degree + 1.0)).ravel()
    found, error = solve(basis, h - limit, h, np.concatenate([fall, fall]), rcond)
    tables = found.reshape(2, order + 1, degree + 1)
    return np.array([powers(table) for table in tables]), error


def _log_norm(a: mp.mpf) -> mp.mpf:
    return mp.loggamma(1 + a) - a * mp.log1p(a) + a - mp.log1p(a) / 2


def _student_norm(df: mp.mpf) -> mp.mpf:
    half = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df / 2) / 2
    return half + mp.log1p(1 / df) / 2


def _student_norm_slope(df: mp.mpf) -> mp.mpf:
    return df * (1 + df) * (mp.psi(0, (df + 1) / 2) - mp.psi(0, df / 2) - 1 / df) / 2


CURVES = {
    "LOG_NORM": (_log_norm, lambda a: mp.psi(0, 1 + a) - mp.log1p(a)),
    "STUDENT_NORM": (_student_norm, _student_norm_slope),
}


CLOSE_DEGREE = {"LOG_NORM": 19, "STUDENT_NORM": 31}


def fit_curve(curve: Callable[[mp.mpf], mp.mpf], degree: int) -> tuple[np.ndarray, float]:
    """A function of a in powers of sigma = 2/(1 + a) - 1, interpolated at Chebyshev points."""
    with mp.workdps(40):

        def at(sigma: np.ndarray) -> np.ndarray:
            return np.array([float(curve(2 / (1 + mp.mpf(float(v))) - 1)) for v in sigma])

        found = chebyshev.chebinterpolate(at, degree)
        grid = np.linspace(-0.9999, 0.9999, 400)
        error = np.abs(chebyshev.chebval(grid, found) - at(grid)).max()
    return chebyshev.cheb2poly(found), float(error)


def fit_curves(name: str, degree: int) -> tuple[np.ndarray, float]:
    """The curves that are asked for together, as rows."""
    fits = [fit_curve(curve, degree) for curve in CURVES[name]]
    return np.array([found for found, _ in fits]), max(error for _, error in fits)


def show(name: str, table: np.ndarray, error: float) -> None:
    """Print one table as Python."""
    print(f"# greatest error of the fit: {error:.1e}\n{name} = {written(table)}")


def written(table: np.ndarray, indent: str = "") -> str:
    """An array as nested tuples, a row a line."""
    if table.ndim == 1:
        return "(" + ", ".join(f"{v:.17g}" for v in table) + ",)"
    inner = indent + "    "
    rows = "".join(f"{inner}{written(row, inner)},\n" for row in table)
    return f"(\n{rows}{indent})"


def main() -> None:
    """Print the module."""
    print('"""Coefficients, written by tools/fit_slopes.py; `surfaces` says of what."""\n')
    print("# fmt: off\n# ruff: noqa: E501")
    show("GAMMA", *fit_gamma(19, 7))
    show("GAMMA_64", *fit_gamma(35, 13))
    show("STUDENT", *fit_student(5, 9, 1e-9))
    show("STUDENT_64", *fit_student(13, 22, 1e-14))
    for name in CURVES:
        show(name, *fit_curves(name, 11))
        show(f"{name}_64", *fit_curves(name, CLOSE_DEGREE[name]))


if __name__ == "__main__":
    main()
