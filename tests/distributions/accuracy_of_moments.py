"""What mpmath knows of entropy, mean, variance and mode, for each univariate family.

Functions of the parameters in constructor order. None stands for a number that is infinite,
undefined, or not a formula there; that those are `inf` and NaN is tested elsewhere.
"""

import mpmath as mp
import numpy as np
import torch

from pyrovae import distributions as D
from tests.distributions.accuracy import ORACLES, build, excess
from tests.distributions.accuracy_of_integrals import INTEGRALS, draw


def digamma(x):
    return mp.digamma(x)


def _pair(mean, variance, entropy):
    """Of loc + scale eps, from eps."""
    made = {"entropy": lambda m, s: entropy() + mp.log(s), "mode": lambda m, s: m}
    if mean is not None:
        made["mean"] = lambda m, s: m + s * mean()
        made["variance"] = lambda m, s: s * s * variance()
    return made


def _gamma_entropy(a, r):
    return a - mp.log(r) + mp.loggamma(a) + (1 - a) * digamma(a)


def _gamma(to_gamma):
    """Of a law that is Gamma(*to_gamma(parameters))."""
    formulas = {
        "mean": lambda a, r: a / r,
        "variance": lambda a, r: a / r**2,
        "entropy": _gamma_entropy,
        "mode": lambda a, r: (a - 1) / r if a > 1 else None,
    }
    return {name: lambda *p, f=f: f(*to_gamma(*p)) for name, f in formulas.items()}


def _log_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def _beta_entropy(a, b):
    return (
        _log_beta(a, b)
        - (a - 1) * digamma(a)
        - (b - 1) * digamma(b)
        + (a + b - 2) * digamma(a + b)
    )


def _f_entropy(m, n):
    a, b = m / 2, n / 2
    return (
        _log_beta(a, b)
        + mp.log(n / m)
        + (1 - a) * digamma(a)
        - (1 + b) * digamma(b)
        + (a + b) * digamma(a + b)
    )


def _student_entropy(df, loc, scale):
    half = df / 2
    return (
        (half + mp.mpf(1) / 2) * (digamma(half + mp.mpf(1) / 2) - digamma(half))
        + mp.log(df) / 2
        + _log_beta(half, mp.mpf(1) / 2)
        + mp.log(scale)
    )


def _weibull_moment(s, k, n):
    return s**n * mp.gamma(1 + n / k)


def _kumaraswamy_moment(a, b, n):
    return b * mp.exp(_log_beta(1 + n / a, b))


def _reciprocal_mean(low, high):
    return (high - low) / mp.log(high / low)


def _tilted_mean(t):
    return 1 / (1 - mp.exp(-t)) - 1 / t


def _gompertz_mean(c, b):
    return mp.exp(c) * mp.e1(c) / b


MOMENTS = {
    D.Exponential: {
        "mean": lambda r: 1 / r,
        "variance": lambda r: 1 / r**2,
        "entropy": lambda r: 1 - mp.log(r),
    },
    D.Weibull: {
        "mean": lambda s, k: _weibull_moment(s, k, 1),
        "variance": lambda s, k: _weibull_moment(s, k, 2) - _weibull_moment(s, k, 1) ** 2,
        "entropy": lambda s, k: mp.euler * (1 - 1 / k) + mp.log(s / k) + 1,
        "mode": lambda s, k: s * ((k - 1) / k) ** (1 / k) if k > 1 else None,
    },
    D.Rayleigh: {
        "mean": lambda s: s * mp.sqrt(mp.pi / 2),
        "variance": lambda s: (4 - mp.pi) / 2 * s**2,
        "entropy": lambda s: 1 + mp.log(s / mp.sqrt(2)) + mp.euler / 2,
        "mode": lambda s: s,
    },
    D.Pareto: {
        "mean": lambda m, a: a * m / (a - 1) if a > 1 else None,
        "variance": lambda m, a: m**2 * a / (a - 1) ** 2 / (a - 2) if a > 2 else None,
        "entropy": lambda m, a: mp.log(m / a) + 1 + 1 / a,
        "mode": lambda m, a: m,
    },
    D.Gompertz: {
        "mean": _gompertz_mean,
        "entropy": lambda c, b: 1 - mp.log(c * b) - b * _gompertz_mean(c, b),
        "mode": lambda c, b: -mp.log(c) / b if c < 1 else None,
    },
    D.Kumaraswamy: {
        "mean": lambda a, b: _kumaraswamy_moment(a, b, 1),
        "variance": lambda a, b: _kumaraswamy_moment(a, b, 2) - _kumaraswamy_moment(a, b, 1) ** 2,
        "entropy": lambda a, b: (
            1 - 1 / b + (1 - 1 / a) * (digamma(b + 1) + mp.euler) - mp.log(a * b)
        ),
        "mode": lambda a, b: ((a - 1) / (a * b - 1)) ** (1 / a) if a > 1 and b > 1 else None,
    },
    D.Normal: _pair(lambda: 0, lambda: 1, lambda: mp.log(2 * mp.pi * mp.e) / 2),
    D.Laplace: _pair(lambda: 0, lambda: 2, lambda: 1 + mp.log(2)),
    D.Logistic: _pair(lambda: 0, lambda: mp.pi**2 / 3, lambda: mp.mpf(2)),
    D.Cauchy: _pair(None, None, lambda: mp.log(4 * mp.pi)),
    D.Gumbel: _pair(lambda: mp.euler, lambda: mp.pi**2 / 6, lambda: mp.euler + 1),
    D.Uniform: {
        "mean": lambda lo, hi: (lo + hi) / 2,
        "variance": lambda lo, hi: (hi - lo) ** 2 / 12,
        "entropy": lambda lo, hi: mp.log(hi - lo),
    },
    D.Reciprocal: {
        "mean": _reciprocal_mean,
        "variance": lambda lo, hi: (
            (hi**2 - lo**2) / 2 / mp.log(hi / lo) - _reciprocal_mean(lo, hi) ** 2
        ),
        "entropy": lambda lo, hi: mp.log(mp.log(hi / lo)) + mp.log(lo * hi) / 2,
        "mode": lambda lo, hi: lo,
    },
    D.Triangular: {
        "mean": lambda lo, p, hi: (lo + p + hi) / 3,
        "variance": lambda lo, p, hi: ((hi - lo) ** 2 - (hi - lo) * (p - lo) + (p - lo) ** 2) / 18,
        "entropy": lambda lo, p, hi: mp.mpf(1) / 2 + mp.log((hi - lo) / 2),
        "mode": lambda lo, p, hi: p,
    },
    D.ContinuousBernoulli: {
        "mean": _tilted_mean,
        "variance": lambda t: 1 / t**2 - 1 / (2 * mp.sinh(t / 2)) ** 2,
        "entropy": lambda t: mp.log(mp.expm1(t) / t) - t * _tilted_mean(t),
    },
    D.Gamma: _gamma(lambda a, r: (a, r)),
    D.Erlang: _gamma(lambda a, r: (a, r)),
    D.Chi2: _gamma(lambda df: (df / 2, mp.mpf(1) / 2)),
    D.Beta: {
        "mean": lambda a, b: a / (a + b),
        "variance": lambda a, b: a * b / (a + b) ** 2 / (a + b + 1),
        "entropy": _beta_entropy,
        "mode": lambda a, b: (a - 1) / (a + b - 2) if a > 1 and b > 1 else None,
    },
    D.FisherSnedecor: {
        "mean": lambda m, n: n / (n - 2) if n > 2 else None,
        "variance": lambda m, n: (
            2 * n**2 * (m + n - 2) / (m * (n - 2) ** 2 * (n - 4)) if n > 4 else None
        ),
        "entropy": _f_entropy,
        "mode": lambda m, n: (m - 2) / m * n / (n + 2) if m > 2 else None,
    },
    D.StudentT: {
        "mean": lambda df, m, s: m if df > 1 else None,
        "variance": lambda df, m, s: s**2 * df / (df - 2) if df > 2 else None,
        "entropy": _student_entropy,
        "mode": lambda df, m, s: m,
    },
    D.LogNormal: {
        "mean": lambda m, s: mp.exp(m + s**2 / 2),
        "variance": lambda m, s: mp.expm1(s**2) * mp.exp(2 * m + s**2),
        "entropy": lambda m, s: m + mp.mpf(1) / 2 + mp.log(s * mp.sqrt(2 * mp.pi)),
        "mode": lambda m, s: mp.exp(m - s**2),
    },
}


for _formulas in MOMENTS.values():
    if "variance" in _formulas:
        _formulas["stddev"] = lambda *p, f=_formulas["variance"]: (
            None if f(*p) is None else mp.sqrt(f(*p))
        )


def worst_excess_of_moments(family, dtype, draws, seed=0):
    """Return {name: (excess wrong bits, parameters, got)} over `draws` random parameters."""
    kind = (ORACLES[family] if family in ORACLES else INTEGRALS[family])[0]
    rng = np.random.default_rng(seed)
    drawn = (draw(kind, rng) for _ in range(draws))
    if kind in ("ends", "triangle"):  # ends that rounding has not made equal
        drawn = (p for p in drawn if torch.tensor(p, dtype=dtype).diff().any())
    return worst_excess_at(family, dtype, drawn)


def worst_excess_at(family, dtype, drawn):
    """Return {name: (excess wrong bits, parameters, got)} over the parameters `drawn`."""
    worst = {}
    for parameters in drawn:
        values = [torch.tensor(v, dtype=dtype) for v in parameters]
        at = [v.item() for v in values]
        d = build(family, values)
        for name, oracle in MOMENTS[family].items():
            if oracle(*map(mp.mpf, at)) is None:
                continue
            got = d.entropy() if name == "entropy" else getattr(d, name)
            bits = excess(got.item(), oracle, at, dtype)
            if bits is not None and bits > worst.get(name, (-1.0,))[0]:
                worst[name] = bits, at, got.item()
    return worst
