r"""Modified Bessel functions as directional densities need them: no overflow, nothing cancels.

For the density :math:`\propto e^{\kappa w}` on the unit sphere in d dimensions, w the cosine to
the mean and :math:`\nu = d/2 - 1`, all that is needed is

.. math::

    L_\nu(\kappa) = \log E[e^{\kappa w}] = \log\Gamma(\nu + 1) - \nu\log\tfrac\kappa2
    + \log I_\nu(\kappa), \qquad
    A_\nu(\kappa) = L_\nu' = \frac{I_{\nu + 1}(\kappa)}{I_\nu(\kappa)} = E[w], \qquad
    A_\nu' = \mathrm{Var}[w].

From Debye's uniform expansion at an order of 18 or more, whose large parts meet on paper, to the
order asked for by the recurrence of the ratios, every step of which adds terms of one sign,

.. math::

    L_\nu = L_{\nu + 1} + \log\Big(1 + \frac{\kappa^2 r_{\nu + 1}}{4(\nu + 1)(\nu + 2)}\Big),
    \qquad r_\nu = \frac{2(\nu + 1)}{\kappa} A_\nu \le 1,

so L, 1 - A and the variance keep their relative accuracy (about 1e-14) from :math:`\kappa = 0` to
:math:`10^{12}` and to any order. Sources: DLMF, section 10.41(ii) for the expansion and 10.29(i)
for the recurrence.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from pyrovae.distributions.special.quadrature import integrate, known

__all__ = [
    "Bessel",
    "bessel_gap",
    "bessel_information",
    "bessel_ratio",
    "bessel_ratio_complement",
    "bessel_variance",
    "log_bessel",
]

_ORDER = 18  # Debye's expansion is used from here on
_TERMS = 12

Poly = list[Fraction]


def _debye(terms: int) -> list[Poly]:
    r"""Return the polynomials D_1, D_2, ... of :math:`\sum u_k(t)/\nu^k = \exp\sum D_k/\nu^k`."""
    u: list[Poly] = [[Fraction(1)]]
    for _ in range(terms):
        last = u[-1]
        new = [Fraction(0)] * (len(last) + 3)
        for i, a in enumerate(last):
            new[i + 1] += a * (Fraction(i, 2) + Fraction(1, 8 * (i + 1)))
            new[i + 3] -= a * (Fraction(i, 2) + Fraction(5, 8 * (i + 3)))
        u.append(new)
    logs: list[Poly] = []
    for k in range(1, terms + 1):
        total = list(u[k])
        for j in range(1, k):
            for i, a in enumerate(logs[j - 1]):
                for m, b in enumerate(u[k - j]):
                    total[i + m] -= Fraction(j, k) * a * b
        logs.append(total)
    return logs


def _quotients(polys: list[Poly]) -> tuple[tuple[float, ...], ...]:
    """Return the coefficients of (D_k(1) - D_k(t)) / (1 - t)."""
    return tuple(
        tuple(float(sum(p[i + 1 :], Fraction(0))) for i in range(len(p) - 1)) for p in polys
    )


def _derivatives(polys: list[Poly], times: int) -> tuple[tuple[float, ...], ...]:
    for _ in range(times):
        polys = [[i * a for i, a in enumerate(p)][1:] for p in polys]
    return tuple(tuple(float(a) for a in p) for p in polys)


_D = _debye(_TERMS)
_FALL = _quotients(_D)
_FIRST = _derivatives(_D, 1)
_SECOND = _derivatives(_D, 2)


@lru_cache(maxsize=64)
def _coefficients(order: float) -> tuple[tuple[float, ...], ...]:
    r"""Return those of :math:`\sum_k p_k(t) \nu^{-k}`, of p = the quotient, D' and D''."""

    def row(polys: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
        return tuple(
            math.fsum(p[i] * order**-k for k, p in enumerate(polys, 1) if i < len(p))
            for i in range(3 * _TERMS)
        )

    return row(_FALL), row(_FIRST), row(_SECOND)


def _expand(order: float, t: Tensor) -> Tensor:
    """Return the three polynomials at t, `[3, ...]`: few operations, whatever their degree."""
    powers = torch.cat([torch.ones_like(t)[None], t.expand(3 * _TERMS - 1, *t.shape)]).cumprod(0)
    return integrate(torch.tensor(_coefficients(order), dtype=t.dtype, device=t.device), powers)


class Bessel:
    """L, kappa - L, A, 1 - A and A' of one order at `x`, float64: `log gap ratio rest slope`."""

    def __init__(self, order: float, x: Tensor) -> None:
        self.order, self.x = order, x
        steps = max(0, math.ceil(_ORDER - order))
        self._start(order + steps, x)
        for k in reversed(range(steps)):
            self._step(order + k + 1, x)

    def _start(self, order: float, x: Tensor) -> None:
        """Set everything at an order of 18 or more, by the expansion in t = 1/sqrt(1 + z^2)."""
        z = x / order
        root = torch.sqrt(1 + z * z)
        t, s = 1 / root, z * z / (1 + root)
        fall, first, second = _expand(order, t)
        tail = 0.5 * torch.log1p(s) + s * t * fall
        bend = torch.log1p(0.5 * s)
        self.log = order * (s - bend) - tail
        self.gap = order * (2 * z / (1 + z + root) + bend) + tail
        p = t * t * (0.5 + t * first) / order
        p_slope = t * (1 + t * (3 * first + t * second)) / order
        limit = torch.sqrt(s / (2 + s))
        self.ratio = limit - z * p
        self.rest = 2 / ((2 + s) * (1 + limit)) + z * p
        self.slope = (t * t / (1 + t) - p + z * z * t**3 * p_slope) / order

    def _step(self, n: float, x: Tensor) -> None:
        """Go from the order n to the order n - 1."""
        h = 0.5 / n * x
        grown = 1 + h * self.ratio
        step = torch.log1p(h * self.ratio)
        self.log, self.gap = self.log + step, self.gap - step
        self.slope = (1 - h * x * self.slope) / (2 * n * grown * grown)
        self.rest = (1 - h * self.rest) / grown
        self.ratio = h / grown

    @property
    def information(self) -> Tensor:
        near = self.x < 2 * self.order + 2
        return torch.where(near, self.x * self.ratio - self.log, self.gap - self.x * self.rest)


def _far_coefficients(terms: int) -> tuple[float, ...]:
    r"""Return the a_k of :math:`1 - A_0 = \sum a_k x^{-k}`, from A' = 1 - A^2 - A/x."""
    a = [0.0, 0.5]
    for k in range(2, terms + 1):
        a.append(0.5 * ((k - 2) * a[-1] + sum(a[i] * a[k - i] for i in range(1, k))))
    return tuple(a)


_FAR = _far_coefficients(20)
_FAR_SLOPE = tuple(k * a for k, a in enumerate(_FAR))
_NEAR = tuple(1 / math.factorial(k) ** 2 for k in range(7))


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


class BesselZero:
    """The same at order 0, the circle's: cheaper, from torch's functions and two series."""

    far = 25.0

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.i0 = torch.special.i0e(x)
        self.i1 = torch.special.i1e(x)
        self.inverse = 1 / x.clamp_min(self.far)

    @property
    def log(self) -> Tensor:
        small = self.x < 0.25
        q = torch.where(small, 0.25 * self.x.square(), 0.0)
        return torch.where(small, torch.log1p(q * _series(_NEAR[1:], q)), self.x + self.i0.log())

    @property
    def gap(self) -> Tensor:
        return -self.i0.log()

    @property
    def ratio(self) -> Tensor:
        return self.i1 / self.i0

    @property
    def rest(self) -> Tensor:
        near = (self.i0 - self.i1) / self.i0
        return torch.where(self.x > self.far, _series(_FAR, self.inverse), near)

    @property
    def slope(self) -> Tensor:
        a = self.ratio
        some = self.x > 1e-9
        near = 1 - a * a - torch.where(some, a / torch.where(some, self.x, 1.0), 0.5)
        far = self.inverse * _series(_FAR_SLOPE, self.inverse)
        return torch.where(self.x > self.far, far, near)

    @property
    def information(self) -> Tensor:
        far = self.gap - self.x * self.rest
        return torch.where(self.x < 0.25, self.x * self.ratio - self.log, far)


def _bessel(order: float, x: Tensor) -> Bessel | BesselZero:
    return BesselZero(x) if order == 0 else Bessel(order, x)


def log_bessel(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`L_\nu(x)`, the log of the mean of exp(x w): 0 at 0, then about x^2/4(nu + 1).

    >>> log_bessel(0.5, torch.tensor(1.0)).exp()  # sinh(1)
    tensor(1.1752)
    """

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).log

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        return (bessel_ratio(order, x),)

    return known(value, partials, x).to(x.dtype)


def bessel_gap(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`x - L_\nu(x)`, which grows as the logarithm of x."""

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).gap

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        return (bessel_ratio_complement(order, x),)

    return known(value, partials, x).to(x.dtype)


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`A_\nu(x) = I_{\nu + 1}(x) / I_\nu(x)`, the mean of w.

    >>> bessel_ratio(0.5, torch.tensor(2.0))  # coth(2) - 1/2
    tensor(0.5373)
    """

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).ratio

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        return (_bessel(order, x).slope,)

    return known(value, partials, x).to(x.dtype)


def bessel_ratio_complement(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`1 - A_\nu(x)`, about (2 nu + 1)/2x at large x."""

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).rest

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        return (-_bessel(order, x).slope,)

    return known(value, partials, x).to(x.dtype)


def bessel_variance(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`A_\nu'(x)`, the variance of w: 1/(2 nu + 2) at 0, (2 nu + 1)/2x^2 far out."""

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).slope

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        b = _bessel(order, x)
        far = x > 1e-3
        y = torch.where(far, x, 1.0)
        n = 2 * order + 1
        # A'' = -2 A A' - n (A'/x - A/x^2), and -6x / ... at 0 by its series
        near = -3 * x / (2 * (order + 1) ** 2 * (order + 2)) / 2
        return (torch.where(far, -2 * b.ratio * b.slope - n * (b.slope - b.ratio / y) / y, near),)

    return known(value, partials, x).to(x.dtype)


def bessel_information(order: float, x: Tensor) -> Tensor:
    r"""Return :math:`x A_\nu(x) - L_\nu(x) \ge 0`, what exp(x w) has learnt: KL to the uniform."""

    def value(x: Tensor) -> Tensor:
        return _bessel(order, x).information

    def partials(needed: tuple[bool, ...], out: Tensor, x: Tensor) -> tuple:
        return (x * bessel_variance(order, x),)

    return known(value, partials, x).to(x.dtype)
