r"""Bounds on log p(x) as pure functions of log-weights.

With :math:`z_k \sim q(z|x)`, :math:`k = 1 \dots K`, a log-weight is

.. math:: \log w_k = \log p(x, z_k) - \log q(z_k | x),

and every function here maps ``log_weights`` ``[K, B]`` to one number per datum ``[B]``, in nats.
Nothing is summed over data: a plate's factor N/B is applied by the caller, *after* the bound.
Inside a log-sum-exp it would not be a bound at all.

Gradients are the plain ones of each formula; the estimators that differentiate something else
(sticking the landing, doubly reparameterized) live in :mod:`pyrovae.objectives`, which knows
whose parameters are whose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["effective_sample_size", "elbo", "iwae", "normalized_weights", "renyi", "std_error"]


def elbo(log_weights: Tensor) -> Tensor:
    r"""Evidence lower bound :math:`\frac1K \sum_k \log w_k`, ``[K, B] -> [B]``, nats.

    Source: Kingma & Welling (2014), arXiv:1312.6114, estimator A.
    """
    return log_weights.mean(0)


def iwae(log_weights: Tensor) -> Tensor:
    r"""Importance-weighted bound :math:`\log \frac1K \sum_k w_k`, ``[K, B] -> [B]``, nats.

    At least the ELBO, at most log p(x), and monotone in K. Source: Burda, Grosse & Salakhutdinov
    (2016), arXiv:1509.00519.
    """
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def renyi(log_weights: Tensor, alpha: float) -> Tensor:
    r"""Renyi bound, ``[K, B] -> [B]``, nats.

    .. math:: \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}

    ``alpha=0`` is :func:`iwae`, ``alpha -> 1`` is :func:`elbo`; a lower bound in expectation for
    ``0 <= alpha``. Source: Li & Turner (2016), arXiv:1602.02311.
    """
    if alpha == 1:
        return elbo(log_weights)
    return iwae((1 - alpha) * log_weights) / (1 - alpha)


def normalized_weights(log_weights: Tensor) -> Tensor:
    r"""Self-normalized weights :math:`w_k / \sum_j w_j`, ``[K, B] -> [K, B]``, no gradient."""
    return torch.softmax(log_weights.detach(), 0)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Kish's effective sample size, ``[K, B] -> [B]``, in draws.

    .. math:: \frac{(\sum_k w_k)^2}{\sum_k w_k^2}
    """
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))


def std_error(log_weights: Tensor) -> Tensor:
    r"""Standard error of :func:`iwae` as an estimate of log p(x), ``[K, B] -> [B]``, nats.

    Delta method, with the unbiased variance; NaN for K = 1, where no spread can be seen:

    .. math:: \frac{\mathrm{sd}(w)}{\sqrt K \, \bar w} = \sqrt{\frac{K/\mathrm{ESS} - 1}{K - 1}}
    """
    particles = log_weights.shape[0]
    if particles == 1:
        return torch.full_like(log_weights[0], math.nan)
    excess = particles / effective_sample_size(log_weights) - 1
    return (excess.clamp_min(0) / (particles - 1)).sqrt()
