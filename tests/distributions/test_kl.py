"""KL divergences: against quadrature to 1e-8, never negative, infinite where they should be."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrovae import distributions as D
from pyrovae.distributions import radial
from pyrovae.distributions.stable import EULER


def T(value):
    return torch.tensor(value, dtype=torch.float64)


def double(pairs):
    """The lists below are made at import, where the default is float32."""
    return [tuple(D.map_tensors(d, torch.Tensor.double) for d in pair) for pair in pairs]


SAME = [
    (D.Normal(0.3, 1.5), D.Normal(-0.2, 0.8)),
    (D.Laplace(0.3, 1.5), D.Laplace(-0.2, 0.8)),
    (D.Cauchy(0.3, 1.5), D.Cauchy(-0.2, 0.8)),
    (D.Gumbel(0.3, 1.5), D.Gumbel(-0.2, 0.8)),
    (D.Gumbel(0.3, 0.5), D.Gumbel(1.2, 2.0)),
    (D.Exponential(1.5), D.Exponential(0.4)),
    (D.Weibull(1.5, 0.8), D.Weibull(0.9, 1.7)),
    (D.Weibull(1.5, 2.8), D.Weibull(0.9, 1.7)),
    (D.Rayleigh(1.5), D.Rayleigh(0.7)),
    (D.Pareto(1.5, 2.8), D.Pareto(0.9, 1.7)),
    (D.Uniform(0.2, 0.7), D.Uniform(0.1, 0.9)),
    (D.Reciprocal(0.2, 0.7), D.Reciprocal(0.1, 0.9)),
    (D.ContinuousBernoulli(logits=T(3.0)), D.ContinuousBernoulli(logits=T(-1.0))),
    (D.ContinuousBernoulli(logits=T(0.3)), D.ContinuousBernoulli(logits=T(0.3005))),
]
SAME = double(SAME)
FAMILIES = [
    D.Normal(0.3, 0.7),
    D.Laplace(0.3, 0.7),
    D.Logistic(0.3, 0.7),
    D.Gumbel(0.3, 0.7),
    D.Exponential(1.4),
    D.Weibull(1.3, 0.8),
    D.Rayleigh(0.6),
    D.Pareto(0.5, 3.5),
    D.Gompertz(0.6, 1.3),
    D.Uniform(0.2, 1.7),
    D.Uniform(0.0, 1.7),
    D.Reciprocal(0.2, 1.7),
    D.Triangular(0.2, 0.5, 1.7),
    D.Triangular(0.0, 0.0, 1.7),
    D.Kumaraswamy(0.7, 2.5),
    D.ContinuousBernoulli(logits=T(-2.0)),
]
PRIORS = [
    dist.Normal(T(-0.2), T(1.3)),
    dist.Uniform(T(-1.0), T(2.0)),
    dist.Exponential(T(0.8)),
    dist.Gamma(T(2.5), T(0.8)),
    dist.Gamma(T(0.5), T(1.8)),
]
ACROSS = double((p, q) for p in FAMILIES for q in PRIORS)


def inside(p, q):
    def end(d, name, default):
        return float(getattr(d.support, name, default))

    return end(p, "lower_bound", -math.inf) >= end(q, "lower_bound", -math.inf) and end(
        p, "upper_bound", math.inf
    ) <= end(q, "upper_bound", math.inf)


X, W = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(20))


def quadrature(p, q):
    """The integral of p log p/q over quantiles, in the variable v = logit u: no end is lost.

    By Gauss-Legendre on panels, whose edges include the kinks of the two log-densities.
    """
    named = [(d, name) for d in (p, q) for name in ("loc", "peak") if hasattr(d, name)]
    kinks = [T(getattr(d, name).item()) for d, name in named]
    kinks = [z for z in kinks if p.support.check(z)]
    marks = [(p.log_cdf(z) - p.log_sf(z)).item() for z in kinks]
    edges = torch.tensor(sorted([*np.linspace(-80, 80, 161), *(m for m in marks if abs(m) < 80)]))
    low, half = edges[:-1, None], 0.5 * edges.diff()[:, None]
    v = low + half * (1 + X)
    tail = torch.exp(-v.abs()) / (1 + torch.exp(-v.abs()))
    z = torch.where(v > 0, p.isf(tail), p.icdf(tail))
    inside = p.support.check(z) & q.support.check(z)  # at an end z has lost u: weight < 1e-16
    middle = p.icdf(T(0.5))
    for d in (p, q):
        inside &= d.log_prob(torch.where(inside, z, middle)).isfinite()
    z = torch.where(inside, z, middle)
    terms = torch.where(inside, (p.log_prob(z) - q.log_prob(z)) * tail * (1 - tail), 0.0)
    return float((half * W * terms).sum())


@pytest.mark.parametrize(("p", "q"), SAME + ACROSS, ids=lambda d: str(d)[:24])
def test_equals_quadrature(p, q):
    kl = kl_divergence(p, q)
    if not inside(p, q):
        assert kl == math.inf
        return
    assert kl.item() == pytest.approx(quadrature(p, q), rel=1e-8, abs=1e-8)


def test_torchs_own_classes_are_priors_too():
    p, q = D.Laplace(0.3, 1.5), dist.Laplace(T(-0.2), T(0.8))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p, D.Laplace(-0.2, 0.8)))
    theirs = kl_divergence(dist.Laplace(T(0.3), T(1.5)), q)
    torch.testing.assert_close(kl_divergence(p, q), theirs)
    units = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
    torch.testing.assert_close(
        kl_divergence(D.Normal(torch.zeros(3), 2.0).to_event(1), units),
        3 * kl_divergence(dist.Normal(T(0.0), T(2.0)), dist.Normal(T(0.0), T(1.0))),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "family",
    [D.Normal, D.Laplace, D.Cauchy, D.Gumbel, D.Weibull, D.Pareto, D.Exponential, D.Rayleigh,
     D.Uniform, D.Reciprocal, D.ContinuousBernoulli],
)  # fmt: skip
def test_never_negative_and_zero_for_neighbours(family, dtype):
    """Textbook forms are negative here: torch's Normal gives -6e-8 in float32."""
    n = 4000
    size = 10 ** torch.empty(n, dtype=torch.float64).uniform_(-3, 3)
    near = 1 + torch.randn(n, dtype=torch.float64) * 10 ** torch.empty(n).uniform_(-8, -1)
    a, b = size.to(dtype), (size * near).to(dtype)
    one = torch.ones_like(a)
    if family in (D.Exponential, D.Rayleigh):
        pair = family(a), family(b)
    elif family is D.ContinuousBernoulli:
        a, b = a.clamp_max(100) - 50, b.clamp_max(100) - 50
        pair = family(logits=a), family(logits=b)
    elif family in (D.Uniform, D.Reciprocal):
        low = torch.minimum(a, b)
        pair = family(a, 2 * a), family(low, 2 * torch.maximum(a, b))
    elif family in (D.Weibull, D.Pareto):
        pair = family(one, a), family(one, b)
    else:
        pair = family(one, a), family(one, b)
    kl = kl_divergence(*pair)
    assert (kl >= 0).all()
    assert kl.isfinite().all()
    assert (kl_divergence(pair[0], pair[0]).abs() < 1e-6).all()
    if family in (D.Normal, D.Exponential, D.Rayleigh, D.Laplace, D.Pareto, D.Gumbel, D.Weibull):
        r = (a.double() / b.double()) - 1  # the quadratic term, where it is all there is
        factor = {
            D.Normal: 1.0, D.Exponential: 0.5, D.Rayleigh: 2.0, D.Laplace: 0.5, D.Pareto: 0.5,
            D.Gumbel: 0.5 * (math.pi**2 / 6 + (1 - 0.5772156649015329) ** 2),
            D.Weibull: 0.5 * (math.pi**2 / 6 + (1 - 0.5772156649015329) ** 2),
        }[family]  # fmt: skip
        small = (r.abs() < 1e-3) & (r.abs() > 1e-4)
        expected = factor * r[small].square()
        if family is not D.Gumbel and family is not D.Weibull:
            torch.testing.assert_close(kl[small].double(), expected, rtol=5e-3, atol=0)
        else:  # lgamma rounds 1 + r
            atol = 20 * torch.finfo(dtype).eps
            torch.testing.assert_close(kl[small].double(), expected, rtol=5e-3, atol=atol)


def test_infinite_where_a_moment_or_the_support_is_missing():
    normal, uniform = dist.Normal(T(0.0), T(1.0)), dist.Uniform(T(0.0), T(1.0))
    assert kl_divergence(D.Cauchy(0.0, 1.0), normal) == math.inf
    assert kl_divergence(D.Pareto(1.0, 1.5), normal) == math.inf
    assert kl_divergence(D.Normal(0.0, 1.0), uniform) == math.inf
    assert kl_divergence(D.Laplace(0.0, 1.0), dist.Exponential(T(1.0))) == math.inf
    assert kl_divergence(D.Pareto(0.5, 2.0), D.Pareto(1.0, 2.0)) == math.inf
    assert kl_divergence(D.Triangular(-0.1, 0.5, 1.0), uniform) == math.inf


@pytest.mark.parametrize(("p", "q"), SAME + ACROSS, ids=lambda d: str(d)[:24])
def test_gradients_are_finite_where_the_value_is(p, q):
    leaves = {k: v.detach().clone().requires_grad_() for k, v in p.parameters.items()}
    kl = kl_divergence(type(p)(**leaves), q)
    if kl.isfinite():
        for g in torch.autograd.grad(kl, list(leaves.values()), allow_unused=True):
            assert g is None or g.isfinite()


def test_multivariate_normal_against_independent_normals():
    loc, root = torch.randn(5, 3), torch.randn(5, 3, 3).tril(-1) + torch.eye(3) * 0.7
    scale = torch.rand(3) + 0.5
    p = dist.MultivariateNormal(loc, scale_tril=root)
    q = dist.Normal(torch.ones(3), scale).to_event(1)
    same = dist.MultivariateNormal(torch.ones(3), scale_tril=scale.diag())
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p, same))
    near = dist.MultivariateNormal(torch.ones(3), scale_tril=(scale * (1 + 1e-9)).diag())
    assert 0 <= kl_divergence(near, q) < 1e-16
    with pytest.raises(NotImplementedError, match="Independent"):
        kl_divergence(p, dist.Laplace(torch.ones(3), scale).to_event(1))


@pytest.mark.parametrize(
    "law", [radial.Normal(), radial.StudentT(5.0), radial.Laplace(), radial.Logistic(),
            radial.PowerExponential(0.7)], ids=lambda law: type(law).__name__
)  # fmt: skip
def test_elliptical_against_independent_normals(law):
    """A 6 sigma band around 100,000 draws: false alarm 2e-9 a case."""
    p = D.Elliptical(T([0.3, -1.0]), law, scale_tril=T([[0.8, 0.0], [0.3, 0.4]]))
    q = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    z, score = p.rsample_and_log_prob((100_000,))
    terms = score - q.log_prob(z)
    exact = kl_divergence(p, q)
    assert (terms.mean() - exact).abs() < 6 * terms.std() / np.sqrt(len(terms))


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        (D.Normal, ("loc", "scale")),
        (D.Laplace, ("loc", "scale")),
        (D.Gumbel, ("loc", "scale")),
        (D.Rayleigh, ("scale",)),
        (D.Exponential, ("rate",)),
    ],
)
def test_far_narrower_than_the_prior_in_float32_and_float64(family, parameters, ratio):
    """1 + (r - 1) has lost r long before: the logarithm of a small ratio keeps all its digits."""
    if family is D.Exponential:
        exact = ratio - 1 - math.log(ratio)
        given = {"rate": 1 / ratio}
    else:
        given = {"scale": ratio} | ({"loc": 0.0} if "loc" in parameters else {})
        log = math.log(ratio)
        exact = {
            D.Normal: (ratio**2 - 1) / 2 - log,
            D.Laplace: ratio - 1 - log,
            D.Gumbel: math.gamma(1 + ratio) - 1 - log - EULER * (1 - ratio),
            D.Rayleigh: ratio**2 - 1 - 2 * log,
        }[family]
    unit = {name: 0.0 if name == "loc" else 1.0 for name in parameters}
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        p, q = (
            family(**{k: torch.tensor(v, dtype=dtype) for k, v in values.items()})
            for values in (given, unit)
        )
        assert kl_divergence(p, q).item() == pytest.approx(exact, rel=rtol)
