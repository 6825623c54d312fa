r"""Pathwise derivatives as polynomials: what the gradient of a draw costs is one surface.

At a fixed cdf the derivative of a draw in its shape has a limit for large shapes that is a closed
form of the right variable (Temme's uniform expansion, taken to the cdf's level lines): for
:math:`y = \log z`, z ~ Gamma(a, 1), :math:`a\,dy/da \to \mu/(e^\mu - 1)` with :math:`\mu = y -
\log a`, and for Student's t :math:`-\nu\,d\log|t|/d\nu \to \tfrac12((1 + 1/w)\log(1 + w) - 1)`
with :math:`w = t^2/\nu`. The same expressions are right in order of magnitude for all shapes and
in both tails. So, with :math:`s = 1/(1 + a)` and :math:`m = y - \log(1 + a)`,

.. math::

    a \frac{dy}{da} = \log(1 + e^{-m}) + \sigma(-m)\,G(\tanh\tfrac m8, s), \qquad

.. math::

    -\nu \frac{d\log|t|}{d\nu} = \tfrac12\Big(\Big(1 + \frac1w\Big)\log(1 + w) - 1\Big)
    + s\,\Big(A(x, s) + \frac{\log(1 + w)}w B(x, s)\Big), \qquad x = \frac{w - 1}{w + 1},

where G, A, B are smooth on the whole of the compact rectangle of both variables, shapes 0 and
infinity included: an eighth of m makes what is left of the logarithm at :math:`e^m = 0` (the
series there has terms :math:`m e^m`) as smooth as needed, and with B there is none left in A.
Short polynomials give the derivatives to 4e-7 in float32 and longer ones to 2e-11 in float64.
log-Gamma, with its logarithms taken out, is a curve in s likewise. `tools/fit_slopes.py` makes
the coefficients from quadratures finer than the package's own, and mpmath.

A polynomial is a product of matrices, coefficients by powers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pyrovae.distributions.fused import at_work, can_look, scratch
from pyrovae.distributions.special import surface_tables

__all__ = [
    "GAMMA_RANGE",
    "GAMMA_RATE",
    "digamma_rest",
    "gamma_slope",
    "log_norm",
    "student_norm",
    "student_slope",
]

GAMMA_RATE = 0.125
GAMMA_RANGE = -38.0, 4.0


def _powers(x: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """Return 1, x, ..., x^(count - 1), `[count, *shape]`."""
    if out is not None:
        out[0], out[1] = 1.0, x
        known, step = 2, x
        while known < count:
            step, more = step * step, min(known, count - known)
            torch.mul(out[:more], step, out=out[known : known + more])
            known += more
        return out
    rows, step = torch.stack((torch.ones_like(x), x)), x
    while len(rows) < count:
        step = step * step
        rows = torch.cat((rows, rows[: count - len(rows)] * step))
    return rows


def _surface(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the sums over i, j of table[..., i, j] x^i y^j, `[..., *shape]`."""
    *parts, n, m = table.shape
    matrix = table.transpose(-1, -2).reshape(-1, n)  # [... m, n]
    if not at_work(x, y):
        rows = (matrix @ _powers(x, n).view(n, -1)).view((*parts, m, *x.shape))
        return (rows * _powers(y, m)).sum(len(parts))
    size, count = x.numel(), matrix.shape[0]
    work = scratch((n + m + count, size), x)
    first, second, rows = work.split((n, m, count))
    _powers(x.reshape(-1), n, first)
    _powers(y.reshape(-1), m, second)
    torch.mm(matrix, first, out=rows)
    return rows.view(*parts, m, size).mul_(second).sum(len(parts)).view((*parts, *x.shape))


@lru_cache(maxsize=32)
def _cached(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(getattr(surface_tables, name), dtype=dtype, device=device)


def _table(name: str, like: Tensor, quick: bool = False) -> Tensor:
    """Return the coefficients for the dtype of `like`; `quick`: the shorter ones in any."""
    name = f"{name}_64" if like.dtype == torch.float64 and not quick else name
    make = _cached if can_look() else _cached.__wrapped__  # never keep a tensor of a graph
    return make(name, like.dtype, like.device)


def gamma_slope(a: Tensor, y: Tensor) -> Tensor:
    """Return dy/da of y = log z, z ~ Gamma(a, 1): to 1e-6 in float32 and 2e-11 in float64.

    For all draws; where z > 54 (1 + a), in the upper e^-50, it is not accurate.
    """
    s = (a + 1).reciprocal()
    m = s.log() + y
    low = m.clamp_min(GAMMA_RANGE[0])
    tail = torch.exp(-low)
    root = torch.exp(-GAMMA_RATE * 2 * low.clamp_max(GAMMA_RANGE[1]))
    x = _GAMMA_SPAN / (1 + root) - _GAMMA_SHIFT  # affine in the tanh, from -1 to 1
    middle = _surface(_table("GAMMA", a), x, 2 * s - 1)
    # log(1 + e^-m) is -m below the range
    return (torch.log1p(tail) + (low - m) + tail / (1 + tail) * middle) / a


def _gamma_ends() -> tuple[float, float]:
    """Return span and shift of x = span sigmoid(2 k m) - shift, which is -1 and 1 at the ends."""
    low, high = (1 / (1 + math.exp(-2 * GAMMA_RATE * end)) for end in GAMMA_RANGE)
    span = 2 / (high - low)
    return span, 1 + span * low


_GAMMA_SPAN, _GAMMA_SHIFT = _gamma_ends()


def student_slope(df: Tensor, log_abs: Tensor) -> Tensor:
    """Return dlog|t|/d df of a standard Student's t draw: to 1e-6, or 3e-11 in float64."""
    s = (df + 1).reciprocal()
    y = 2 * log_abs - df.log()
    core = y.clamp(-60.0, 60.0)
    w = core.exp()
    log = torch.log1p(w)
    near, mean = (w + 1).reciprocal(), log / w
    limit = log - _one_minus(mean, w * near)
    a, b = _surface(_table("STUDENT", df), 2 * s - 1, 1 - 2 * near).unbind(0)
    rest = torch.addcmul(a, b, mean) * s
    return -(0.5 * (limit + (y - core).clamp_min(0.0)) + rest) / df


def _one_minus(mean: Tensor, q: Tensor) -> Tensor:
    r"""Return :math:`1 - \log(1 + w)/w`, from the quotient and from :math:`q = w/(1 + w)`.

    Near 0 by the series of :math:`q^k / k(k + 1)`.
    """
    small = q < (0.02 if q.dtype == torch.float64 else 0.15)
    near = torch.full_like(q, 1 / 72)
    for k in range(7, 0, -1):
        near = near * q + 1 / (k * (k + 1))
    return torch.where(small, near * q, 1 - mean)


def _curves(name: str, a: Tensor, quick: bool = False) -> Sequence[Tensor]:
    """Return curves in sigma = 2/(1 + a) - 1, together."""
    table, sigma = _table(name, a, quick), 2 / (1 + a) - 1
    n = table.shape[1]
    if at_work(a):
        rows = _powers(sigma, n, scratch((n, *a.shape), a))
    else:
        rows = _powers(sigma, n)
    return (table @ rows.view(n, -1)).view((-1, *a.shape)).unbind(0)


def log_norm(a: Tensor, quick: bool = False) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log\Gamma(1 + a) - a\log(1 + a) + a` and :math:`\psi(1 + a) - \log(1 + a)`.

    The first is about half of log a. Absolute errors: 1e-7, or 2e-15 in float64, or 5e-11 if
    `quick`.
    """
    value, slope = _curves("LOG_NORM", a, quick)
    return torch.add(value, torch.log1p(a), alpha=0.5), slope


def digamma_rest(a: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\psi(1 + a) - \log(1 + a)`, to 1e-14, or `quick` to 1e-10; differentiable."""
    if at_work(a):
        return _curves("LOG_NORM", a, quick)[1]
    curve = (surface_tables.LOG_NORM if quick else surface_tables.LOG_NORM_64)[1]
    sigma = 2 / (1 + a) - 1
    total = sigma * curve[-1] + curve[-2]
    for c in reversed(curve[:-2]):
        total = total * sigma + c
    return total


def student_norm(df: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return half a step of log-Gamma and its derivative, about -1/4df and its own.

    Absolute errors: 1e-7, or 5e-15 in float64.

    :math:`\log\Gamma(\frac{\nu+1}2) - \log\Gamma(\frac\nu2) - \frac12\log\frac\nu2`.
    """
    value, slope = _curves("STUDENT_NORM", df)
    return torch.sub(value, torch.log1p(1 / df), alpha=0.5), slope / (df * (1 + df))
