"""Excess wrong bits: what a result loses beyond what its inputs' rounding explains.

A function f of inputs x_i (value and parameters), computed as v where f is right, has
log2(1 + |v - f| / (|f| eps)) wrong bits; rounding the inputs alone explains log2(1 + c) of them,
with the condition number c = sum_i |x_i df/dx_i| / |f|. The difference is in excess. f and c come
from mpmath at 80 digits, the inputs being exactly those the tensors hold.
"""

import math

import mpmath as mp
import numpy as np
import torch

from pyrovae import distributions as D

mp.mp.dps = 80
QUANTILES = [1e-30, 1e-20, 1e-12, 1e-8, 1e-5, 1e-3, 0.03, 0.2, 0.5, 0.7, 0.9, 0.99, 0.9999]
TAILS = ["log_prob", "cdf", "sf", "log_cdf", "log_sf"]


def hazard(cumulative, log_rate, inverse):
    """The methods of a law with sf = exp(-H)."""
    return {
        "log_prob": lambda z, *p: log_rate(z, *p) - cumulative(z, *p),
        "cdf": lambda z, *p: -mp.expm1(-cumulative(z, *p)),
        "sf": lambda z, *p: mp.exp(-cumulative(z, *p)),
        "log_cdf": lambda z, *p: mp.log(-mp.expm1(-cumulative(z, *p))),
        "log_sf": lambda z, *p: -cumulative(z, *p),
        "icdf": lambda u, *p: inverse(-mp.log1p(-u), *p),
        "isf": lambda q, *p: inverse(-mp.log(q), *p),
    }


def shifted(noise):
    """The methods of loc + scale eps from those of eps."""
    made = {n: lambda z, m, s, n=n: noise[n]((z - m) / s) for n in TAILS[1:]}
    made["log_prob"] = lambda z, m, s: noise["log_prob"]((z - m) / s) - mp.log(s)
    made.update({n: lambda u, m, s, n=n: m + s * noise[n](u) for n in ("icdf", "isf")})
    return made


def symmetric(log_prob, cdf, icdf):
    return shifted({
        "log_prob": log_prob,
        "cdf": cdf,
        "sf": lambda e: cdf(-e),
        "log_cdf": lambda e: mp.log(cdf(e)),
        "log_sf": lambda e: mp.log(cdf(-e)),
        "icdf": icdf,
        "isf": lambda q: -icdf(q),
    })  # fmt: skip


def two_sided(log_prob, cdf, sf, icdf, isf):
    return {
        "log_prob": log_prob,
        "cdf": cdf,
        "sf": sf,
        "log_cdf": lambda z, *p: mp.log(cdf(z, *p)),
        "log_sf": lambda z, *p: mp.log(sf(z, *p)),
        "icdf": icdf,
        "isf": isf,
    }


def normal_icdf(u):
    if u > 0.5:
        return -normal_icdf(1 - u)
    if u == 0.5:
        return mp.mpf(0)
    start = -mp.sqrt(-2 * mp.log(2 * u)) if u < 1e-3 else mp.sqrt(2) * mp.erfinv(2 * u - 1)
    return mp.findroot(lambda x: mp.log(mp.erfc(-x / mp.sqrt(2)) / 2) - mp.log(u), start)


def triangle_sf(z, low, peak, high):
    if z < peak:
        return 1 - triangle_cdf(z, low, peak, high)
    return (high - z) ** 2 / ((high - low) * (high - peak))


def triangle_cdf(z, low, peak, high):
    if z >= peak:
        return 1 - triangle_sf(z, low, peak, high)
    return (z - low) ** 2 / ((high - low) * (peak - low))


def triangle_icdf(u, low, peak, high):
    if u * (high - low) <= peak - low:
        return low + mp.sqrt(u * (high - low) * (peak - low))
    return high - mp.sqrt((1 - u) * (high - low) * (high - peak))


def triangle_log_prob(z, low, peak, high):
    side = (z - low) / (peak - low) if z < peak else (high - z) / (high - peak)
    return mp.log(2 * side / (high - low))


def span(low, high):
    return mp.log(high / low)


def tilt_norm(tilt):
    return mp.expm1(tilt) / tilt


# family: parameters are drawn as (kind), and what mpmath knows
ORACLES = {
    D.Exponential: ("rate", hazard(
        lambda z, r: r * z, lambda z, r: mp.log(r), lambda e, r: e / r)),
    D.Weibull: ("two", hazard(
        lambda z, s, k: (z / s) ** k,
        lambda z, s, k: mp.log(k / s) + (k - 1) * mp.log(z / s),
        lambda e, s, k: s * e ** (1 / k))),
    D.Rayleigh: ("rate", hazard(
        lambda z, s: (z / s) ** 2 / 2, lambda z, s: mp.log(z / s / s),
        lambda e, s: s * mp.sqrt(2 * e))),
    D.Pareto: ("two", hazard(
        lambda z, m, a: a * mp.log(z / m), lambda z, m, a: mp.log(a / z),
        lambda e, m, a: m * mp.exp(e / a))),
    D.Gompertz: ("two", hazard(
        lambda z, c, b: c * mp.expm1(b * z), lambda z, c, b: mp.log(c * b) + b * z,
        lambda e, c, b: mp.log1p(e / c) / b)),
    D.Kumaraswamy: ("two", hazard(
        lambda z, a, b: -b * mp.log1p(-(z**a)),
        lambda z, a, b: mp.log(a * b) + (a - 1) * mp.log(z) - mp.log1p(-(z**a)),
        lambda e, a, b: (-mp.expm1(-e / b)) ** (1 / a))),
    D.Normal: ("pair", symmetric(
        lambda e: -e * e / 2 - mp.log(2 * mp.pi) / 2,
        lambda e: mp.erfc(-e / mp.sqrt(2)) / 2, normal_icdf)),
    D.Laplace: ("pair", symmetric(
        lambda e: -abs(e) - mp.log(2),
        lambda e: mp.exp(e) / 2 if e <= 0 else 1 - mp.exp(-e) / 2,
        lambda u: mp.log(2 * u) if u <= 0.5 else -mp.log(2 * (1 - u)))),
    D.Logistic: ("pair", symmetric(
        lambda e: -abs(e) - 2 * mp.log1p(mp.exp(-abs(e))),
        lambda e: 1 / (1 + mp.exp(-e)), lambda u: mp.log(u / (1 - u)))),
    D.Cauchy: ("pair", symmetric(
        lambda e: -mp.log(mp.pi * (1 + e * e)),
        lambda e: mp.atan2(1, -e) / mp.pi, lambda u: -mp.cot(mp.pi * u))),
    D.Gumbel: ("pair", shifted({
        "log_prob": lambda e: -e - mp.exp(-e),
        "cdf": lambda e: mp.exp(-mp.exp(-e)),
        "sf": lambda e: -mp.expm1(-mp.exp(-e)),
        "log_cdf": lambda e: -mp.exp(-e),
        "log_sf": lambda e: mp.log(-mp.expm1(-mp.exp(-e))),
        "icdf": lambda u: -mp.log(-mp.log(u)),
        "isf": lambda q: -mp.log(-mp.log1p(-q))})),
    D.Uniform: ("ends", two_sided(
        lambda z, lo, hi: -mp.log(hi - lo), lambda z, lo, hi: (z - lo) / (hi - lo),
        lambda z, lo, hi: (hi - z) / (hi - lo), lambda u, lo, hi: lo + u * (hi - lo),
        lambda q, lo, hi: hi - q * (hi - lo))),
    D.Reciprocal: ("ends", two_sided(
        lambda z, lo, hi: -mp.log(z * span(lo, hi)),
        lambda z, lo, hi: span(lo, z) / span(lo, hi),
        lambda z, lo, hi: span(z, hi) / span(lo, hi),
        lambda u, lo, hi: lo * mp.exp(u * span(lo, hi)),
        lambda q, lo, hi: hi * mp.exp(-q * span(lo, hi)))),
    D.Triangular: ("triangle", two_sided(
        triangle_log_prob, triangle_cdf, triangle_sf, triangle_icdf,
        lambda q, *p: triangle_icdf(1 - q, *p))),
    D.ContinuousBernoulli: ("logits", two_sided(
        lambda x, t: t * x - mp.log(tilt_norm(t)),
        lambda x, t: mp.expm1(t * x) / mp.expm1(t),
        lambda x, t: -mp.exp(t * x) * mp.expm1(t * (1 - x)) / mp.expm1(t) * -1,
        lambda u, t: mp.log1p(u * mp.expm1(t)) / t,
        lambda q, t: 1 - mp.log1p(q * mp.expm1(-t)) / -t)),
}  # fmt: skip


def parameters(kind, rng):
    def size():
        return float(10.0 ** rng.uniform(-3, 3))

    sign = rng.choice([-1.0, 1.0])
    low, width = size(), size()
    return {
        "rate": (low,),
        "two": (low, width),
        "pair": (sign * low, width),
        "ends": (low, low + width),
        "triangle": (low, low + width * rng.uniform(0, 1) ** 3, low + width),
        "logits": (sign * min(low, 100.0),),
    }[kind]


def build(family, values):
    return family(logits=values[0]) if family is D.ContinuousBernoulli else family(*values)


def condition(f, inputs, value):
    total = mp.mpf(0)
    for i, x in enumerate(inputs):
        step = abs(x) * mp.mpf(10) ** -30
        moved = list(inputs)
        moved[i] = x + step
        total += abs(mp.re(f(*moved) - value) / step * x)
    return total / abs(value)


def excess(got, f, inputs, dtype):
    """Excess wrong bits; None where the right value is not a normal number of the format."""
    info = torch.finfo(dtype)
    inputs = [mp.mpf(x) for x in inputs]
    value = f(*inputs)
    if not mp.isfinite(value) or not 4 * info.tiny < abs(value) < info.max / 4:
        return None
    off = abs(mp.mpf(got) - value) / abs(value) if math.isfinite(got) else mp.inf
    wrong = mp.log(1 + off / info.eps, 2)
    if wrong <= 2:
        return float(wrong)
    return float(wrong - mp.log(1 + condition(f, inputs, value), 2))


def inner(d, z):
    """Values whose tails are all defined: inside the support, no end, normal numbers."""
    tiny = torch.finfo(z.dtype).tiny
    good = z.isfinite() & (z.abs() > tiny) & d.support.check(z)
    for end in ("lower_bound", "upper_bound"):
        good &= z != getattr(d.support, end, math.nan)
    return z[good]


def worst_excess(family, dtype, draws, seed=0):
    """Return {method: (excess wrong bits, inputs, got)} over `draws` random parameters."""
    kind, oracle = ORACLES[family]
    rng = np.random.default_rng(seed)
    drawn = (parameters(kind, rng) for _ in range(draws))
    if kind in ("ends", "triangle"):  # ends that rounding has not made equal
        drawn = (p for p in drawn if np.float32(p[0]) < np.float32(p[-1]))
    return worst_of(lambda values: build(family, values), drawn, oracle, dtype)


def worst_of(make, drawn, oracle, dtype):
    """Judge quantiles, and every tail at those quantiles, for each set of parameters `drawn`."""
    worst = {}

    def record(name, got, inputs):
        bits = excess(got, oracle[name], inputs, dtype) if oracle[name] else None
        if bits is not None and bits > worst.get(name, (-1.0,))[0]:
            worst[name] = bits, inputs, got

    u = torch.tensor([*QUANTILES, 1 - 1e-6, 1 - torch.finfo(dtype).eps], dtype=dtype)
    for parameters in drawn:
        values = [torch.tensor(v, dtype=dtype) for v in parameters]
        exact = [v.item() for v in values]
        d = make(values)
        for name in ("icdf", "isf"):
            z = getattr(d, name)(u)
            for p, got in zip(u.tolist(), z.tolist(), strict=True):
                record(name, got, [p, *exact])
            z = inner(d, z)
            for tail in TAILS:
                for at, got in zip(z.tolist(), getattr(d, tail)(z).tolist(), strict=True):
                    record(tail, got, [at, *exact])
    return worst
