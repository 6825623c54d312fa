r"""Running sums over particles: what :class:`Evidence` reports, in memory flat in K.

For log-weights :math:`\log w_k` of one datum, kept in float64 are

.. math:: \log \sum_k w_k, \quad \log \sum_k w_k^2, \quad \overline{\log w}, \quad
    \sum_k (\log w_k - \overline{\log w})^2,

the last two merged block by block (Chan, Golub & LeVeque 1983), and the largest M + 1 log-weights,
from which the tail's shape is fitted (:mod:`pyrovae.evidence.psis`). From them follow

.. math:: \log \hat p(x) = \log \tfrac1K \sum_k w_k, \quad
    \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \quad
    \mathrm{s.e.} = \sqrt{\frac{K/\mathrm{ESS} - 1}{K - 1}},

the standard error being that of the delta method, sd(w) / (sqrt(K) mean(w)), in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.evidence.psis import largest, tail_khat, tail_length

__all__ = ["Stream"]


class Stream:
    """Statistics of log-weights `[k, B]` that arrive in blocks.

    Args:
        particles: K, the number that will arrive in all.
        data: B.
        device: Where the log-weights are.
    """

    def __init__(self, particles: int, data: int, device: torch.device | str = "cpu") -> None:
        start = torch.full((data,), -math.inf, dtype=torch.float64, device=device)
        self.particles, self.seen = particles, 0
        self.log_sum, self.log_sum_squares = start, start.clone()
        self.mean = torch.zeros_like(start)
        self.squares = torch.zeros_like(start)
        self.tail = tail_length(particles) + 1
        self.top = start.new_empty(data, 0)  # [B, at most M + 1], descending

    def add(self, log_weights: Tensor) -> None:
        """Take in the next block `[k, B]`; -inf is a weight of 0."""
        block = log_weights.double()
        k, n = block.shape[0], self.seen + block.shape[0]
        self.log_sum = torch.logaddexp(self.log_sum, block.logsumexp(0))
        self.log_sum_squares = torch.logaddexp(self.log_sum_squares, (2 * block).logsumexp(0))
        mean = block.mean(0)
        step = mean - self.mean
        self.squares = (
            self.squares + (block - mean).square().sum(0) + step**2 * (self.seen * k / n)
        )
        self.mean = self.mean + step * (k / n)
        self.top = largest(torch.cat([self.top, block.T], 1), self.tail)
        self.seen = n

    def result(self) -> dict[str, Tensor]:
        """log_px, std_error, ess, khat, elbo and elbo_std_error, each `[B]` in float64."""
        n = self.seen
        possible = self.log_sum > -math.inf
        ess = torch.where(possible, (2 * self.log_sum - self.log_sum_squares).exp(), 0.0)
        spread = (n / ess - 1).clamp_min(0)  # squared coefficient of variation
        if n > 1:
            std_error = torch.where(possible, (spread / (n - 1)).sqrt(), math.nan)
            elbo_error = (self.squares / (n * (n - 1))).sqrt()
        else:
            std_error = elbo_error = torch.full_like(ess, math.nan)
        elbo = torch.where(self.mean.isnan(), -math.inf, self.mean)  # -inf - (-inf) on the way
        return {
            "log_px": self.log_sum - math.log(n),
            "std_error": std_error,
            "ess": ess,
            "khat": self._khat(possible, spread),
            "elbo": elbo,
            "elbo_std_error": torch.where(elbo.isfinite(), elbo_error, math.nan),
        }

    def _khat(self, possible: Tensor, spread: Tensor) -> Tensor:
        khat = torch.full_like(spread, math.inf)
        if bool(possible.any()):
            khat[possible] = tail_khat(self.top[possible])
        if self.seen > 1:  # equal weights (an exact posterior) have no tail at all
            khat = torch.where(possible & (spread < 1e-12), -math.inf, khat)
        return khat
