r"""log-Gamma without cancellation: what remains after Stirling's formula, and differences of it.

.. math::

    \log\Gamma(a) = (a - \tfrac12)\log a - a + \tfrac12\log 2\pi + \delta(a),
    \qquad \delta(a) \sim \sum_k \frac{B_{2k}}{2k(2k-1)\,a^{2k-1}},
    \qquad \psi(a) = \log a - \frac{1}{2a} + \delta'(a).

At a = 1e6 the logarithm is 1.3e7, of which a density needs the last digits: in float32 every one
of them is lost. Written with :math:`\delta` the large parts meet on paper and only

.. math:: \ell(x) = \log(1 + x) - x

is left of them, which has a series where x is small. Source of the technique: C. Loader (2000),
"Fast and accurate computation of binomial probabilities".

Everything here takes float64 (callers convert) and is differentiable any number of times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "digamma_difference",
    "half_step",
    "half_step_slope",
    "lbeta",
    "lgamma_difference",
    "log1p_minus",
    "log1p_minus_ratio",
    "log_ratio_minus",
    "stirling",
    "stirling_slope",
]

_LARGE = 10.0
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_DELTA = tuple(b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1))
_SLOPE = tuple(-b / (2 * k) for k, b in enumerate(_BERNOULLI, 1))


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def log1p_minus(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + x) - x` to full relative accuracy, x > -1.

    With :math:`q = x/(2 + x)`: :math:`2(\mathrm{artanh}\,q - q/(1 - q))`.

    >>> log1p_minus(torch.tensor(1e-8, dtype=torch.float64))
    tensor(-5.0000e-17, dtype=torch.float64)
    """
    small = (x > -0.35) & (x < 0.6)
    s = torch.where(small, x, 0.0)
    q = s / (2 + s)
    q2 = q * q
    near = 2 * q2 * (q * _series(tuple(1 / (2 * k + 3) for k in range(13)), q2) - 1 / (1 - q))
    far = torch.where(small, 1.0, x)
    return torch.where(small, near, torch.log1p(far) - far)


def log1p_minus_ratio(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + x) - x/(1 + x)`, which is about :math:`x^2/2` at 0, x > -1."""
    small = (x > -0.35) & (x < 0.6)
    s = torch.where(small, x, 0.0)
    far = torch.where(small, 1.0, x)
    near = log1p_minus(s) + s * s / (1 + s)
    return torch.where(small, near, torch.log1p(far) - far / (1 + far))


def log_ratio_minus(log_ratio: Tensor, excess: Tensor) -> Tensor:
    r"""Return :math:`\log r - (r - 1)`, from log r and r - 1, each as accurate as it is known."""
    middle = (excess > -0.35) & (excess < 0.6)
    near = log1p_minus(torch.where(middle, excess, 0.0))
    return torch.where(middle, near, torch.where(middle, 0.0, log_ratio - excess))


def stirling(a: Tensor) -> Tensor:
    r"""Return :math:`\delta(a)`: log-Gamma less Stirling's formula; error below 2e-15."""
    small = a < _LARGE
    s = torch.where(small, a, 1.0)
    direct = torch.lgamma(s) - ((s - 0.5) * s.log() - s + 0.5 * math.log(2 * math.pi))
    r = 1 / torch.where(small, _LARGE, a)
    return torch.where(small, direct, r * _series(_DELTA, r * r))


def stirling_slope(a: Tensor) -> Tensor:
    r"""Return :math:`\delta'(a) = \psi(a) - \log a + 1/(2a)`."""
    small = a < _LARGE
    s = torch.where(small, a, 1.0)
    direct = torch.digamma(s + 1) - s.log() - 0.5 / s
    r = 1 / torch.where(small, _LARGE, a)
    return torch.where(small, direct, r * r * _series(_SLOPE, r * r))


def lgamma_difference(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(a + b) - \log\Gamma(a)` for a, b > 0.

    >>> big, one = torch.tensor([1e12, 1.0], dtype=torch.float64)
    >>> lgamma_difference(big, one).exp()
    tensor(1.0000e+12, dtype=torch.float64)
    """
    small = a < _LARGE
    s = torch.where(small, a + _LARGE, a)
    n = s + b
    t = b / s
    far = s * log1p_minus(t) + b * n.log() - 0.5 * torch.log1p(t) + (stirling(n) - stirling(s))
    near = torch.zeros_like(far)
    low = torch.where(small, a, 1.0)
    for k in range(int(_LARGE)):
        near = near + torch.log1p(b / (low + k))
    return far - torch.where(small, near, 0.0)


def lbeta(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\log B(a, b)` for a, b > 0, small against large included."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return torch.lgamma(low) - lgamma_difference(high, low)


def digamma_difference(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\psi(a + b) - \psi(a)` for a, b > 0; relative error about eps where a > 10."""
    n = a + b
    large = a > _LARGE
    s, t = torch.where(large, a, _LARGE), torch.where(large, n, _LARGE)
    far = torch.log1p(b / s) + 0.5 * b / (s * t) + (stirling_slope(t) - stirling_slope(s))
    c, d = torch.where(large, 1.0, a), torch.where(large, 1.0, n)
    near = torch.digamma(d + 1) - torch.digamma(c + 1) + b / (c * torch.where(large, 1.0, n))
    return torch.where(large, far, near)


def half_step(a: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(a + \frac12) - \log\Gamma(a) - \frac12\log a`, about -1/(8a)."""
    return a * log1p_minus(0.5 / a) + stirling(a + 0.5) - stirling(a)


def half_step_slope(a: Tensor) -> Tensor:
    r"""Return the derivative of :func:`half_step`, about :math:`1/(8a^2)`."""
    return log1p_minus_ratio(0.5 / a) + stirling_slope(a + 0.5) - stirling_slope(a)
