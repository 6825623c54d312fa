"""Fit the polynomials of `pyrovae/distributions/special/surfaces.py` to the quadratures.

The pathwise derivatives of log-Gamma and Student's t draws are smooth surfaces once their limits
are taken out (the module's docstring says how). Here each is evaluated by the finest quadrature at
Chebyshev points and fitted by least squares in relative error, in Chebyshev polynomials, which are
then written out in powers: the coefficients fall fast enough for that to be stable.

    python tools/fit_slopes.py > pyrovae/distributions/special/surface_tables.py
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np
import scipy.special as sc
import torch
from numpy.polynomial import chebyshev

from pyrovae.distributions.special import incomplete_gamma, student
from pyrovae.distributions.special.quadrature import FINE

GAMMA_RATE, STUDENT_RATE = 0.17, 0.23
GAMMA_RANGE = -18.0, 3.6


def points(n: int, low: float, high: float) -> np.ndarray:
    """Chebyshev points."""
    return low + (high - low) * (1 - np.cos(np.pi * (np.arange(n) + 0.5) / n)) / 2


def powers(coefficients: np.ndarray) -> np.ndarray:
    """A two-dimensional Chebyshev series, `[i, j]`, as one in powers."""
    rows = np.array([chebyshev.cheb2poly(row) for row in coefficients])
    return np.array([chebyshev.cheb2poly(column) for column in rows.T]).T


def solve(features: np.ndarray, rest: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares in relative error; the coefficients, and the greatest error left."""
    matrix, target = features / size[:, None], rest / size
    found, *_ = np.linalg.lstsq(matrix, target, rcond=1e-14)
    return found, float(np.abs(matrix @ found - target).max())


def fit_gamma(degree: int, order: int) -> tuple[np.ndarray, float]:
    """H = a dy/da less softplus(-m), over sigmoid(-m), in x = tanh(k m) and sigma."""
    m, s = np.meshgrid(points(120, *GAMMA_RANGE), points(40, 0.0, 1.0), indexing="ij")
    a, y = (1 - s) / s, m + np.log(1 / s)
    keep = (sc.gammainc(a, np.exp(y)) > 1e-11) & (sc.gammaincc(a, np.exp(y)) > 1e-11)
    m, s, a, y = m[keep], s[keep], a[keep], y[keep]
    slope = incomplete_gamma._tail(torch.tensor(a), torch.tensor(y), FINE)[1].numpy()
    h, weight = a * slope, 1 / (1 + np.exp(m))
    basis = chebyshev.chebvander2d(np.tanh(GAMMA_RATE * m), 2 * s - 1, [degree, order])
    found, error = solve(basis * weight[:, None], h - np.logaddexp(0, -m), h)
    return powers(found.reshape(degree + 1, order + 1)), error


def fit_student(degree: int, order: int) -> tuple[np.ndarray, np.ndarray, float]:
    """-nu dlog|t|/dnu less softplus(y)/2: s times a surface, and sigmoid(y) times a curve."""
    ends = np.concatenate([points(160, -12, 12), np.linspace(-45, 45, 60)])
    near = np.concatenate([points(40, 0.0, 1.0), np.geomspace(1e-6, 1e-3, 12)])
    y, s = np.meshgrid(np.unique(ends), near, indexing="ij")
    df = (1 - s) / s
    keep = (y + np.log(df) > -12) & (df * np.logaddexp(0, y) < 60)
    y, s, df = y[keep], s[keep], df[keep]
    log_abs = 0.5 * (y + np.log(df))
    h = -df * student._slope(torch.tensor(df), torch.tensor(log_abs), FINE).numpy()
    columns = chebyshev.chebvander(2 * s - 1, order) * s[:, None]
    columns = np.concatenate([columns, 1 / (1 + np.exp(-y))[:, None]], 1)
    rows = chebyshev.chebvander(np.tanh(STUDENT_RATE * y), degree)
    basis = (rows[:, :, None] * columns[:, None, :]).reshape(len(y), -1)
    found, error = solve(basis, h - 0.5 * np.logaddexp(0, y), h)
    found = found.reshape(degree + 1, order + 2)
    return powers(found[:, :-1]), chebyshev.cheb2poly(found[:, -1]), error


def _log_norm(a: mp.mpf) -> mp.mpf:
    return mp.loggamma(1 + a) - a * mp.log1p(a) + a - mp.log1p(a) / 2


def _student_norm(df: mp.mpf) -> mp.mpf:
    half = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df / 2) / 2
    return half + mp.log1p(1 / df) / 2


def _student_norm_slope(df: mp.mpf) -> mp.mpf:
    return df * (1 + df) * (mp.psi(0, (df + 1) / 2) - mp.psi(0, df / 2) - 1 / df) / 2


CURVES = {
    "LOG_NORM": _log_norm,
    "LOG_NORM_SLOPE": lambda a: mp.psi(0, 1 + a) - mp.log1p(a),
    "STUDENT_NORM": _student_norm,
    "STUDENT_NORM_SLOPE": _student_norm_slope,
}


def fit_curve(curve: Callable[[mp.mpf], mp.mpf], degree: int) -> tuple[np.ndarray, float]:
    """A function of a in powers of sigma = 2/(1 + a) - 1, interpolated at Chebyshev points."""
    with mp.workdps(40):

        def at(sigma: np.ndarray) -> np.ndarray:
            return np.array([float(curve(2 / (1 + mp.mpf(float(v))) - 1)) for v in sigma])

        found = chebyshev.chebinterpolate(at, degree)
        grid = np.linspace(-0.9999, 0.9999, 400)
        error = np.abs(chebyshev.chebval(grid, found) - at(grid)).max()
    return chebyshev.cheb2poly(found), float(error)


def show(name: str, table: np.ndarray, error: float) -> None:
    """Print one table as Python."""
    print(f"# greatest error of the fit: {error:.1e}\n{name} = (")
    for row in table:
        one = f"{row:.17g}" if table.ndim == 1 else "(" + ", ".join(f"{v:.17g}" for v in row) + ")"
        print(f"    {one},")
    print(")")


def main() -> None:
    """Print the module."""
    print('"""Coefficients, written by tools/fit_slopes.py: rows are powers of x."""\n')
    print("# fmt: off\n# ruff: noqa: E501")
    show("GAMMA", *fit_gamma(15, 7))
    surface, curve, error = fit_student(15, 9)
    show("STUDENT", surface, error)
    show("STUDENT_LIMIT", curve, error)
    for name, curve in CURVES.items():
        show(name, *fit_curve(curve, 11))


if __name__ == "__main__":
    main()
