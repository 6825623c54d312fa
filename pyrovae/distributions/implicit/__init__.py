r"""Implicit reparameterization: draws from anything, moved by the cdf that they keep.

Where no map :math:`z = g_\theta(\epsilon)` is known but the cdf is, a draw z at a fixed value of
its cdf has :math:`dz/d\theta = -\partial_\theta F / q(z)`, however it was drawn (Figurnov, Mohamed
and Mnih 2018, arXiv 1805.08498):

* :class:`Mixture`: of any reparameterizable components, univariate or vectors, with gradients to
  the weights too; :func:`mixture_of` makes a family of them, for an encoder's head;
* :class:`Truncated`: any family with both tails, cut to an interval;
* :class:`~pyrovae.distributions.InverseCDF`: your own family from a density and a cdf.
"""

from pyrovae.distributions.implicit.families import Each, mixture_of
from pyrovae.distributions.implicit.mixture import Mixture
from pyrovae.distributions.implicit.truncated import Truncated

__all__ = ["Each", "Mixture", "Truncated", "mixture_of"]
