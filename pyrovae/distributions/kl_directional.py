r"""KL divergences of directional laws, registered with torch; nothing cancels.

With :math:`L(\kappa) = \log E[e^{\kappa w}]`, :math:`A = L'` and the Bregman divergence
:math:`D_L(q, p) = L(q) - L(p) - (q - p) A(p) \ge 0`,

.. math::

    \mathrm{KL}(\kappa \,\|\, \text{uniform}) = \kappa A(\kappa) - L(\kappa), \qquad
    \mathrm{KL}(p \,\|\, q) = D_L(\kappa_q, \kappa_p)
    + \kappa_q A(\kappa_p)\,(1 - \mu_p^\top \mu_q) .

Importing this module registers the pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.kl import register_kl

from pyrovae.distributions.directional import VonMises
from pyrovae.distributions.interval import Uniform
from pyrovae.distributions.special.bessel import bessel_information

__all__: list[str] = []


@register_kl(VonMises, Uniform)
@register_kl(VonMises, td.Uniform)
def _von_mises_uniform(p: VonMises, q: td.Uniform) -> Tensor:
    """Against the uniform law of all angles; infinite where the interval misses some."""
    covers = (q.low <= -math.pi) & (q.high >= math.pi)
    width = torch.where(covers, q.high - q.low, 2 * math.pi)
    value = bessel_information(0.0, p.concentration) + torch.log(width / (2 * math.pi))
    return torch.where(covers, value, math.inf)
