r"""Pathwise derivatives in float32, as polynomials: what a draw's gradient costs is one surface.

At a fixed cdf the derivative of a draw in its shape has a limit for large shapes that is a closed
form of the right variable (Temme's uniform expansion, taken to the cdf's level lines): for
:math:`y = \log z`, z ~ Gamma(a, 1), :math:`a\,dy/da \to \mu/(e^\mu - 1)` with :math:`\mu = y -
\log a`, and for Student's t :math:`-\nu\,d\log|t|/d\nu \to \tfrac12((1 + 1/w)\log(1 + w) - 1)`
with :math:`w = t^2/\nu`. The same expressions are right in order of magnitude for all shapes and
in both tails. So, with :math:`s = 1/(1 + a)` and :math:`m = y - \log(1 + a)`,

.. math::

    a \frac{dy}{da} = \log(1 + e^{-m}) + \sigma(-m)\,G(x, s), \qquad x = \tanh(0.17\,m),

.. math::

    -\nu \frac{d\log|t|}{d\nu} = \tfrac12\log(1 + w) + \sigma(\log w)\,R(x) + s\,T(x, s),
    \qquad x = \tanh(0.23 \log w),

where G, R, T are bounded, smooth on the whole of the compact square of x and s, shapes 0 and
infinity included, and short polynomials give them to 4e-7 of the derivative. log-Gamma, with its
logarithms taken out, is a curve in s likewise. `tools/fit_slopes.py` makes the coefficients from
the quadratures of this package and mpmath; float64 is left to the quadratures.

The polynomial is a product of matrices; where it is differentiated, a Horner scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pyrovae.distributions.fused import can_look
from pyrovae.distributions.special import surface_tables as tables

__all__ = ["digamma_rest", "gamma_slope", "log_norm", "student_norm", "student_slope"]

Table = tuple[tuple[float, ...], ...]


def _horner(coefficients: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """Return the sum of coefficients[k] x^k."""
    total = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        total = total * x + c
    return total


def _eager(*tensors: Tensor) -> bool:
    """Whether matrices may be made: nothing is to be differentiated or mapped."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if recorded or torch.jit.is_tracing():
        return False
    return can_look() or torch.compiler.is_compiling()


@lru_cache(maxsize=32)
def _blocks(table: Table, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the table `[i, j]` as `[j // 4, i, j % 4]`, in one matrix of four columns."""
    matrix = torch.tensor(table, dtype=dtype, device=device)
    matrix = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % 4))
    return matrix.view(len(table), -1, 4).transpose(0, 1).reshape(-1, 4)


def _matrix(table: Table, like: Tensor) -> Tensor:
    make = _blocks.__wrapped__ if torch.compiler.is_compiling() else _blocks
    return make(table, like.dtype, like.device)


def _four_powers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1, x, x^2, x^3 in one tensor, and x^4."""
    square = x * x
    return torch.stack((torch.ones_like(x), x, square, square * x)), square * square


def _rows(table: Table, sigma: Tensor) -> Tensor:
    """Return the sums over j of table[i][j] sigma^j, `[i, *shape]`: one product of matrices."""
    side, fourth = _four_powers(sigma)
    product = _matrix(table, sigma) @ side.view(4, -1)
    total, *rest = product.view(-1, len(table), *sigma.shape).unbind(0)[::-1]
    for part in rest:
        total = torch.addcmul(part, total, fourth)
    return total


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """Return the sum over i of rows[i] x^i; the number of rows is a multiple of four."""
    side, fourth = _four_powers(x)
    total, *rest = rows.view(-1, 4, *rows.shape[1:]).mul(side).sum(1).unbind(0)[::-1]
    for part in rest:
        total = torch.addcmul(part, total, fourth)
    return total


def gamma_slope(a: Tensor, y: Tensor) -> Tensor:
    """Return dy/da of y = log z, z ~ Gamma(a, 1), to 1e-6 in float32."""
    s = (a + 1).reciprocal()
    m = s.log() + y
    low = m.clamp_min(-18.0)
    tail = torch.exp(-low)
    x = torch.tanh(low.clamp_max(3.6) * 0.17)
    sigma = 2 * s - 1
    if _eager(a, y):
        middle = _along(_rows(tables.GAMMA, sigma), x)
    else:
        middle = _horner([_horner(row, sigma) for row in tables.GAMMA], x)
    # log(1 + e^-m) is -m below the range, to 1e-8
    return (torch.log1p(tail) + (low - m) + tail / (1 + tail) * middle) / a


def student_slope(df: Tensor, log_abs: Tensor) -> Tensor:
    """Return dlog|t|/d df of a standard Student's t draw, to 1e-5 in float32."""
    s = (df + 1).reciprocal()
    y = 2 * log_abs - df.log()
    core = y.clamp(-45.0, 45.0)
    tail = torch.exp(core)
    x = torch.tanh(core * 0.23)
    q, sigma = tail / (1 + tail), 2 * s - 1
    if _eager(df, log_abs):
        rows = _rows(tables.STUDENT, sigma).mul_(s)
        last = _matrix((tables.STUDENT_LIMIT,), s)
        middle = _along(rows, x).addcmul_(q, _along(last.view(-1, *[1] * x.dim()), x))
    else:
        middle = _horner([_horner(row, sigma) for row in tables.STUDENT], x) * s
        middle = middle + q * _horner(tables.STUDENT_LIMIT, x)
    return -(0.5 * (torch.log1p(tail) + (y - core).clamp_min(0.0)) + middle) / df


def _curves(a: Tensor, *curves: tuple[float, ...]) -> Sequence[Tensor]:
    """Return curves in sigma = 2/(1 + a) - 1, together."""
    sigma = 2 / (1 + a) - 1
    if _eager(a):
        return _rows(curves, sigma).unbind(0)
    return [_horner(curve, sigma) for curve in curves]


def log_norm(a: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log\Gamma(1 + a) - a\log(1 + a) + a` and :math:`\psi(1 + a) - \log(1 + a)`.

    The first is about half of log a; for float32.
    """
    value, slope = _curves(a, tables.LOG_NORM, tables.LOG_NORM_SLOPE)
    return torch.add(value, torch.log1p(a), alpha=0.5), slope


def digamma_rest(a: Tensor) -> Tensor:
    r"""Return :math:`\psi(1 + a) - \log(1 + a)`, to 1e-10."""
    return _curves(a, tables.LOG_NORM_SLOPE)[0]


def student_norm(df: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return half a step of log-Gamma and its derivative, about -1/4df and its own; for float32.

    :math:`\log\Gamma(\frac{\nu+1}2) - \log\Gamma(\frac\nu2) - \frac12\log\frac\nu2`.
    """
    value, slope = _curves(df, tables.STUDENT_NORM, tables.STUDENT_NORM_SLOPE)
    return torch.sub(value, torch.log1p(1 / df), alpha=0.5), slope / (df * (1 + df))
