r"""The von Mises law of angles.

.. math:: q(z) = \frac{e^{\kappa\cos(z - \mu)}}{2\pi I_0(\kappa)}, \qquad z \in [-\pi, \pi].

Angles are numbers between :math:`-\pi` and :math:`\pi` here, and :math:`\pm\pi` is one point: a
network that reads z should read :math:`(\cos z, \sin z)`, as :class:`pyrovae.nn.OnCircle` does and
:class:`pyrovae.models.VAE` with it. HMC and NUTS, which map the interval to the line, see a
posterior around :math:`\pm\pi` as two modes: center it elsewhere, or draw the angle of a vector
as :mod:`~pyrovae.distributions.directional.sphere` says.

Draws come from the rejection of Best and Fisher (1979), Applied Statistics 28, in half angles:
the wrapped Cauchy proposal is :math:`\tan\tfrac\theta2 = g\tan\phi`, :math:`\phi` uniform, with
:math:`g^{-2} = 2\kappa + \sqrt{1 + 4\kappa^2}`, which needs few digits at any :math:`\kappa`. At
least 0.65 of the proposals are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Number

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrovae.distributions.base import EMPTY
from pyrovae.distributions.directional.rejection import first_accepted
from pyrovae.distributions.inverse_cdf import InverseCDF
from pyrovae.distributions.special.bessel import bessel_information, bessel_ratio_complement
from pyrovae.distributions.special.polar import pathwise_polar
from pyrovae.distributions.special.von_mises import (
    log_von_mises_density,
    von_mises_quantile,
    von_mises_tail,
)

__all__ = ["VonMises", "circle"]

#: the angles; both ends are the same point
circle = constraints.interval(-math.pi, math.pi)


class VonMises(InverseCDF, dist.VonMises):
    r"""Von Mises: :math:`z = \mu + \theta` modulo :math:`2\pi`, the Gaussian of the circle.

    The gradient in :math:`\kappa` is the implicit one, exact; torch's and Pyro's have none. As in
    torch, `mean` is the circular one and `variance` is :math:`1 - E[\cos(z - \mu)]`. The cdf
    counts from :math:`-\pi`. Unlike in torch, whose density has period :math:`2\pi` and so no
    finite integral, values outside :math:`[-\pi, \pi]` are refused: take them modulo
    :math:`2\pi` first, `torch.remainder(x + torch.pi, 2 * torch.pi) - torch.pi`.

    Args:
        loc: :math:`\mu`, any real number; an angle.
        concentration: :math:`\kappa > 0`; :math:`1/\sqrt\kappa` is the width where it is large.

    Sources: Mardia and Jupp (2000), Directional Statistics; Figurnov et al. (2018),
    arXiv 1805.08498, for the gradient.

    >>> VonMises(0.0, 1e6).log_prob(torch.tensor(0.001))
    tensor(5.4888)
    """

    arg_constraints = {"loc": constraints.real, "concentration": constraints.positive}
    support = circle
    has_rsample = True

    def __init__(
        self,
        loc: Number | Tensor,
        concentration: Number | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(loc=loc, concentration=concentration, validate_args=validate_args)

    def _noise(self, shape: Size) -> Tensor:
        return pathwise_polar(2, self._angle, self.concentration.expand(shape))

    def _angle(self, concentration: Tensor) -> Tensor:
        return first_accepted(self._propose, concentration)

    def _propose(self, concentration: Tensor) -> tuple[Tensor, Tensor]:
        """Return a wrapped Cauchy angle for each element, and whether it is accepted."""
        double = 2 * concentration
        g2 = 1 / (double + torch.hypot(torch.ones_like(double), double))
        phi = math.pi * (self._uniform(double.shape) - 0.5)
        sin, cos = phi.sin(), phi.cos()
        near = g2 * sin * sin
        excess = 0.5 * (1 + g2) + double * near / (cos * cos + near)
        accepted = self._exponential(double.shape) >= excess - 1 - excess.log()
        return 2 * torch.atan2(g2.sqrt() * sin, cos), accepted

    def _rsample(self, shape: Size) -> Tensor:
        return _wrap(self.loc + self._noise(shape))

    def rsample_and_log_prob(
        self, sample_shape: Size | Sequence[int] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise."""
        theta = self._noise(self._extended_shape(Size(sample_shape)))
        return _wrap(self.loc + theta), log_von_mises_density(self.concentration, theta)

    def _log_prob(self, z: Tensor) -> Tensor:
        return log_von_mises_density(self.concentration, z.double() - self.loc.double()).to(
            torch.promote_types(z.dtype, self.loc.dtype)
        )

    def _cdf(self, z: Tensor) -> Tensor:
        return von_mises_tail(self.loc, self.concentration, z, log=False, lower=True)

    def _sf(self, z: Tensor) -> Tensor:
        return von_mises_tail(self.loc, self.concentration, z, log=False, lower=False)

    def _log_cdf(self, z: Tensor) -> Tensor:
        return von_mises_tail(self.loc, self.concentration, z, log=True, lower=True)

    def _log_sf(self, z: Tensor) -> Tensor:
        return von_mises_tail(self.loc, self.concentration, z, log=True, lower=False)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z in [-pi, pi] with P(Z <= z) = value."""
        return von_mises_quantile(self.loc, self.concentration, value, lower=True)

    def isf(self, value: Tensor) -> Tensor:
        return von_mises_quantile(self.loc, self.concentration, value, lower=False)

    @property
    def mean(self) -> Tensor:
        """The direction of the mean of (cos z, sin z)."""
        return _wrap(self.loc)

    @property
    def mode(self) -> Tensor:
        return _wrap(self.loc)

    @property
    def variance(self) -> Tensor:
        r"""The circular variance :math:`1 - I_1(\kappa)/I_0(\kappa)`, between 0 and 1."""
        return bessel_ratio_complement(0.0, self.concentration)

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return math.log(2 * math.pi) - bessel_information(0.0, self.concentration)


def _wrap(angle: Tensor) -> Tensor:
    """Return the angle modulo 2 pi, strictly between -pi and pi; its slope is 1 everywhere."""
    turns = torch.round(angle.detach() / (2 * math.pi))
    most = 3.1415925 if angle.dtype == torch.float32 else math.pi  # the last number below pi
    inside = (angle.detach() - 2 * math.pi * turns).clamp(-most, most)
    return angle + (inside - angle.detach())
