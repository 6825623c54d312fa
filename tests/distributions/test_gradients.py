"""E[f(z)] moves with the parameters as the gradient through a draw says: closed forms by mpmath.

Compositions are in `test_composition.py`, mixtures in `test_implicit.py`, directions in
`test_directional.py`. The mean of n gradients leaves 6.5 standard errors with probability 1e-10;
a bias of 13 standard errors is missed as seldom. The whole file draws once, from a fixed seed.
"""

import mpmath as mp
import pytest
import torch
from torch.autograd import grad

from pyrovae import distributions as D
from pyrovae.distributions import radial
from tests.distributions.table import ROWS

N = 100_000
ELSEWHERE = {
    "Gamma", "Erlang", "Chi2", "Beta", "FisherSnedecor", "StudentT", "LogNormal", "Dirichlet",
    "Mixture", "Truncated", "VonMises", "VonMisesFisher", "PowerSpherical", "SphericalUniform",
}  # fmt: skip


def square(z):
    return z * z


def itself(z):
    return z


def triangle_second_moment(low, peak, high):
    ends = (low, peak, high)
    return (sum(e * e for e in ends) + low * peak + low * high + peak * high) / 6


# name: family, parameters, f, E[f(z)]
CASES = {
    "Normal": (D.Normal, [0.7, 1.3], square, lambda m, s: m * m + s * s),
    "Laplace": (D.Laplace, [0.7, 1.3], square, lambda m, s: m * m + 2 * s * s),
    "Logistic": (D.Logistic, [0.7, 1.3], square, lambda m, s: m * m + (mp.pi * s) ** 2 / 3),
    "Cauchy": (D.Cauchy, [0.7, 0.6], torch.cos, lambda m, s: mp.exp(-s) * mp.cos(m)),
    "Gumbel": (D.Gumbel, [0.7, 1.3], itself, lambda m, s: m + mp.euler * s),
    "Exponential": (D.Exponential, [1.7], square, lambda r: 2 / r**2),
    "Weibull": (D.Weibull, [1.3, 0.8], itself, lambda s, k: s * mp.gamma(1 + 1 / k)),
    "Rayleigh": (D.Rayleigh, [1.3], square, lambda s: 2 * s * s),
    "Pareto": (D.Pareto, [1.3, 0.4], torch.log, lambda m, a: mp.log(m) + 1 / a),
    "Gompertz": (D.Gompertz, [0.6, 1.4], itself, lambda c, b: mp.exp(c) * mp.e1(c) / b),
    "Kumaraswamy": (
        D.Kumaraswamy, [0.6, 1.7], itself, lambda a, b: b * mp.beta(1 + 1 / a, b)
    ),
    "Uniform": (D.Uniform, [-0.4, 1.9], square, lambda a, b: (a * a + a * b + b * b) / 3),
    "Reciprocal": (D.Reciprocal, [0.2, 3.0], itself, lambda a, b: (b - a) / mp.log(b / a)),
    "Triangular": (D.Triangular, [-0.4, 0.3, 1.9], square, triangle_second_moment),
    "ContinuousBernoulli": (
        lambda t: D.ContinuousBernoulli(logits=t), [1.1], itself,
        lambda t: 1 / (1 - mp.exp(-t)) - 1 / t,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_gradient_of_an_expectation(name, dtype):
    torch.manual_seed(0)
    build, at, f, mean = CASES[name]
    params = [torch.full((N,), v, dtype=dtype, requires_grad=True) for v in at]
    each = grad(f(build(*params).rsample()).sum(), params)
    for i, g in enumerate(each):
        order = tuple(int(i == j) for j in range(len(at)))
        true = float(mp.diff(mean, tuple(p[0].item() for p in params), order))
        mean_g, error = g.double().mean().item(), g.double().std().item() / N**0.5
        assert abs(mean_g - true) < 6.5 * error + 1e-6 * abs(true), f"{mean_g} not {true}"


RADIAL = {  # E[r^2] / 2 in two dimensions
    "Normal": (radial.Normal(), 1.0),
    "StudentT": (radial.StudentT(7.0), 7 / 5),
    "Laplace": (radial.Laplace(), 3.0),
    "Logistic": (radial.Logistic(), float(9 * mp.zeta(3) / (4 * mp.log(2)))),
    "PowerExponential": (
        radial.PowerExponential(0.7),
        float(
            mp.mpf(2) ** (1 / mp.mpf(0.7))
            * mp.gamma(2 / mp.mpf(0.7))
            / mp.gamma(1 / mp.mpf(0.7))
            / 2
        ),
    ),
}


@pytest.mark.parametrize("name", RADIAL)
def test_gradient_of_an_expectation_of_vectors(name):
    torch.manual_seed(0)
    law, c = RADIAL[name]
    loc, tril = torch.tensor([0.3, -1.0]), torch.tensor([[1.2, 0.0], [0.5, 0.7]])
    weights = torch.tensor([1.0, -0.6])
    each_loc = loc.expand(N, 2).clone().requires_grad_()
    each_tril = tril.expand(N, 2, 2).clone().requires_grad_()
    z = D.Elliptical(each_loc, law, scale_tril=each_tril).rsample()
    each = grad((z @ weights).square().sum(), [each_loc, each_tril])
    loc.requires_grad_(), tril.requires_grad_()
    second = (loc @ weights) ** 2 + c * (weights @ tril).square().sum()
    for g, true in zip(each, grad(second, [loc, tril]), strict=True):
        off = (g.mean(0) - true).abs() - 6.5 * g.std(0) / N**0.5
        assert ((off if true.dim() < 2 else off.tril()) <= 0).all()


def test_every_family_is_here_or_elsewhere():
    names = {row.family.__name__ for row in ROWS}
    assert names == (names & ELSEWHERE) | set(CASES) | {"Elliptical", "MultivariateNormal"}
