"""One row for each family: an example, and an oracle where scipy has one.

A new family of the package needs a line here; `test_table.py` says so if it is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import scipy.stats as st
import torch

from pyrovae import distributions as D
from pyrovae.distributions import radial


@dataclass
class Row:
    family: type
    arguments: dict[str, Any]
    oracle: Callable[..., Any] | None = None  # arguments, as numpy, -> a frozen distribution
    name: str = ""
    lacks: set[str] = field(default_factory=set)  # univariate methods it does not have

    def __post_init__(self):
        self.name = self.name or self.family.__name__

    def build(self, dtype=torch.float64):
        return self.family(**{k: self._tensor(v, dtype) for k, v in self.arguments.items()})

    def _tensor(self, value, dtype):
        if isinstance(value, float | list):
            return torch.tensor(value, dtype=dtype)
        return value

    def frozen(self):
        if self.oracle is None:
            return None
        return self.oracle(**{
            k: torch.tensor(v).numpy() if isinstance(v, float | list) else v
            for k, v in self.arguments.items()
        })  # fmt: skip


def _elliptical(loc, radial, scale_tril):
    return st.multivariate_t(loc, scale_tril @ scale_tril.T, df=float(radial.df))


TAILS = {"cdf", "icdf", "sf", "isf", "log_cdf", "log_sf"}
TRIL = [[1.0, 0.0], [0.4, 0.5]]
LOC, SCALE = [0.3, -2.0], [1.5, 0.2]
PAIR = {"loc": LOC, "scale": SCALE}

ROWS = [
    Row(D.Normal, PAIR, lambda loc, scale: st.norm(loc, scale)),
    Row(D.Laplace, PAIR, lambda loc, scale: st.laplace(loc, scale)),
    Row(D.Logistic, PAIR, lambda loc, scale: st.logistic(loc, scale)),
    Row(D.Cauchy, PAIR, lambda loc, scale: st.cauchy(loc, scale)),
    Row(D.Gumbel, PAIR, lambda loc, scale: st.gumbel_r(loc, scale)),
    Row(D.Exponential, {"rate": [0.5, 3.0]}, lambda rate: st.expon(scale=1 / rate)),
    Row(
        D.Weibull,
        {"scale": [1.2, 0.3], "concentration": [1.7, 0.6]},
        lambda scale, concentration: st.weibull_min(concentration, scale=scale),
    ),
    Row(D.Rayleigh, {"scale": [1.3, 0.1]}, lambda scale: st.rayleigh(scale=scale)),
    Row(
        D.Pareto,
        {"scale": [1.5, 0.2], "alpha": [2.5, 6.0]},
        lambda scale, alpha: st.pareto(alpha, scale=scale),
    ),
    Row(
        D.Gompertz,
        {"concentration": [0.7, 3.0], "rate": [1.4, 0.2]},
        lambda concentration, rate: st.gompertz(concentration, scale=1 / rate),
    ),
    Row(D.Kumaraswamy, {"concentration1": [2.0, 0.7], "concentration0": [1.5, 3.0]}),
    Row(
        D.Uniform,
        {"low": [-1.0, 2.0], "high": [2.0, 2.5]},
        lambda low, high: st.uniform(low, high - low),
    ),
    Row(
        D.Reciprocal,
        {"low": [0.1, 2.0], "high": [20.0, 2.5]},
        lambda low, high: st.reciprocal(low, high),
    ),
    Row(
        D.Triangular,
        {"low": [-1.0, 0.0, 0.0], "peak": [0.5, 0.0, 1.0], "high": [3.0, 2.0, 1.0]},
        lambda low, peak, high: st.triang((peak - low) / (high - low), low, high - low),
    ),
    Row(D.ContinuousBernoulli, {"logits": [-3.0, 1e-7, 2.0]}),
    Row(
        D.Elliptical,
        {"loc": LOC, "radial": radial.StudentT(4.0), "scale_tril": TRIL},
        _elliptical,
        "Elliptical, Student t",
    ),
    Row(
        D.Elliptical,
        {"loc": LOC, "radial": radial.Normal(), "cov_factor": [[1.0], [2.0]], "cov_diag": SCALE},
        lambda loc, radial, cov_factor, cov_diag: st.multivariate_normal(
            loc, cov_factor @ cov_factor.T + torch.diag(torch.tensor(cov_diag)).numpy()
        ),
        "Elliptical, Normal",
    ),
    Row(
        D.Elliptical,
        {"loc": LOC, "radial": radial.Laplace(), "scale_diag": SCALE},
        name="Elliptical, Laplace",
    ),
    Row(
        D.Elliptical,
        {"loc": LOC, "radial": radial.Logistic(), "scale_tril": TRIL},
        name="Elliptical, Logistic",
    ),
    Row(
        D.Elliptical,
        {
            "loc": LOC,
            "radial": radial.PowerExponential(0.7),
            "cov_factor": TRIL,
            "cov_diag": SCALE,
        },
        name="Elliptical, power-exponential",
    ),
    Row(
        D.StudentT,
        {"df": [3.0, 8.0], **PAIR},
        lambda df, loc, scale: st.t(df, loc, scale),
    ),
    Row(
        D.Gamma,
        {"concentration": [2.0, 0.7], "rate": [1.5, 3.0]},
        lambda concentration, rate: st.gamma(concentration, scale=1 / rate),
    ),
    Row(
        D.LogNormal,
        {"loc": [0.3, -1.0], "scale": [0.5, 1.0]},
        lambda loc, scale: st.lognorm(scale, scale=torch.tensor(loc).exp().numpy()),
    ),
    Row(
        D.Beta,
        {"concentration1": [2.0, 0.7], "concentration0": [1.5, 3.0]},
        lambda concentration1, concentration0: st.beta(concentration1, concentration0),
    ),
    Row(
        D.Erlang,
        {"concentration": [2.0, 5.0], "rate": [1.5, 3.0]},
        lambda concentration, rate: st.gamma(concentration, scale=1 / rate),
    ),
    Row(D.Chi2, {"df": [3.0, 7.0]}, lambda df: st.chi2(df)),
    Row(
        D.FisherSnedecor,
        {"df1": [4.0, 3.0], "df2": [9.0, 12.0]},
        lambda df1, df2: st.f(df1, df2),
    ),
    Row(D.Dirichlet, {"concentration": [2.0, 1.7, 3.0]}),
    Row(D.VonMises, {"loc": LOC, "concentration": [1.5, 20.0]}),
    Row(
        D.VonMisesFisher,
        {"loc": [0.48, 0.6, 0.64], "concentration": 3.0},
        lambda loc, concentration: st.vonmises_fisher(loc, float(concentration)),
    ),
    Row(
        D.VonMisesFisher,
        {"loc": [0.5, -0.5, 0.1, 0.7], "concentration": 20.0},
        lambda loc, concentration: st.vonmises_fisher(loc, float(concentration)),
        "VonMisesFisher, d = 4",
    ),
    Row(D.PowerSpherical, {"loc": [0.48, 0.6, 0.64], "concentration": 3.0}),
    Row(D.SphericalUniform, {"dim": 3}),
    Row(
        D.MultivariateNormal,
        {"loc": LOC, "scale_tril": TRIL},
        lambda loc, scale_tril: st.multivariate_normal(loc, scale_tril @ scale_tril.T),
    ),
]
