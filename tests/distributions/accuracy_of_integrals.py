"""Excess wrong bits of the families whose tails are incomplete gamma and beta integrals.

As in `accuracy.py`, at a cost that mpmath's integrals allow. Only the smaller tail T is computed,
and its derivatives; the other is 1 - T, the logarithms follow. A quantile z is judged by the level
it reaches: it is off by |log T(z) - log u| T / (|z| p(z)), and u, with the parameters, explains
(u + sum_i |theta_i dT/dtheta_i|) / (|z| p(z)).
"""

import math

import mpmath as mp
import numpy as np
import torch

from pyrovae import distributions as D
from tests.distributions.accuracy import parameters

LEVELS = [1e-30, 1e-12, 1e-5, 1e-3, 0.03, 0.2, 0.4]
HALF = mp.mpf(1) / 2


def gamma_below(a, z):
    return mp.gammainc(a, 0, z, regularized=True)


def gamma_above(a, z):
    return mp.gammainc(a, z, mp.inf, regularized=True)


def beta_below(a, b, x, y):
    """I_x(a, b), where y = 1 - x is known by itself; by the series that converges faster."""
    front = mp.exp(
        a * mp.log(x) + b * mp.log(y) + mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)
    )
    if x > y:
        return 1 - front / b * mp.hyp2f1(a + b, 1, b + 1, y)
    return front / a * mp.hyp2f1(a + b, 1, a + 1, x)


def log_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def gamma_log_prob(z, a, r):
    return a * mp.log(r) + (a - 1) * mp.log(z) - r * z - mp.loggamma(a)


def student_log_prob(z, df, m, s):
    t = (z - m) / s
    return (
        -(df + 1) / 2 * mp.log1p(t * t / df) - mp.log(df) / 2 - log_beta(df / 2, HALF) - mp.log(s)
    )


def student_above(t, df):
    both = df + t * t
    return beta_below(df / 2, HALF, df / both, t * t / both) / 2


def f_log_prob(z, m, n):
    return (
        m / 2 * mp.log(m / n)
        + (m / 2 - 1) * mp.log(z)
        - (m + n) / 2 * mp.log1p(m * z / n)
        - log_beta(m / 2, n / 2)
    )


def normal_above(e):
    return mp.erfc(e / mp.sqrt(2)) / 2


# family: kind of parameters, log-density, lower tail, upper tail
INTEGRALS = {
    D.Gamma: (
        "two", gamma_log_prob,
        lambda z, a, r: gamma_below(a, r * z), lambda z, a, r: gamma_above(a, r * z)),
    D.Erlang: (
        "erlang", gamma_log_prob,
        lambda z, a, r: gamma_below(a, r * z), lambda z, a, r: gamma_above(a, r * z)),
    D.Chi2: (
        "rate", lambda z, df: gamma_log_prob(z, df / 2, HALF),
        lambda z, df: gamma_below(df / 2, z / 2), lambda z, df: gamma_above(df / 2, z / 2)),
    D.Beta: (
        "two", lambda z, a, b: (a - 1) * mp.log(z) + (b - 1) * mp.log1p(-z) - log_beta(a, b),
        lambda z, a, b: beta_below(a, b, z, 1 - z), lambda z, a, b: beta_below(b, a, 1 - z, z)),
    D.FisherSnedecor: (
        "two", f_log_prob,
        lambda z, m, n: beta_below(m / 2, n / 2, m * z / (m * z + n), n / (m * z + n)),
        lambda z, m, n: beta_below(n / 2, m / 2, n / (m * z + n), m * z / (m * z + n))),
    D.StudentT: (
        "df", student_log_prob,
        lambda z, df, m, s: student_above((m - z) / s, df) if z < m
        else 1 - student_above((z - m) / s, df),
        lambda z, df, m, s: student_above((z - m) / s, df) if z > m
        else 1 - student_above((m - z) / s, df)),
    D.LogNormal: (
        "pair", lambda z, m, s: (
            -(((mp.log(z) - m) / s) ** 2) / 2 - mp.log(z * s) - mp.log(2 * mp.pi) / 2),
        lambda z, m, s: normal_above((m - mp.log(z)) / s),
        lambda z, m, s: normal_above((mp.log(z) - m) / s)),
}  # fmt: skip


def draw(kind, rng):
    if kind == "erlang":
        return float(np.ceil(10.0 ** rng.uniform(0, 3))), *parameters("rate", rng)
    if kind == "df":
        return *parameters("rate", rng), *parameters("pair", rng)
    return parameters(kind, rng)


def bits(off, condition, eps):
    return float(mp.log(1 + abs(off) / eps, 2) - mp.log(1 + condition, 2))


class Point:
    """The smaller tail at z, and what rounding z and the parameters explains of it."""

    def __init__(self, family, z, at):
        _, log_prob, below, above = INTEGRALS[family]
        self.z, self.at, self.log_prob = z, at, log_prob
        lower, upper = below(z, *at), above(z, *at)
        self.left = lower < upper
        self.tail = lower if self.left else upper
        f = below if self.left else above
        self.mass = abs(z) * mp.exp(log_prob(z, *at))  # |z p(z)|
        self.moved = mp.mpf(0)  # sum_i |theta_i dT/dtheta_i|
        step = mp.mpf(10) ** -20
        for i, x in enumerate(at):
            shifted = list(at)
            shifted[i] = x * (1 + step)
            self.moved += abs(f(z, *shifted) - self.tail) / step

    def values(self):
        """{method: (right, condition)}."""
        small, big = ("cdf", "sf") if self.left else ("sf", "cdf")
        explained, rest = self.mass + self.moved, 1 - self.tail
        return {
            small: (self.tail, explained / self.tail),
            big: (rest, explained / rest),
            f"log_{small}": (mp.log(self.tail), explained / self.tail / -mp.log(self.tail)),
            f"log_{big}": (mp.log1p(-self.tail), explained / rest / -mp.log1p(-self.tail)),
            "log_prob": self.density(),
        }

    def density(self):
        value = self.log_prob(self.z, *self.at)
        inputs, step = [self.z, *self.at], mp.mpf(10) ** -20
        total = mp.mpf(0)
        for i, x in enumerate(inputs):
            shifted = list(inputs)
            shifted[i] = x * (1 + step)
            total += abs(self.log_prob(*shifted) - value) / step
        return value, total / abs(value)

    def quantile(self, u, lower):
        """(relative error of z as the quantile of level u, condition)."""
        reached = self.tail if lower == self.left else 1 - self.tail
        off = (mp.log(reached) - mp.log(u)) * reached / self.mass
        return off, (u + self.moved) / self.mass


def within(value, info):
    return mp.isfinite(value) and 4 * info.tiny < abs(value) < info.max / 4


def worst_excess(family, dtype, draws, seed=0, levels=LEVELS):
    """Return {method: (excess wrong bits, inputs, got)} over `draws` random parameters."""
    kind = INTEGRALS[family][0]
    rng = np.random.default_rng(seed)
    info = torch.finfo(dtype)
    worst = {}

    def record(name, found, inputs, got):
        if found > worst.get(name, (-1.0,))[0]:
            worst[name] = found, inputs, got

    u = torch.tensor(levels, dtype=dtype)
    for _ in range(draws):
        values = [torch.tensor(v, dtype=dtype) for v in draw(kind, rng)]
        at = [mp.mpf(v.item()) for v in values]
        shown = [float(v) for v in at]
        d = family(*values)
        for name, lower in (("icdf", True), ("isf", False)):
            quantiles = getattr(d, name)(u)
            for level, z in zip(u.tolist(), quantiles.tolist(), strict=True):
                if not inside(d, z, info):
                    continue
                with mp.workdps(60):
                    point = Point(family, mp.mpf(z), at)
                    off, condition = point.quantile(mp.mpf(level), lower)
                    record(name, bits(off, condition, info.eps), [level, *shown], z)
                    for tail, (right, condition) in point.values().items():
                        if not within(right, info):
                            continue
                        got = getattr(d, tail)(torch.tensor(z, dtype=dtype)).item()
                        off = (mp.mpf(got) - right) / right if math.isfinite(got) else mp.inf
                        record(tail, bits(off, condition, info.eps), [z, *shown], got)
    return worst


def inside(d, z, info):
    """Whether z is a normal number inside the support, that no end or limit has held."""
    ends = getattr(d.support, "lower_bound", None), getattr(d.support, "upper_bound", None)
    return 8 * info.tiny < abs(z) < info.max / 8 and (ends[1] != 1 or z < 1 - info.eps)
