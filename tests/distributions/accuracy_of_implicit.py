"""Excess wrong bits of a truncated Normal and of a mixture of two, as in `accuracy.py`."""

import mpmath as mp
import numpy as np
import torch

from pyrovae import distributions as D
from tests.distributions.accuracy import QUANTILES, TAILS, excess, inner, normal_icdf, two_sided


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
    worst = {}

    def record(name, got, inputs):
        bits = excess(got, oracle[name], inputs, dtype) if oracle[name] else None
        if bits is not None and bits > worst.get(name, (-1.0,))[0]:
            worst[name] = bits, inputs, got

    u = torch.tensor([*QUANTILES, 1 - 1e-6, 1 - torch.finfo(dtype).eps], dtype=dtype)
    for _ in range(draws):
        values = [torch.tensor(v, dtype=dtype) for v in draw(rng)]
        exact = [v.item() for v in values]
        if family is truncated_normal and not exact[2] < exact[3]:
            continue
        d = family(*values)
        for name in ("icdf", "isf"):
            z = getattr(d, name)(u)
            for p, got in zip(u.tolist(), z.tolist(), strict=True):
                record(name, got, [p, *exact])
            z = inner(d, z)
            for tail in TAILS:
                for at, got in zip(z.tolist(), getattr(d, tail)(z).tolist(), strict=True):
                    record(tail, got, [at, *exact])
    return worst
