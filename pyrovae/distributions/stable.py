r"""Elementary functions that do not cancel: what closed forms lose digits without.

A density, a tail or a KL is often a small difference of large terms. Each function here is such a
difference in a form whose terms have one sign, or whose cancellation is bounded:

* :func:`log1mexp`: :math:`\log(1 - e^{-x})`, a tail from the logarithm of the other one;
* :func:`minus_log1p`: :math:`x - \log(1 + x) \ge 0`, the KL of two scales;
* :func:`expm1_minus`: :math:`e^x - 1 - x \ge 0`, the KL of two locations;
* :func:`lgamma1p`: :math:`\log\Gamma(1 + x) + \gamma x \ge 0`, moments of extreme-value laws,
  and its slope, :func:`harmonic`;
* :func:`log_sinhc`, :func:`langevin`, :func:`langevin_slope`: :math:`\log(\sinh y / y)` and its
  derivatives, the normalizer of an exponential law on an interval;
* :func:`exponential_mean`: :math:`E[f(E)]` for a standard exponential E, where no closed form is.

All are plain tensor functions: they differentiate, trace into graphs and work under `vmap`.
Branches are chosen elementwise, each branch computed on arguments of its own, so that an unused
branch never sends a NaN into a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "EULER",
    "expm1_minus",
    "exponential_mean",
    "harmonic",
    "langevin",
    "langevin_slope",
    "log_ndtr",
    "lgamma1p",
    "log1mexp",
    "log_sinhc",
    "mean_under_exponential",
    "minus_log1p",
]

EULER = 0.57721566490153286061

# zeta(k) - 1 for k = 2, 3, ...: summed here once, with the tail of the series by Euler-Maclaurin.
_N = 100


def _zeta_minus_1(k: int) -> float:
    head = math.fsum(n**-k for n in range(2, _N))
    tail = _N ** (1 - k) / (k - 1) + 0.5 * _N**-k + k * _N ** (-k - 1) / 12
    tail -= k * (k + 1) * (k + 2) * _N ** (-k - 3) / 720
    tail += k * (k + 1) * (k + 2) * (k + 3) * (k + 4) * _N ** (-k - 5) / 30240
    return head + tail


_ZETA = [_zeta_minus_1(k) for k in range(2, 60)]


def _split(x: Tensor, small: Tensor, inner: float, outer: float) -> tuple[Tensor, Tensor]:
    """Return x where `small` and `inner` elsewhere; x where not and `outer` elsewhere."""
    return torch.where(small, x, inner), torch.where(small, outer, x)


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Return the sum of c_k x^k, k = 0, 1, ..., by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def log1mexp(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - e^{-x})` for :math:`x \ge 0` (Maechler 2012).

    >>> log1mexp(torch.tensor([1e-30, 50.0]))
    tensor([-6.9078e+01, -1.9287e-22])
    """
    small = x < math.log(2)
    near, far = _split(x, small, 0.5, 1.0)
    return torch.where(small, torch.log(-torch.expm1(-near)), torch.log1p(-torch.exp(-far)))


def minus_log1p(x: Tensor) -> Tensor:
    r"""Return :math:`x - \log(1 + x) \ge 0` for :math:`x > -1`, exact to second order at 0.

    With s = x / (2 + x), log(1 + x) = 2 atanh(s) and x - 2 s = x s.
    """
    small = x.abs() < 0.4
    near, far = _split(x, small, 0.0, 1.0)
    s = near / (2 + near)
    s2 = s * s
    tail = _series(s2, [1 / (2 * k + 3) for k in range(13)])
    return torch.where(small, s * (near - 2 * s2 * tail), far - torch.log1p(far))


def expm1_minus(x: Tensor) -> Tensor:
    r"""Return :math:`e^x - 1 - x \ge 0`, exact to second order at 0."""
    small = x.abs() < 0.7
    near, far = _split(x, small, 0.0, 1.0)
    series = near * near * _series(near, [1 / math.factorial(k) for k in range(2, 19)])
    return torch.where(small, series, torch.expm1(far) - far)


def lgamma1p(x: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(1 + x) + \gamma x \ge 0` for :math:`x > -1`.

    Near zero by :math:`\sum_{k \ge 2} \zeta(k) (-x)^k / k`, whose part with :math:`\zeta = 1` is
    :math:`x - \log(1 + x)`.
    """
    small = x.abs() < 0.5
    near, far = _split(x, small, 0.0, 1.0)
    series = [c * (-1) ** k / k for k, c in enumerate(_ZETA[:30], 2)]
    inner = minus_log1p(near) + near * near * _series(near, series)
    return torch.where(small, inner, torch.lgamma(1 + far) + EULER * far)


def harmonic(x: Tensor) -> Tensor:
    r"""Return :math:`\psi(1 + x) + \gamma` for :math:`x > -1`, the slope of :func:`lgamma1p`."""
    small = x.abs() < 0.5
    near, far = _split(x, small, 0.0, 1.0)
    series = near * _series(near, [c * (-1) ** k for k, c in enumerate(_ZETA[:30], 2)])
    return torch.where(small, near / (1 + near) + series, torch.digamma(1 + far) + EULER)


def log_sinhc(y: Tensor) -> Tensor:
    r"""Return :math:`\log(\sinh(y) / y) \ge 0`, even in y."""
    small = y.abs() < 0.5
    near, far = _split(y, small, 0.0, 1.0)
    n2 = near * near
    series = torch.log1p(n2 * _series(n2, [1 / math.factorial(2 * k + 3) for k in range(8)]))
    a = far.abs()
    return torch.where(small, series, a - torch.log(2 * a) + torch.log1p(-torch.exp(-2 * a)))


# Taylor coefficients of coth(y) - 1/y in y^(2k+1): 2^(2k+2) B(2k+2) / (2k+2)!, through zeta.
_LANGEVIN = [
    2 * (-1) ** k * (1 + _zeta_minus_1(2 * k + 2)) / math.pi ** (2 * k + 2) for k in range(20)
]


def langevin(y: Tensor) -> Tensor:
    r"""Return :math:`\coth y - 1/y`, the slope of :func:`log_sinhc`: odd, within (-1, 1)."""
    small = y.abs() < 1
    near, far = _split(y, small, 0.0, 2.0)
    a = far.abs()
    outer = far.sign() * (1 + 2 * torch.exp(-2 * a) / -torch.expm1(-2 * a) - 1 / a)
    return torch.where(small, near * _series(near * near, _LANGEVIN), outer)


def langevin_slope(y: Tensor) -> Tensor:
    r"""Return :math:`1/y^2 - 1/\sinh^2 y > 0`, the derivative of :func:`langevin`, 1/3 at 0."""
    small = y.abs() < 1
    near, far = _split(y, small, 0.0, 2.0)
    slopes = [(2 * k + 1) * c for k, c in enumerate(_LANGEVIN)]
    e = torch.exp(-2 * far.abs())
    outer = 1 / far.square() - 4 * e / torch.expm1(-2 * far.abs()).square()
    return torch.where(small, _series(near * near, slopes), outer)


class _LogNdtr(torch.autograd.Function):
    """torch's log_ndtr with a rule for vmap, which torch lacks, and its own slope."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.special.log_ndtr(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * math.sqrt(2 / math.pi) / torch.special.erfcx(-x * math.sqrt(0.5))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _LogNdtr.apply(x), in_dims[0]  # elementwise: the extra dimension does not matter


def log_ndtr(x: Tensor) -> Tensor:
    r"""Return :math:`\log\Phi(x)` of the standard normal, elementwise.

    >>> log_ndtr(torch.tensor(-100.0))
    tensor(-5005.5244)
    """
    return _LogNdtr.apply(x)


_STEP = 1 / 24
_GRID = [-4.25 + _STEP * i for i in range(int((3.9 + 4.25) / _STEP) + 1)]
_NODES = [math.exp(x - math.exp(-x)) for x in _GRID]
_WEIGHTS = [
    _STEP * t * (1 + math.exp(-x)) * math.exp(-t) for x, t in zip(_GRID, _NODES, strict=True)
]


def mean_under_exponential(f: Callable[[float], float]) -> float:
    """Return E[f(E)] as a number, by the same quadrature as :func:`exponential_mean`."""
    return math.fsum(w * f(t) for w, t in zip(_WEIGHTS, _NODES, strict=True))


def exponential_mean(f: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    r"""Return :math:`E[f(E)]`, E standard exponential, by double-exponential quadrature.

    With :math:`t = \exp(x - e^{-x})` the integrand decays doubly exponentially on both sides and
    the trapezoidal rule converges geometrically, whatever power of t or log t is in f.

    Args:
        f: takes nodes of shape `[n, 1, ...]`, returns `[n, *batch]`, batch as `like`.
        like: a tensor of the batch shape; its dtype and device are taken.
    """
    shape = (-1,) + (1,) * like.dim()
    nodes = torch.tensor(_NODES, dtype=like.dtype, device=like.device).reshape(shape)
    weights = torch.tensor(_WEIGHTS, dtype=like.dtype, device=like.device).reshape(shape)
    return (weights * f(nodes)).sum(0)
