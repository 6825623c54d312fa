"""The units of a latent site: what stands in one coordinate of z by itself.

A site whose posterior factorizes has a distribution a unit, and so a KL a unit. A unit is one
coordinate of the event (and of plates inside the data plate); D of them make a site.
"""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.distributions.lowrank_multivariate_normal import LowRankMultivariateNormal

from pyrovae.traces.support import unwrap

__all__ = ["centre", "factors", "marginals"]


def factors(fn: Any) -> Any | None:
    """The distribution of each unit, its batch shape that of `fn` plus the units; or None.

    None for whatever does not factorize, for a point, and under a mask of the distribution's own.
    """
    root, layer = unwrap(fn), fn
    while layer is not root:
        if hasattr(layer, "_mask"):  # a MaskedDistribution, whose base knows nothing of the mask
            return None
        layer = layer.base_dist
    return None if root.event_shape or isinstance(root, Delta) else root


def marginals(fn: Any) -> Any | None:
    """The same, or the marginals of a multivariate Normal (whose KLs do not add up to its KL)."""
    root = unwrap(fn)
    if isinstance(root, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(root.mean, root.variance.sqrt(), validate_args=False)
    return None if root.event_shape or isinstance(root, Delta) else root


def centre(fn: Any, draws: Tensor) -> tuple[Tensor | None, bool]:
    """The mean of a distribution, or its median where there is none; and whether it is the median.

    Args:
        fn: A distribution.
        draws: Draws from it, `[K, *batch, *event]`, whose median stands in where neither is known.

    Returns:
        `[*batch, *event]`; None for a discrete distribution without a mean.
    """
    try:
        mean = fn.mean
        if bool(mean.isfinite().all()):
            return mean, False
    except (NotImplementedError, AttributeError):
        pass
    if getattr(fn.support, "is_discrete", False):
        return None, False
    root = unwrap(fn)
    if not root.event_shape:
        try:
            return root.icdf(draws.new_tensor(0.5)), True
        except NotImplementedError:
            pass
    return draws.median(0).values, True
