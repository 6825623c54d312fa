"""Bounds with a logarithm of a mean over particles: IWAE and Renyi."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyrovae import bounds
from pyrovae.objectives.base import Objective, times
from pyrovae.traces import Terms, same
from pyrovae.traces.errors import check_per_datum

__all__ = ["IWAE", "Renyi"]


class _MultiSample(Objective):
    """What bounds with a log-sum-exp share.

    No global latents, no scale inside the logarithm, and only the weights of one datum.
    """

    def bound_of(self, terms: Terms, total: float | None = None) -> Tensor:
        self._check(terms)
        return self.bound(terms)

    def unscaled_of(self, terms: Terms, scale: float) -> Tensor:
        self._check(terms)
        return times(self._common_weight(terms), super().unscaled_of(terms, scale))

    def global_objective(self, terms: Terms) -> float:
        return 0.0

    def _check(self, terms: Terms) -> None:
        check_per_datum(terms, type(self).__name__)

    def _common_weight(self, terms: Terms) -> float | Tensor:
        """A ``poutine.scale`` around the whole of both programs, applied after the bound."""
        named = [(s.name, s.weight) for s in terms.observed.values()]
        for latent in terms.latents.values():
            named += [(latent.name, latent.weight), (latent.name, latent.prior_weight)]
        weight = named[0][1]
        for name, other in named[1:]:
            if not same(weight, other):
                raise ValueError(
                    f"{type(self).__name__}: poutine.scale differs between sites '{named[0][0]}' "
                    f"({weight}) and '{name}' ({other}); inside the log-sum-exp it would not "
                    f"give a bound. Expected: one scale for all of model and guide. "
                    f"Try: pv.ELBO(kl_weight=...) for annealing, or scale both programs whole."
                )
        return weight


class IWAE(_MultiSample):
    r"""Importance-weighted bound :math:`\log \frac1K \sum_k p(x, z_k) / q(z_k|x)` of each datum.

    At least the ELBO and at most log p(x) in expectation, tighter as K grows. N/B of a subsampled
    plate and a ``poutine.scale`` around both programs are applied after the logarithm.

    Args:
        particles: K, draws a datum.
        estimator: What is differentiated. ``"iwae"``: the bound. ``"stl"``: the bound with log q's
            own parameters stopped (Roeder et al. 2017, arXiv:1703.09194; biased for K > 1).
            ``"dreg"``: the model's gradient with weights w, the guide's with squared weights
            (Tucker et al. 2019, arXiv:1810.04152; unbiased).
        data_plate: Name of the plate over data.

    Raises:
        ValueError: On use, for a global latent, a subsampled inner plate, or a scale on some
            sites only.

    Source: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.

    Example:
        >>> import pyrovae as pv
        >>> pv.IWAE(particles=5).particles
        5
    """

    def __init__(
        self,
        particles: int,
        estimator: Literal["iwae", "stl", "dreg"] = "iwae",
        data_plate: str | None = None,
    ) -> None:
        super().__init__(particles, data_plate)
        if estimator not in ("iwae", "stl", "dreg"):
            raise ValueError(
                f'IWAE: estimator must be "iwae", "stl" or "dreg", got {estimator!r}.'
            )
        self.estimator = estimator

    def bound(self, terms: Terms) -> Tensor:
        """The importance-weighted bound, `[B]`, nats."""
        return bounds.iwae(terms.log_weights)

    def objective(self, terms: Terms) -> Tensor:
        """The bound, with the gradient of the chosen estimator, `[B]`."""
        if self.estimator == "iwae" or not torch.is_grad_enabled():
            return self.bound(terms)
        log_weights = terms.log_likelihood
        for latent in terms.local_latents:
            log_weights = log_weights + latent.log_prior - latent.log_posterior_stopped
        if self.estimator == "stl":
            return bounds.iwae(log_weights)
        return _doubly_reparameterized(terms, log_weights)


def _doubly_reparameterized(terms: Terms, log_weights: Tensor) -> Tensor:
    r"""The bound, with the doubly reparameterized gradient.

    .. math:: \sum_k \tilde w_k \nabla_\theta \log w_k + \tilde w_k^2 \nabla_\phi \log w_k

    Both enter through log w: phi only through the draws once log q's own parameters are stopped.
    So the gradient that arrives at a draw is multiplied by one more weight, by a hook, and the
    model's own stays as it is.
    """
    weights = bounds.normalized_weights(log_weights)  # [K, B]
    for latent in terms.local_latents:
        latent.scale_gradient(weights)
    return bounds.iwae(log_weights)


class Renyi(_MultiSample):
    r"""Renyi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}` of each datum.

    Args:
        alpha: Order, at least 0; 0 is :class:`IWAE`, 1 the ELBO.
        particles: K, draws a datum.
        data_plate: Name of the plate over data.

    Source: Li & Turner (2016), arXiv:1602.02311.
    """

    def __init__(self, alpha: float, particles: int, data_plate: str | None = None) -> None:
        super().__init__(particles, data_plate)
        if not 0 <= alpha < float("inf"):
            raise ValueError(
                f"Renyi: alpha must be finite and at least 0, got {alpha}: "
                f"it is no lower bound otherwise."
            )
        self.alpha = alpha

    def bound(self, terms: Terms) -> Tensor:
        """The Renyi bound, `[B]`, nats."""
        return bounds.renyi(terms.log_weights, self.alpha)
