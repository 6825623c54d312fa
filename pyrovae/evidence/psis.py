r"""Pareto k-hat: can these weights be averaged at all?

The largest M of S importance weights are fitted by a generalized Pareto distribution with shape k.
Where k < 1/2 the weights have a finite variance and the delta-method error of log p(x) can be
trusted; up to about 0.7 the estimate converges at a useful rate; beyond, no number of particles
that can be paid for will do. With few draws even less is safe, hence the threshold
:math:`\min(1 - 1/\log_{10} S,\, 0.7)`.

The tail is :math:`M = \lceil \min(S/5,\, 3\sqrt S) \rceil` weights, taken as excesses over the
next smaller one. The fit is the empirical Bayes estimate of Zhang & Stephens (2009, Technometrics
51), with k shrunk towards 1/2 by the weight of ten observations (Vehtari et al. 2024,
arXiv:1507.02646). Only the M + 1 largest log-weights are needed, so a stream of particles keeps no
more than these: memory grows with :math:`\sqrt S`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["khat_threshold", "largest", "psis_khat", "tail_khat", "tail_length"]

_COLUMNS = 256  # columns fitted at once: the work array stays in the cache


def tail_length(particles: int) -> int:
    """M, the number of draws in the tail of `particles` draws."""
    return math.ceil(min(particles / 5, 3 * particles**0.5))


def khat_threshold(particles: int) -> float:
    """The k-hat above which an estimate from `particles` draws is not to be trusted."""
    return min(1 - 1 / math.log10(particles), 0.7) if particles > 1 else -math.inf


def psis_khat(log_weights: Tensor) -> Tensor:
    r"""Pareto k-hat of each column of log-weights, `[K, B] -> [B]`.

    Args:
        log_weights: Log *weights* (not log-likelihoods) `[K, B]`, nats, up to a constant a column;
            -inf is weight 0.

    Returns:
        k-hat `[B]` in float64; inf where fewer than five draws lie above the cutoff (too few
        draws, or equal weights).

    Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), arXiv:1507.02646.

    Example:
        >>> import torch
        >>> z = torch.linspace(0.001, 0.999, 999).unsqueeze(1)
        >>> bool(psis_khat(-0.2 * z.log()) < psis_khat(-0.9 * z.log()))
        True
    """
    particles = log_weights.shape[0]
    top = largest(log_weights.double().T.contiguous(), tail_length(particles) + 1)
    return tail_khat(top)


def largest(rows: Tensor, size: int) -> Tensor:
    """The `size` largest values of each row in descending order, `[B, K] -> [B, min(size, K)]`."""
    size = min(size, rows.shape[1])
    if rows.device.type != "cpu":
        return rows.topk(size, dim=1).values
    # NumPy's vectorized selection is eight times as fast as topk on a CPU
    part = np.partition(rows.numpy(), rows.shape[1] - size, axis=1)[:, rows.shape[1] - size :]
    return torch.from_numpy(np.sort(part, axis=1)[:, ::-1].copy())


def tail_khat(top: Tensor) -> Tensor:
    """Pareto k-hat from the M + 1 largest log-weights in descending order, `[B, M + 1] -> [B]`."""
    return torch.cat([_fit(part) for part in top.double().split(_COLUMNS)])


def _fit(top: Tensor) -> Tensor:
    tiny = math.log(torch.finfo(torch.float64).tiny)
    top = top - top[:, :1]  # [B, M + 1]
    cutoff = top[:, -1:].clamp_min(tiny)
    inside = top > cutoff  # ties with the cutoff are not in the tail
    n = inside.sum(1)  # [B]
    excess = torch.where(inside, top.exp() - cutoff.exp(), 0.0)
    fit = n > 4
    k = torch.full_like(excess[:, 0], math.inf)
    if bool(fit.any()):
        k[fit] = _pareto_shape(excess[fit], n[fit])
    return k


def _pareto_shape(excess: Tensor, n: Tensor) -> Tensor:
    """Shape of a generalized Pareto fitted to the first n excesses of each row (descending)."""
    count = n.double()
    quartile_rank = (count / 4 + 0.5).long()  # counted from the smallest
    quartile = excess.gather(1, (n - quartile_rank).unsqueeze(1))  # [B, 1]
    grid_size = 30 + count.sqrt().long()  # [B]
    grid = torch.arange(1, int(grid_size.max()) + 1, dtype=torch.float64, device=excess.device)
    b = (1 - (grid_size.unsqueeze(1) / (grid - 0.5)).sqrt()) / (3 * quartile)  # [B, G]
    b = b + 1 / excess[:, :1]
    k = _mean_log1p(b, excess, count)  # [B, G]
    profile = count.unsqueeze(1) * ((-(b / k)).log() - k - 1)
    profile = profile.masked_fill(grid > grid_size.unsqueeze(1), -math.inf)
    weights = torch.softmax(profile, 1)
    weights = torch.where(weights >= 10 * torch.finfo(torch.float64).eps, weights, 0.0)
    total = weights.sum(1, keepdim=True)
    b_mean = torch.where(weights > 0, b * weights, 0.0).sum(1, keepdim=True)  # [B, 1]
    b_mean = b_mean / torch.where(total > 0, total, 1.0)
    k_mean = _mean_log1p(b_mean, excess, count).squeeze(1)
    return (count * k_mean + 5) / (count + 10)


def _mean_log1p(b: Tensor, excess: Tensor, count: Tensor) -> Tensor:
    """Mean over the tail of log(1 - b * excess), `[B, G]`; the zeros after the tail add nothing.

    Logarithms are dear and products cheap: up to sixteen factors are multiplied before one
    logarithm is taken, as many as cannot overflow (nor underflow: each factor exceeds 1e-4).
    """
    ones = torch.ones_like(b[:1, :1]).unsqueeze(2)
    factors = torch.baddbmm(ones, -b.unsqueeze(2), excess.unsqueeze(1))  # [B, G, M]
    largest_factor = max(1 - (b.amin(1) * excess[:, 0]).min().item(), 10.0)
    halvings = max(0, min(4, int(math.log2(300 / math.log10(largest_factor)))))
    for _ in range(halvings):
        half = (factors.shape[2] + 1) // 2
        rest = factors.shape[2] - half
        factors[:, :, :rest] *= factors[:, :, half:]
        factors = factors[:, :, :half]
    return factors.log().sum(2) / count.unsqueeze(1)
