r"""Location-scale families: :math:`z = \mu + s\,\epsilon`, with noise that knows no parameters.

One of the three forms of the reparameterization trick. If :math:`\epsilon` has density
:math:`p_0`, then

.. math::

    \log q(z) = \log p_0\!\left(\frac{z - \mu}{s}\right) - \log s, \qquad
    F(z) = F_0(\epsilon), \qquad F^{-1}(u) = \mu + s\,F_0^{-1}(u),

.. math::

    E[z] = \mu + s\,E[\epsilon], \qquad \mathrm{Var}[z] = s^2\,\mathrm{Var}[\epsilon], \qquad
    H[z] = \log s + H[\epsilon].

So the author of a family says what the noise is, twice: how to draw it (`_noise`) and its
log-density (`_noise_log_prob`). The rest is scaled here from optional one-line hooks:
`_noise_cdf`, `_noise_sf`, `_noise_log_cdf`, `_noise_log_sf`, `_noise_icdf`, `_noise_isf`,
`_noise_mean`, `_noise_variance`, `_noise_mode`, `_noise_entropy`. A family that is symmetric about
zero sets `symmetric = True` and gives left-tail functions only. A quantity whose hook is missing
raises `NotImplementedError`, which names the hook.

Upper tails have functions of their own (`sf`, `log_sf`, `isf`): in float32 the cdf is 1 long
before the survival function is 0, and importance weights are decided out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Number

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae.distributions.base import EMPTY, Reparameterized

__all__ = ["LocationScale", "Logistic"]


class LocationScale(Reparameterized):
    r"""Base of :math:`z = \mu + s\,\epsilon`: `loc` :math:`\mu`, `scale` :math:`s > 0`.

    Further shape parameters of the noise are declared by extending `arg_constraints` and passed on
    as keywords.

    Args:
        loc: location, any shape that broadcasts.
        scale: scale, positive.
        validate_args: check parameters and values; None follows Pyro's setting.
        shape_parameters: what else the noise depends on.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    symmetric = False

    def __init__(
        self,
        loc: Number | Tensor,
        scale: Number | Tensor,
        *,
        validate_args: bool | None = None,
        **shape_parameters: Number | Tensor,
    ) -> None:
        super().__init__(loc=loc, scale=scale, validate_args=validate_args, **shape_parameters)

    def _noise(self, shape: Size) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _noise(shape)")

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _noise_log_prob(eps)")

    # -- draw and score ---------------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        return self.loc + self.scale * self._noise(shape)

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._noise_log_prob(self._standard(z)) - self.scale.log()

    def rsample_and_log_prob(
        self, sample_shape: Size | tuple[int, ...] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise: nothing is inverted."""
        eps = self._noise(self._extended_shape(Size(sample_shape)))
        return self.loc + self.scale * eps, self._noise_log_prob(eps) - self.scale.log()

    def _standard(self, z: Tensor) -> Tensor:
        return (z - self.loc) / self.scale

    # -- tails ------------------------------------------------------------------------------------

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(z <= value)."""
        return self._tail("_noise_cdf", value)

    def sf(self, value: Tensor) -> Tensor:
        """Return P(z > value), accurate where the cdf has rounded to 1."""
        return self._upper("_noise_sf", "_noise_cdf", value)

    def log_cdf(self, value: Tensor) -> Tensor:
        """Return log P(z <= value)."""
        return self._tail("_noise_log_cdf", value)

    def log_sf(self, value: Tensor) -> Tensor:
        """Return log P(z > value)."""
        return self._upper("_noise_log_sf", "_noise_log_cdf", value)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value; the ends of the support at 0 and 1."""
        return self.loc + self.scale * self._hook("_noise_icdf")(value)

    def isf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z > z) = value."""
        if self.symmetric:
            return self.loc - self.scale * self._hook("_noise_icdf")(value)
        return self.loc + self.scale * self._hook("_noise_isf")(value)

    def _tail(self, hook: str, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._hook(hook)(self._standard(value))

    def _upper(self, hook: str, mirrored: str, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        eps = self._standard(value)
        return self._hook(mirrored)(-eps) if self.symmetric else self._hook(hook)(eps)

    # -- moments ----------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        if self.symmetric and not hasattr(self, "_noise_mean"):
            return self.loc
        return self.loc + self.scale * self._hook("_noise_mean")()

    @property
    def mode(self) -> Tensor:
        if self.symmetric and not hasattr(self, "_noise_mode"):
            return self.loc
        return self.loc + self.scale * self._hook("_noise_mode")()

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * self._hook("_noise_variance")()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self.scale.log() + self._hook("_noise_entropy")()

    def _hook(self, name: str) -> Callable[..., Tensor | float]:
        hook = getattr(self, name, None)
        if hook is None:
            raise NotImplementedError(
                f"{type(self).__name__} does not define {name}, which this needs"
            )
        return hook


class Logistic(LocationScale):
    r"""Logistic: :math:`\epsilon = \log E_1 - \log E_2`, the law of :math:`\mathrm{logit}\, u`.

    .. math::

        \log q(z) = \log\sigma(\epsilon) + \log\sigma(-\epsilon) - \log s, \qquad
        F(z) = \sigma(\epsilon), \qquad \mathrm{Var}[z] = s^2 \pi^2 / 3.

    The tails are exponential, heavier than a Gaussian's on both sides. Drawing from two standard
    exponentials keeps every draw finite and both tails whole in float32. Source: Balakrishnan
    (1992), Handbook of the Logistic Distribution.

    Args:
        loc: :math:`\mu`, mean, median and mode.
        scale: :math:`s > 0`.

    >>> Logistic(0.0, 1.0).log_prob(torch.tensor(0.0)).exp()
    tensor(0.2500)
    """

    symmetric = True

    def _noise(self, shape: Size) -> Tensor:
        return self._exponential(shape).log() - self._exponential(shape).log()

    def _noise_log_prob(self, eps: Tensor) -> Tensor:
        return 2 * logsigmoid(eps) - eps

    def _noise_cdf(self, eps: Tensor) -> Tensor:
        return torch.sigmoid(eps)

    def _noise_log_cdf(self, eps: Tensor) -> Tensor:
        return logsigmoid(eps)

    def _noise_icdf(self, u: Tensor) -> Tensor:
        return u.log() - torch.log1p(-u)

    def _noise_variance(self) -> float:
        return math.pi**2 / 3

    def _noise_entropy(self) -> float:
        return 2.0
