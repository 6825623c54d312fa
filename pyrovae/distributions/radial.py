r"""Radial laws: how far from the centre an elliptical draw lies.

A spherical vector in d dimensions is :math:`\epsilon = r\,s`, with s uniform on the unit sphere
and a radius r > 0. Its density depends on the radius alone, through a density generator g:

.. math::

    \log p(\epsilon) = \log g(r) - \log Z_d, \qquad
    Z_d = \frac{2\pi^{d/2}}{\Gamma(d/2)} \int_0^\infty r^{d-1} g(r)\,dr.

Each law here gives :math:`\log g - \log Z_d` (`log_density`), an exact draw of the radius
(`radius`), and :math:`E[r^2] / d` (`variance`), the factor between
:math:`A A^\top` and the covariance. In one dimension each is the univariate family of its name.

| law | :math:`g(r)` | radius |
|---|---|---|
| `Normal()` | :math:`e^{-r^2/2}` | :math:`r^2 \sim \chi^2_d` |
| `StudentT(df)` | :math:`(1 + r^2/\nu)^{-(\nu + d)/2}` | :math:`\chi_d\sqrt{\nu/\chi^2_\nu}` |
| `Laplace()` | :math:`e^{-r}` | :math:`r \sim \mathrm{Erlang}(d, 1)` |
| `Logistic()` | :math:`e^{-r} / (1 + e^{-r})^2` | Erlang, kept with :math:`(1 + e^{-r})^{-2}` |
| `PowerExponential(b)` | :math:`e^{-r^{2b}/2}` | :math:`r^{2b}/2 \sim \Gamma(d/2b, 1)` |

Sources: Fang, Kotz and Ng (1990), Symmetric Multivariate and Related Distributions; Gomez,
Gomez-Villegas and Marin (1998) for the power-exponential.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from numbers import Number

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae.distributions.base import Reparameterized, can_look
from pyrovae.distributions.special import log_gamma_ratio, sample_log_gamma
from pyrovae.distributions.stable import mean_under_exponential

__all__ = ["Laplace", "Logistic", "Normal", "PowerExponential", "Radial", "StudentT"]


class Radial(Reparameterized):
    """Base of the radial laws: authors write `radius`, `log_density` and `variance`."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.positive

    def like(self, other: Tensor) -> Radial:
        """Return this law with its parameters in the dtype and on the device of `other`."""
        if all(v.dtype == other.dtype and v.device == other.device for v in self._given()):
            return self
        new = copy.copy(self)
        for name in self._names:
            setattr(new, name, getattr(self, name).to(other))
        return new

    def _given(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        """Draw radii for vectors of shape `shape`: `[*shape[:-1]]`, dtype and device of `like`."""
        raise NotImplementedError(f"{type(self).__name__} must define radius(shape, like)")

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        """Return the log-density of a vector from the square of its length."""
        raise NotImplementedError(f"{type(self).__name__} must define log_density(square, dim)")

    def variance_in(self, dim: int) -> Tensor | float:
        """Return E[r^2] / d, the variance of one coordinate."""
        raise NotImplementedError(f"{type(self).__name__} does not define variance_in(dim)")

    def entropy_in(self, dim: int) -> Tensor | float:
        """Return the differential entropy of the vector, in nats."""
        raise NotImplementedError(f"{type(self).__name__} does not define entropy_in(dim)")


def _log_sphere(dim: int) -> float:
    """Return the log-area of the unit sphere in `dim` dimensions."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _length(square: Tensor) -> Tensor:
    """Return the square root, with slope 0 instead of infinity at the centre."""
    centre = square == 0
    return torch.where(centre, 0.0, torch.where(centre, 1.0, square).sqrt())


class Normal(Radial):
    """Gaussian radius.

    >>> Normal().variance_in(3)
    1.0
    """

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device).norm(dim=-1)

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        return -0.5 * square - 0.5 * dim * math.log(2 * math.pi)

    def variance_in(self, dim: int) -> float:
        return 1.0

    def entropy_in(self, dim: int) -> float:
        return 0.5 * dim * (1 + math.log(2 * math.pi))


class StudentT(Radial):
    r"""Student's t radius: a Gaussian vector over :math:`\sqrt{\chi^2_\nu / \nu}`.

    Args:
        df: degrees of freedom :math:`\nu > 0`, a number or a tensor of batch shape.

    >>> StudentT(4.0).variance_in(3)
    tensor(2.)
    """

    arg_constraints = {"df": constraints.positive}

    def __init__(self, df: Number | Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(df=df, validate_args=validate_args)

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        length = torch.randn(shape, dtype=like.dtype, device=like.device).norm(dim=-1)
        half = (0.5 * self.df).to(like).expand(length.shape)
        # in logs: a chi-square of few degrees of freedom underflows
        top = 0.4 * math.log(torch.finfo(like.dtype).max)
        ratio = half.log() - sample_log_gamma(half).to(like.dtype)
        return length * (0.5 * ratio).clamp_max(top).exp()

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        df = self.df
        const = log_gamma_ratio(0.5 * df, 0.5 * dim) - 0.5 * dim * torch.log(math.pi * df)
        return const - 0.5 * (df + dim) * torch.log1p(square / df)

    def variance_in(self, dim: int) -> Tensor:
        df = torch.where(self.df > 2, self.df, 3.0)
        return torch.where(self.df > 2, df / (df - 2), math.inf)

    def entropy_in(self, dim: int) -> Tensor:
        df = self.df
        const = log_gamma_ratio(0.5 * df, 0.5 * dim) - 0.5 * dim * torch.log(math.pi * df)
        return (
            0.5 * (df + dim) * (torch.digamma(0.5 * (df + dim)) - torch.digamma(0.5 * df)) - const
        )


class Laplace(Radial):
    """Exponential radius: the density is exp(-r), the radius a sum of d exponentials.

    >>> Laplace().variance_in(1)
    2.0
    """

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        return _erlang(shape, like)

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        return -_length(square) - _log_sphere(dim) - math.lgamma(dim)

    def variance_in(self, dim: int) -> float:
        return float(dim + 1)

    def entropy_in(self, dim: int) -> float:
        return dim + _log_sphere(dim) + math.lgamma(dim)


def _erlang(shape: Size, like: Tensor) -> Tensor:
    draw = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
    return draw.sum(-1).clamp_min(torch.finfo(like.dtype).tiny)


class Logistic(Radial):
    """Logistic radius: the density is that of a logistic variable at r.

    The radius is an Erlang one, kept with probability 1 / (1 + exp(-r))^2: more than half of the
    proposals are. In a graph, where no loop can depend on a value, 48 proposals are made; a draw
    of which none was kept (probability below 2^-48) is the last proposal.

    >>> round(Logistic().variance_in(1), 6)
    3.289868
    """

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        r = _erlang(shape, like)
        kept = self._keep(r)
        for _ in range(47):
            if can_look() and bool(kept.all()):
                break
            other = _erlang(shape, like)
            r = torch.where(kept, r, other)
            kept = kept | self._keep(other)
        return r

    def _keep(self, r: Tensor) -> Tensor:
        # E > 2 softplus(-r) has probability (1 + exp(-r))^-2
        return torch.empty_like(r).exponential_() > -2 * logsigmoid(r)

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        r = _length(square)
        return logsigmoid(r) + logsigmoid(-r) - _log_sphere(dim) - math.log(_logistic(dim - 1))

    def variance_in(self, dim: int) -> float:
        return _logistic(dim + 1) / _logistic(dim - 1) / dim

    def entropy_in(self, dim: int) -> float:
        total = mean_under_exponential(lambda r: _logistic_entropy_at(r, dim))
        return total / _logistic(dim - 1) + _log_sphere(dim) + math.log(_logistic(dim - 1))


@lru_cache(maxsize=256)
def _logistic(k: int) -> float:
    r"""Return the integral of r^k e^{-r} / (1 + e^{-r})^2 over r > 0: k! eta(k), eta of Dirichlet.

    :math:`\eta(0) = 1/2`, :math:`\eta(1) = \log 2`, else by the alternating series accelerated as
    Cohen, Rodriguez Villegas and Zagier (2000).
    """
    n = 40
    d = ((3 + math.sqrt(8)) ** n + (3 - math.sqrt(8)) ** n) / 2
    b, c, total = -1.0, -d, 0.0
    for i in range(n):
        c = b - c
        total += c * (i + 1.0) ** -k
        b *= (i + n) * (i - n) / ((i + 0.5) * (i + 1))
    return math.factorial(k) * total / d if k else 0.5


def _logistic_entropy_at(r: float, dim: int) -> float:
    tail = math.exp(-r)
    return r ** (dim - 1) * (r + 2 * math.log1p(tail)) / (1 + tail) ** 2


class PowerExponential(Radial):
    r"""Power-exponential radius: :math:`\beta = 1` is the Gaussian, smaller is heavier-tailed.

    Args:
        beta: :math:`\beta > 0`, a number or a tensor of batch shape.

    >>> round(PowerExponential(0.5).variance_in(1).item(), 4)
    8.0
    """

    arg_constraints = {"beta": constraints.positive}

    def __init__(self, beta: Number | Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(beta=beta, validate_args=validate_args)

    def radius(self, shape: Size, like: Tensor) -> Tensor:
        beta = self.beta.to(like)
        log_power = sample_log_gamma((0.5 * shape[-1] / beta).expand(shape[:-1])).to(like.dtype)
        top = 0.4 * math.log(torch.finfo(like.dtype).max)
        return ((log_power + math.log(2)) / (2 * beta)).clamp(-top, top).exp()

    def log_density(self, square: Tensor, dim: int) -> Tensor:
        centre = square == 0
        power = torch.where(centre, 0.0, torch.where(centre, 1.0, square).pow(self.beta))
        return -0.5 * power - self._log_z(dim)

    def _log_z(self, dim: int) -> Tensor:
        k = 0.5 * dim / self.beta
        return _log_sphere(dim) + torch.lgamma(k) + k * math.log(2) - torch.log(2 * self.beta)

    def variance_in(self, dim: int) -> Tensor:
        k = 0.5 * dim / self.beta
        return torch.exp(log_gamma_ratio(k, 1 / self.beta) + math.log(2) / self.beta) / dim

    def entropy_in(self, dim: int) -> Tensor:
        return 0.5 * dim / self.beta + self._log_z(dim)
