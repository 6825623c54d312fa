"""Excess wrong bits of a truncated Normal and of a mixture of two, as in `accuracy.py`."""

import mpmath as mp
import numpy as np
import torch

from pyrovae import distributions as D
from tests.distributions.accuracy import normal_icdf, two_sided, worst_of


def normal_sf(z):
    return mp.erfc(z / mp.sqrt(2)) / 2


def normal_between(low, high):
    """The mass of the standard Normal, at 80 digits, on the side where it is small."""
    if low > 0:
        return normal_sf(low) - normal_sf(high)
    return normal_sf(-high) - normal_sf(-low)


def cut_icdf(u, loc, scale, low, high):
    a, b = (low - loc) / scale, (high - loc) / scale
    if a > 0:
        return loc - scale * normal_icdf((1 - u) * normal_sf(a) + u * normal_sf(b))
    return loc + scale * normal_icdf((1 - u) * normal_sf(-a) + u * normal_sf(-b))


def cut_density(z, loc, scale, low, high):
    mass = normal_between((low - loc) / scale, (high - loc) / scale)
    return mp.npdf(z, loc, scale) / mass


def cut_share(start, end, loc, scale, low, high):
    whole = normal_between((low - loc) / scale, (high - loc) / scale)
    return normal_between((start - loc) / scale, (end - loc) / scale) / whole


def truncated_normal(loc, scale, low, high):
    return D.Truncated(D.Normal(loc, scale), low, high)


def cut(rng):
    """Ends from the far left to the far right, far apart or so near that cdfs agree."""
    scale = 10.0 ** rng.uniform(-3, 3)
    loc = rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-3, 3)
    low = loc + scale * rng.uniform(-30, 30)
    return loc, scale, low, low + scale * 10.0 ** rng.uniform(-6, 1)


def normal_mixture(logit, loc, scale, loc2, scale2):
    logits = torch.stack([logit, torch.zeros_like(logit)], -1)
    parts = D.Normal(torch.stack([loc, loc2], -1), torch.stack([scale, scale2], -1))
    return D.Mixture(logits, parts)


def two_normals(rng):
    first, second = 5 * rng.normal(size=2)
    return rng.normal(), first, 10.0 ** rng.uniform(-3, 3), second, 10.0 ** rng.uniform(-3, 3)


def mixed(f):
    """Mix a function of z, loc and scale over two components."""

    def of(z, logit, loc, scale, loc2, scale2):
        w = 1 / (1 + mp.exp(-logit))
        return w * f(z, loc, scale) + (1 - w) * f(z, loc2, scale2)

    return of


CASES = {
    truncated_normal: (cut, two_sided(
        lambda z, *p: mp.log(cut_density(z, *p)),
        lambda z, m, s, lo, hi: cut_share(lo, z, m, s, lo, hi),
        lambda z, m, s, lo, hi: cut_share(z, hi, m, s, lo, hi),
        cut_icdf,
        lambda q, m, s, lo, hi: -cut_icdf(q, -m, s, -hi, -lo))),
    normal_mixture: (two_normals, two_sided(
        lambda z, *p: mp.log(mixed(mp.npdf)(z, *p)),
        mixed(lambda z, m, s: normal_sf((m - z) / s)),
        mixed(lambda z, m, s: normal_sf((z - m) / s)), None, None)),
}  # fmt: skip


def worst_excess(family, dtype, draws, seed):
    """Return {method: (excess wrong bits, inputs, got)} over `draws` random parameters."""
    draw, oracle = CASES[family]
    rng = np.random.default_rng(seed)
    drawn = (draw(rng) for _ in range(draws))
    if family is truncated_normal:  # ends that rounding has not made equal
        drawn = (p for p in drawn if np.float32(p[2]) < np.float32(p[3]))
    return worst_of(lambda values: family(*values), drawn, oracle, dtype)
