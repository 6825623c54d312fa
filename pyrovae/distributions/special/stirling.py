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

Everything here but `log_gamma_ratio` takes float64 (callers convert) and is differentiable any
number of times.
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
    "log_gamma_ratio",
    "log1p_minus",
    "log1p_minus_ratio",
    "log_ratio_minus",
    "stirling",
    "stirling_slope",
]

_LARGE = 10.0
_STEP = 8.0
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_FIT = (
    0.08333333333333333, -0.002777777777767353, 0.0007936507891020488, -0.0005952373063227016,
    0.000841678862598761, -0.0019135564194573535, 0.006266355072207451, -0.02591763548428459,
    0.11229667461420963, -0.41302940091672014, 1.0364376287210755, -1.2591741378706647,
)  # fmt: skip
_QUICK_FIT = (
    0.08333333333139985, -0.0027777765182039507, 0.0007935148822728759, -0.0005897124887243115,
    0.0007344743117052241, -0.0008228200612568517,
)  # fmt: skip
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
    inner = x.clamp(-0.35, 0.6)
    small = inner == x
    far = torch.where(small, 1.0, x)
    return torch.where(small, _near_zero(inner, len(_ODD)), torch.log1p(far) - far)


_ODD = tuple(1 / (2 * k + 3) for k in range(11))


def _near_zero(x: Tensor, terms: int) -> Tensor:
    q = x / (2 + x)
    q2 = q * q
    return q2 * (2 * q * _series(_ODD[:terms], q2) - (2 + x))


def log1p_minus_ratio(x: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\log(1 + x) - x/(1 + x)`, which is about :math:`x^2/2` at 0, x > -1."""
    inner = x.clamp(-0.35, 0.6)
    near = _near_zero(inner, 5 if quick else len(_ODD)) + inner * inner / (1 + inner)
    far = torch.where(inner == x, 1.0, x)
    return torch.where(inner == x, near, torch.log1p(far) - far / (1 + far))


def log_ratio_minus(log_ratio: Tensor, excess: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\log r - (r - 1)`, from log r and r - 1, each as accurate as it is known.

    `quick`: to a relative 1e-9, enough where float32 is asked for.
    """
    inner = excess.clamp(-0.35, 0.6)
    near = _near_zero(inner, 5 if quick else len(_ODD))
    return torch.where(inner == excess, near, log_ratio - excess)


def stirling(a: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\delta(a)`: log-Gamma less Stirling's formula; error below 1e-15.

    From a = 3 on by the polynomial in :math:`1/a^2` that is nearest to :math:`a\,\delta(a)` on all
    of it (a Chebyshev fit at 50 digits, error 5e-17; `quick`: half as long, 2e-11); below, where
    nothing large is left to cancel, from log-Gamma itself.
    """
    low = a.clamp_max(3.0)
    near = torch.lgamma(low) + (low + (0.5 - low) * low.log()) - 0.5 * math.log(2 * math.pi)
    r = 1 / a.clamp_min(3.0)
    return torch.where(a < 3, near, r * _series(_QUICK_FIT if quick else _FIT, r * r))


def stirling_slope(a: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\delta'(a) = \psi(a) - \log a + 1/(2a)`."""
    small = a < _STEP
    r = 1 / torch.where(small, a + _STEP, a)
    r2 = r * r
    series = r2 * _series(_SLOPE[:4] if quick else _SLOPE, r2)
    low = a.clamp_max(_STEP)
    q = low * (low + 7)
    t = low + 8
    steps = (2 * low + 7) * (1 / q + 1 / (q + 6) + 1 / (q + 10) + 1 / (q + 12))
    step = torch.log(t / low) + 4 / (low * t) - steps
    return torch.where(small, series + step, series)


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
    far = s * log1p_minus(t) + b * n.log() - 0.5 * torch.log1p(t) + _step(_DELTA, 0, s, b)
    near = torch.zeros_like(far)
    low = torch.where(small, a, 1.0)
    for k in range(int(_LARGE)):
        near = near + torch.log1p(b / (low + k))
    return far - torch.where(small, near, 0.0)


def log_gamma_ratio(a: Tensor, b: Tensor | float) -> Tensor:
    r"""Return :math:`\log\Gamma(a + b) - \log\Gamma(a)` in the dtype of a, any of the two.

    >>> log_gamma_ratio(torch.tensor(1e6), 1.0)
    tensor(13.8155)
    """
    b = torch.as_tensor(b, dtype=torch.float64, device=a.device)
    return lgamma_difference(*torch.broadcast_tensors(a.double(), b)).to(a.dtype)


def _step(coefficients: tuple[float, ...], even: int, s: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\sum_k c_k\,((s + b)^{-m} - s^{-m})`, proportional to b; s >= 8.

    The powers are m = 1, 3, 5, ... (`even` = 0: the step of delta) or 2, 4, 6, ... (1: of its
    slope).
    """
    r, q = 1 / s, 1 / (s + b)
    power, mean, total = torch.ones_like(r), torch.ones_like(r), torch.zeros_like(r)
    for m in range(1, 2 * len(coefficients) + even):
        if m % 2 != even:
            total = total + coefficients[(m - 1) // 2] * mean
        power = power * r
        mean = q * mean + power  # (q^m - r^m) / (q - r), of the next m
    return -b * r * q * total


def lbeta(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\log B(a, b)` for a, b > 0, small against large included."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return torch.lgamma(low) - lgamma_difference(high, low)


def digamma_difference(a: Tensor, b: Tensor, quick: bool = False) -> Tensor:
    r"""Return :math:`\psi(a + b) - \psi(a)` for a, b > 0, relative error near eps."""
    small = a < _STEP
    s = torch.where(small, a + _STEP, a)
    t = s + b
    far = torch.log1p(b / s) + 0.5 * b / (s * t) + _step(_SLOPE[:3] if quick else _SLOPE, 1, s, b)
    low = a.clamp_max(_STEP)
    steps = torch.zeros_like(far)
    for k in range(int(_STEP)):
        steps = steps + 1 / ((low + k) * (low + b + k))
    return torch.where(small, far + b * steps, far)


def half_step(a: Tensor) -> Tensor:
    r"""Return :math:`\log\Gamma(a + \frac12) - \log\Gamma(a) - \frac12\log a`, about -1/(8a)."""
    return a * log1p_minus(0.5 / a) + stirling(a + 0.5) - stirling(a)


def half_step_slope(a: Tensor, quick: bool = False) -> Tensor:
    r"""Return the derivative of :func:`half_step`, about :math:`1/(8a^2)`."""
    slopes = stirling_slope(a + 0.5, quick) - stirling_slope(a, quick)
    return log1p_minus_ratio(0.5 / a, quick) + slopes
