"""Implicit reparameterization: any cdf, mixtures, truncation.

Statistical tests fix the seed; a mean is compared in a band of 6.5 standard errors, a false alarm
of 1e-10 each where the central limit holds.
"""

import copy
import json
import math
import pickle
from functools import partial

import mpmath as mp
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae import distributions as D
from pyrovae.distributions.implicit.parts import lazily
from pyrovae.distributions.roots import solve
from pyrovae.testing import check_distribution
from tests.distributions.accuracy_of_implicit import CASES, worst_excess

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tensors(dtype, *values):
    return [torch.tensor(v, dtype=dtype) for v in values]


# -- families of your own, from a density and a cdf ----------------------------------------------


class Lomax(D.InverseCDF):
    arg_constraints = {"scale": constraints.positive, "k": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, scale, k, *, validate_args=None):
        super().__init__(scale=scale, k=k, validate_args=validate_args)

    def _log_prob(self, z):
        return torch.log(self.k / self.scale) - (self.k + 1) * torch.log1p(z / self.scale)

    def _cdf(self, z):
        return -torch.expm1(-self.k * torch.log1p(z / self.scale))


class BothTails(Lomax):
    def _log_sf(self, z):
        return -self.k * torch.log1p(z / self.scale)


class LogCdf(D.InverseCDF):
    """A Logistic that gives one logarithm only."""

    arg_constraints = {"loc": constraints.real}
    support = constraints.real

    def __init__(self, loc, *, validate_args=None):
        super().__init__(loc=loc, validate_args=validate_args)

    def _log_prob(self, z):
        return self._log_cdf(z) + torch.nn.functional.logsigmoid(self.loc - z)

    def _log_cdf(self, z):
        return torch.nn.functional.logsigmoid(z - self.loc)


class Sampled(BothTails):
    def _sample(self, shape):
        return self.scale * torch.expm1(self._exponential(shape) / self.k)


@pytest.mark.parametrize("family", [BothTails, Sampled])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_density_and_tails_make_a_family(family, dtype):
    scale, k = tensors(dtype, [1.0, 2.0], [3.0, 5.0])
    oracle = st.lomax([3.0, 5.0], scale=[1.0, 2.0]) if dtype == torch.float64 else None
    check_distribution(family(scale, k), oracle)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_are_found_on_the_whole_line(dtype):
    """However far the scale is from 1, and with no hint of where to look."""
    u = torch.tensor([1e-30, 1e-12, 0.01, 0.5, 0.9, 0.999999], dtype=dtype)
    eps = torch.finfo(dtype).eps
    for scale in (1e-7, 1e-3, 1.0, 1e25):
        d = BothTails(*tensors(dtype, scale, 2.5))
        expected = d.scale.double() * torch.expm1(-torch.log1p(-u.double()) / 2.5)
        torch.testing.assert_close(d.icdf(u).double(), expected, rtol=16 * eps, atol=0)
        expected = d.scale.double() * torch.expm1(-u.double().log() / 2.5)
        torch.testing.assert_close(d.isf(u).double(), expected, rtol=64 * eps, atol=0)
    for loc in (-1e6, 1e-6, 0.0, 300.0):
        d = LogCdf(torch.tensor(loc, dtype=dtype))
        expected = loc + u.double().logit()
        size = 16 * eps * (abs(loc) + u.double().logit().abs().max())
        assert (d.icdf(u).double() - expected)[:-1].abs().max() <= size


def test_quantiles_at_the_ends_are_the_ends():
    d = Lomax(2.0, 3.0)
    ends = torch.tensor([0.0, 1.0])
    assert d.icdf(ends).tolist() == [0.0, math.inf]
    assert d.isf(ends).tolist() == [math.inf, 0.0]
    assert LogCdf(0.0).icdf(ends).tolist() == [-math.inf, math.inf]
    assert d.icdf(torch.tensor([-0.1, 1.1, math.nan])).isnan().all()


@pytest.mark.parametrize("name", ["icdf", "isf"])
def test_quantiles_are_twice_differentiable(name):
    u, scale, k = (v.requires_grad_() for v in tensors(
        torch.float64, [[0.1, 0.2], [0.9, 0.6]], [1.0, 2.0], [3.0, 0.7]))  # fmt: skip

    def f(u, scale, k):
        return getattr(BothTails(scale, k), name)(u)

    assert torch.autograd.gradcheck(f, (u, scale, k))
    assert torch.autograd.gradgradcheck(f, (u, scale, k))


def lomax_quantile(scale, k, u):
    return BothTails(scale, k).icdf(u)


@pytest.mark.slow  # 32 evaluations of the tails in a graph, 64 in float64: 10 s each
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_in_a_graph(dtype):
    values = tensors(dtype, [1.0, 2.0], [3.0, 0.7], [0.3, 0.9])
    traced = make_fx(lomax_quantile)(*values)
    torch.testing.assert_close(traced(*values), lomax_quantile(*values))


def test_quantiles_under_vmap():
    f = lomax_quantile
    scale, k, u = tensors(torch.float32, [1.0, 2.0], [3.0, 0.7], [0.3, 0.9])
    plain = f(scale, k, u)
    torch.testing.assert_close(torch.func.vmap(f)(scale, k, u), plain)
    slope = torch.func.vmap(torch.func.grad(f))(scale, k, u)
    torch.testing.assert_close(slope, plain / scale)


def test_draws_keep_both_tails_of_float32():
    """One draw in 2^25 is beyond this; from uniforms the last 2^24th of a tail is one point."""
    z = BothTails(torch.tensor(1.0), torch.tensor(1.0)).sample((200_000,))
    d = BothTails(1.0, 1.0)
    assert d.cdf(z.min()) > 0
    assert z.unique().numel() > 199_000
    u = torch.cat([d.cdf(z).double(), d.sf(z).double()]).sort().values
    assert u[0] < 1e-4


def test_draws_of_ones_own_get_the_gradient_of_the_quantile():
    scale, k = (v.requires_grad_() for v in tensors(torch.float64, 1.5, 2.5))
    z = Sampled(scale, k).rsample((1000,))
    per_scale, per_k = torch.autograd.grad(z.sum(), (scale, k))
    eps = z.detach() / scale.detach()
    torch.testing.assert_close(per_scale, eps.sum())
    expected = -(1.5 / 2.5 * (1 + eps) * torch.log1p(eps)).sum()
    torch.testing.assert_close(per_k, expected)


def test_a_tail_that_is_not_written_is_derived():
    z = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    d, e, s = Lomax(2.0, 3.0), LogCdf(0.3), st.lomax(3.0, scale=2.0)
    for name, theirs in (("cdf", s.cdf), ("sf", s.sf), ("log_cdf", s.logcdf), ("log_sf", s.logsf)):
        torch.testing.assert_close(getattr(d, name)(z), torch.tensor(theirs(z)), rtol=1e-5, atol=0)
    for name in ("cdf", "sf", "log_cdf", "log_sf"):
        expected = getattr(D.Logistic(0.3, 1.0), name)(z)
        torch.testing.assert_close(getattr(e, name)(z), expected, rtol=1e-6, atol=0)
    unchecked = Lomax(2.0, 3.0, validate_args=False)
    assert unchecked.log_cdf(torch.tensor(-1.0)) == -math.inf
    assert unchecked.sf(torch.tensor(-1.0)) == 1


def test_a_family_without_quantiles_says_what_to_write():
    class Bare(D.InverseCDF):
        arg_constraints = {"scale": constraints.positive}
        support = constraints.positive

        def __init__(self, scale):
            super().__init__(scale=scale)

    for call in (Bare(1.0).rsample, lambda: Bare(1.0).icdf(torch.tensor(0.5))):
        with pytest.raises((NotImplementedError, ValueError), match="define _cdf|must define"):
            call()


def test_a_cdf_that_is_nan_is_said():
    class Broken(Lomax):
        def _cdf(self, z):
            return torch.where(z > 3, math.nan, super()._cdf(z))

    with pytest.raises(ArithmeticError, match="NaN at z"):
        Broken(2.0, 3.0).icdf(torch.tensor(0.9))


def test_roots_of_steps_and_steep_functions():
    for dtype in DTYPES:
        low, high = tensors(dtype, [-1e30, -1e30, 1.0, -2.0], [1e30, 1e30, 2.0, 3.0])
        wanted = torch.tensor([1e-20, -1e25, 1.5, 0.0], dtype=dtype)
        calls = []

        def g(z, wanted=wanted, calls=calls):
            calls.append(1)
            return torch.sign(z - wanted)  # nothing to interpolate: bisection's worst case

        z = solve(g, low, high, look=True)
        torch.testing.assert_close(z, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-44)
        assert len(calls) <= 66


# -- mixtures -------------------------------------------------------------------------------------


def normals(dtype=torch.float64):
    logits, loc, scale = tensors(dtype, [0.3, -1.0, 0.5], [-2.0, 0.0, 3.0], [0.5, 1.0, 0.7])
    return D.Mixture(logits, D.Normal(loc, scale))


def gammas(dtype=torch.float64):
    logits, a, rate = tensors(dtype, [[0.3, -1.0], [0.0, 1.0]], [2.0, 0.7], [1.5, 3.0])
    return D.Mixture(logits, D.Gamma(a, rate))


def list_of_two(dtype=torch.float64):
    logits, a, b, c, e = tensors(dtype, [0.3, -1.0], [0.0, 1.0], 1.0, [2.0, 3.0], 0.5)
    return D.Mixture(logits, [D.Normal(a, b), D.Gamma(c, e)])


def uniforms(dtype=torch.float64):
    logits, low, high = tensors(dtype, [0.3, -1.0], [0.0, 1.0], [2.0, 5.0])
    return D.Mixture(logits, D.Uniform(low, high))


def products(dtype=torch.float64):
    logits, loc, scale = tensors(dtype, [0.3, -1.0], [[0.0, 1.0], [2.0, 1.5]], [0.5, 0.6])
    return D.Mixture(logits, D.Laplace(loc, scale).to_event(1))


TRILS = [[[1.0, 0.0], [0.5, 0.6]], [[0.5, 0.0], [-1.0, 0.6]]]


def gaussians(dtype=torch.float64):
    logits, loc, tril = tensors(dtype, [0.3, -1.0], [[0.0, 1.0], [2.0, 1.0]], TRILS)
    return D.Mixture(logits, D.MultivariateNormal(loc, scale_tril=tril))


def vectors_of_two_kinds(dtype=torch.float64):
    logits, loc, scale, tril = tensors(dtype, [0.3, -1.0], [0.0, 1.0], [0.5, 0.6], TRILS[1])
    parts = [D.Normal(loc, scale).to_event(1), D.Elliptical(-loc, scale_tril=tril)]
    return D.Mixture(logits, parts)


UNIVARIATE = [normals, gammas, list_of_two, uniforms]
VECTORS = [products, gaussians, vectors_of_two_kinds]


@pytest.mark.parametrize("make", UNIVARIATE + VECTORS, ids=lambda f: f.__name__)
def test_mixtures_keep_the_contract(make):
    check_distribution(make(), samples=10_000)


@pytest.mark.parametrize("make", [normals, gaussians], ids=lambda f: f.__name__)
def test_mixtures_keep_the_contract_in_float32(make):
    check_distribution(make(torch.float32), samples=10_000)


def per_draw_oracle(logits, loc, scale, z):
    """-dF/dtheta / q of a mixture of Normals by mpmath, at 50 digits."""
    with mp.workdps(50):
        eta, mu, s = ([mp.mpf(x) for x in v] for v in (logits, loc, scale))
        z = mp.mpf(z)
        total = sum(mp.exp(e) for e in eta)
        w = [mp.exp(e) / total for e in eta]
        below = [mp.ncdf((z - m) / a) for m, a in zip(mu, s, strict=True)]
        density = [mp.npdf(z, m, a) for m, a in zip(mu, s, strict=True)]
        q = sum(a * b for a, b in zip(w, density, strict=True))
        whole = sum(a * b for a, b in zip(w, below, strict=True))
        parts = list(zip(w, below, density, mu, s, strict=True))
        return [
            [float(-a * (f - whole) / q) for a, f, *_ in parts],
            [float(a * p / q) for a, _, p, *_ in parts],
            [float(a * p * (z - m) / t / q) for a, _, p, m, t in parts],
        ]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_gradient_of_each_draw_is_exact(dtype, rtol):
    """Against 50 digits, in both tails too, where cdfs of float32 are 0 and 1."""
    d = normals(dtype)
    values = [d.logits, d.components.loc, d.components.scale]
    leaves = [v.detach().clone().requires_grad_() for v in values]
    moved = D.Mixture(leaves[0], D.Normal(*leaves[1:]))
    points = torch.tensor([-9.0, -6.0, -2.3, -0.7, 0.4, 1.6, 3.3, 8.0, 11.0], dtype=dtype)
    for z in points:
        found = torch.autograd.grad(moved._moved(z, 1), leaves)
        exact = per_draw_oracle(*(v.tolist() for v in values), z.item())
        for got, expected in zip(found, exact, strict=True):
            expected = torch.tensor(expected, dtype=torch.float64)
            error = (got.double() - expected).abs().max() / expected.abs().max()
            assert error < rtol, (z, got, expected)


def test_weights_and_scales_are_moved_where_the_cdf_is_one():
    """Naively, in float32, a weight's gradient is 0 at 9.5 and a scale's infinite at 14."""
    logits = torch.zeros(2, requires_grad=True)
    d = D.Mixture(logits, D.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])))
    (slope,) = torch.autograd.grad(d._moved(torch.tensor(9.5), 1), logits)
    exact = per_draw_oracle([0.0, 0.0], [0.0, 1.0], [1.0, 1.0], 9.5)[0]
    torch.testing.assert_close(slope.double(), torch.tensor(exact).double(), rtol=1e-5, atol=0)
    scale = torch.ones(1, requires_grad=True)
    for z in (14.0, -14.0, 30.0):
        one = D.Mixture(torch.zeros(1), D.Normal(torch.zeros(1), scale))
        (slope,) = torch.autograd.grad(one._moved(torch.tensor(z), 1), scale)
        torch.testing.assert_close(slope, torch.tensor([z]), rtol=5e-5, atol=0)


def closed_normals(logits, loc, scale):
    w = logits.softmax(-1)
    return (w * loc).sum(), (w * (loc.square() + scale.square())).sum()


def closed_gammas(logits, a, rate):
    w = logits.softmax(-1)
    return (w * a / rate).sum(), (w * a * (a + 1) / rate.square()).sum()


@pytest.mark.parametrize(
    ("family", "closed", "values"),
    [
        (D.Normal, closed_normals, ([0.3, -1.0, 0.5], [-2.0, 0.0, 3.0], [0.5, 1.0, 0.7])),
        (D.Gamma, closed_gammas, ([0.3, -0.5], [2.0, 0.7], [1.5, 3.0])),
    ],
    ids=["Normal", "Gamma"],
)
def test_gradients_of_moments_are_those_in_closed_form(family, closed, values):
    """d E[z] and d E[z^2] with respect to logits and components; 18 numbers, 6.5 errors each."""
    n = 20_000
    exact = [v.requires_grad_() for v in tensors(torch.float64, *values)]
    leaves = [v.detach().expand(n, -1).clone().requires_grad_() for v in exact]
    z = D.Mixture(leaves[0], family(*leaves[1:])).rsample()
    for power, value in zip((1, 2), closed(*exact), strict=True):
        wanted = torch.autograd.grad(value, exact, retain_graph=True, materialize_grads=True,
                                     allow_unused=True)  # fmt: skip
        found = torch.autograd.grad((z**power).sum(), leaves, retain_graph=True)
        for got, expected in zip(found, wanted, strict=True):
            off = (got.mean(0) - expected).abs()
            assert (off < 6.5 * got.std(0) / n**0.5).all(), (power, got.mean(0), expected)


@pytest.mark.parametrize("kind", ["products", "gaussians"])
def test_gradients_of_products_of_coordinates(kind):
    """E[z1 z2] mixes the coordinates: w (mu1 mu2 + cov12), exact for every parameter."""
    n = 20_000
    logits, loc, tril = tensors(torch.float64, [0.3, -1.0], [[0.0, 1.0], [2.0, 1.0]], TRILS)
    scale = tril.diagonal(dim1=-2, dim2=-1).clone() if kind == "products" else tril
    exact = [v.requires_grad_() for v in (logits, loc, scale)]
    cov = 0 * exact[2] if kind == "products" else (exact[2] @ exact[2].mT)[..., 0, 1:]
    value = (exact[0].softmax(-1) * (exact[1].prod(-1) + cov.reshape(2, -1)[:, 0])).sum()
    wanted = torch.autograd.grad(value, exact)
    leaves = [v.detach().expand(n, *v.shape).clone().requires_grad_() for v in exact]
    if kind == "products":
        part = D.Normal(*leaves[1:]).to_event(1)
    else:
        part = D.MultivariateNormal(leaves[1], scale_tril=leaves[2])
    z = D.Mixture(leaves[0], part).rsample()
    found = torch.autograd.grad(z.prod(-1).sum(), leaves)
    for got, expected in zip(found, wanted, strict=True):
        expected = expected.tril() if expected.dim() == 3 else expected
        off = (got.mean(0) - expected).abs()
        assert (off <= 6.5 * got.std(0) / n**0.5 + 1e-12).all(), (got.mean(0), expected)


@pytest.mark.parametrize("make", VECTORS, ids=lambda f: f.__name__)
def test_vectors_move_at_fixed_conditional_cdfs(make):
    """Against the whole Jacobian of the distributional transform, by automatic differentiation."""
    d = make()
    z = d.sample()
    logits = d.logits.clone().requires_grad_()
    moved = D.Mixture(logits, d.components)._moved(z, 1)
    found = torch.stack([torch.autograd.grad(x, logits, retain_graph=True)[0] for x in moved])

    def transform(z, logits):  # u_d = F(z_d | z_<d), from cdfs, as the paper has it
        c, weights, u = d._conditionals(), logits.log_softmax(-1), []
        for i in range(2):
            lean = weights + c.log_prob(z)[..., :i].sum(-1)
            u.append((lean.softmax(-1) * c.log_tail(z, None).exp()[..., i]).sum(-1))
        return torch.stack(u)

    per_z, per_logits = torch.autograd.functional.jacobian(transform, (z, d.logits))
    torch.testing.assert_close(
        found, -torch.linalg.solve(per_z, per_logits), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("make", [normals, gaussians, products], ids=lambda f: f.__name__)
def test_draws_of_mixtures_have_second_derivatives(make):
    """Of the draw at a fixed cdf: by finite differences of the first ones."""
    d = make()
    z = d.sample()
    u = None if d.event_shape else d.cdf(z)

    def first(logits):
        mixture = D.Mixture(logits, d.components)
        at = z if u is None else mixture.icdf(u)
        moved = mixture._moved(at, 2)
        return torch.autograd.grad(moved.sin().sum(), logits, create_graph=True)[0]

    logits = d.logits.clone().requires_grad_()
    torch.manual_seed(1)
    mixture = D.Mixture(logits, d.components)
    moved = lazily(mixture, z, lambda d, steps: d._moved(z, steps))
    (slope,) = torch.autograd.grad(moved.sin().sum(), logits, create_graph=True)
    (got,) = torch.autograd.grad(slope.square().sum(), logits)
    if u is None:
        eager = mixture._moved(z, 2)
        (other,) = torch.autograd.grad(eager.sin().sum(), logits, create_graph=True)
        (expected,) = torch.autograd.grad(other.square().sum(), logits)
        torch.testing.assert_close(got, expected)
        return
    h, expected = 1e-5, []
    for i in range(logits.numel()):
        step = torch.zeros_like(d.logits).flatten().index_fill(0, torch.tensor(i), h)
        ends = [
            first((d.logits + s * step).requires_grad_()).square().sum().item() for s in (1, -1)
        ]
        expected.append((ends[0] - ends[1]) / (2 * h))
    torch.testing.assert_close(got, torch.tensor(expected).to(got), rtol=1e-6, atol=1e-9)


def test_moments_of_mixtures_do_not_cancel():
    loc = torch.tensor([1e4, 1e4 + 0.01])
    d = D.Mixture(torch.zeros(2), D.Normal(loc, torch.tensor([1e-3, 2e-3])))
    exact = 2.5e-6 + ((loc[1] - loc[0]) / 2) ** 2
    torch.testing.assert_close(d.variance, exact, rtol=1e-3, atol=0)
    assert normals().mode.isnan().all()
    with pytest.raises(NotImplementedError, match="no closed form"):
        normals().entropy()


def test_quantiles_of_a_mixture_with_a_gap():
    """Between two far components the density is 1e-300 and less; the quantile is still there."""
    d = D.Mixture(torch.zeros(2), D.Normal(torch.tensor([-50.0, 50.0]), torch.ones(2)))
    u = torch.tensor([0.25, 0.499, 0.501, 0.75])
    expected = torch.tensor([-50.0, -47.1218, 47.1218, 50.0])
    expected[1:3] = torch.tensor([-1.0, 1.0]) * (50 - torch.tensor(st.norm.isf(0.002)))
    torch.testing.assert_close(d.icdf(u), expected, rtol=1e-5, atol=0)
    assert d.icdf(torch.tensor(0.5)).abs() < 50


def test_vector_mixtures_refuse_what_only_univariate_ones_have():
    for name in ("cdf", "sf", "log_cdf", "log_sf"):
        with pytest.raises(NotImplementedError, match=f"{name} is defined for univariate"):
            getattr(products(), name)(torch.zeros(2))
    with pytest.raises(NotImplementedError, match="icdf is defined for univariate"):
        products().icdf(torch.tensor(0.5))


REFUSED = {
    "not reparameterizable": lambda: D.Mixture(torch.zeros(2), dist.Poisson(torch.ones(2))),
    "no differentiable cdf": lambda: D.Mixture(torch.zeros(2), dist.StudentT(torch.ones(2) * 3)),
    "Gamma of pyro has no differentiable": lambda: D.Mixture(
        torch.zeros(2), dist.Gamma(torch.ones(2), torch.ones(2))
    ),
    "do not fit 3 components": lambda: D.Mixture(torch.zeros(2), D.Normal(torch.zeros(3), 1.0)),
    "has no batch dimension": lambda: D.Mixture(torch.zeros(2), D.Normal(0.0, 1.0)),
    "one event shape": lambda: D.Mixture(
        torch.zeros(2), [D.Normal(0.0, 1.0), D.Normal(torch.zeros(2), 1.0).to_event(1)]
    ),
    "do not broadcast": lambda: D.Mixture(torch.zeros(5, 2), D.Normal(torch.zeros(4, 2), 1.0)),
    "at least one component": lambda: D.Mixture(torch.zeros(0), []),
    "expected a distribution, got float": lambda: D.Mixture(torch.zeros(2), [1.0, 2.0]),
    "got Dirichlet": lambda: D.Mixture(torch.zeros(2), D.Dirichlet(torch.ones(2, 3))),
    "'logits'.*be finite": lambda: D.Mixture(
        torch.tensor([0.0, math.inf]), D.Normal(torch.zeros(2), 1.0)
    ),
    "torch.float16": lambda: D.Mixture(torch.zeros(2).half(), D.Normal(torch.zeros(2), 1.0)),
    "give low, high or both": lambda: D.Truncated(D.Normal(0.0, 1.0), -math.inf, math.inf),
    "'low' to be less than 'high'": lambda: D.Truncated(D.Normal(0.0, 1.0), 1.0, 1.0),
    "leave some of the base's mass": lambda: D.Truncated(D.Gamma(1.0, 1.0), -3.0, -1.0),
    "'high' to be a number": lambda: D.Truncated(D.Normal(0.0, 1.0), 0.0, math.nan),
    "expected a univariate": lambda: D.Truncated(D.Dirichlet(torch.ones(3)), 0.1),
    "ends of shapes": lambda: D.Truncated(D.Normal(torch.zeros(3), 1.0), torch.zeros(2)),
    "is not reparameterizable": lambda: D.Truncated(dist.Poisson(1.0), 0.0),
    "'low' is torch.bfloat16": lambda: D.Truncated(D.Normal(0.0, 1.0), torch.zeros(2).bfloat16()),
    "expected a distribution class": lambda: D.mixture_of("Normal", 2),
    "bound each other": lambda: D.mixture_of(D.Uniform, 2),
    "number of components must be positive": lambda: D.mixture_of(D.Normal, 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_refused_by_name(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


# -- truncation -----------------------------------------------------------------------------------


def cut_normals(dtype=torch.float64):
    loc, scale, low, high = tensors(dtype, [0.3, 0.0], [1.5, 1.0], [-1.0, 3.0], [2.0, 4.0])
    return D.Truncated(D.Normal(loc, scale), low, high)


def half_normals(dtype=torch.float64):
    (loc, high) = tensors(dtype, [0.3, 0.0], 0.0)
    return D.Truncated(D.Normal(loc, 1.0), high=high)


def cut_exponentials(dtype=torch.float64):
    rate, high = tensors(dtype, [0.5, 3.0], [1.0, 4.0])
    return D.Truncated(D.Exponential(rate), high=high)


def cut_cauchy(dtype=torch.float64):
    return D.Truncated(
        D.Cauchy(*tensors(dtype, [2.0, 0.7], 1.5)), *tensors(dtype, 1.0, [2.0, 6.0])
    )


def cut_laplace(dtype=torch.float64):
    return D.Truncated(
        D.Laplace(*tensors(dtype, 0.0, 1.0)), torch.tensor([-1.0, 0.2], dtype=dtype)
    )


TRUNCATED = {
    cut_normals: lambda: st.truncnorm([-1.3 / 1.5, 3], [1.7 / 1.5, 4], [0.3, 0], [1.5, 1]),
    half_normals: lambda: st.truncnorm([-math.inf] * 2, [-0.3, 0.0], [0.3, 0.0], 1.0),
    cut_exponentials: lambda: st.truncexpon([0.5, 12.0], 0, [2.0, 1 / 3]),
    cut_cauchy: None,
    cut_laplace: None,
}


@pytest.mark.parametrize("make", TRUNCATED, ids=lambda f: f.__name__)
def test_truncations_keep_the_contract(make):
    oracle = TRUNCATED[make]
    check_distribution(make(), oracle and oracle(), samples=10_000)


def test_truncations_keep_the_contract_in_float32():
    check_distribution(cut_normals(torch.float32), samples=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["gamma", "student", "mixture"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slow_bases_keep_the_contract_truncated(dtype, base):
    low, high = tensors(dtype, [1.0, 0.2], [2.0, 6.0])
    bases = {
        "gamma": lambda: D.Gamma(*tensors(dtype, [2.0, 0.7], [1.5, 3.0])),
        "student": lambda: D.StudentT(*tensors(dtype, 3.0, 0.0, 1.0)),
        "mixture": lambda: normals(dtype),
    }
    check_distribution(D.Truncated(bases[base](), low, high), samples=2_000)


ENDS = [(30.0, 31.0), (-40.0, -39.0), (-1.0, 2.0), (0.0, math.inf), (-math.inf, -45.0)]


@pytest.mark.parametrize(("low", "high"), ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_tails_are_drawn_and_scored(low, high, dtype):
    """Against mpmath; draws in the band of Dvoretzky et al., false alarm 1e-9."""
    d = D.Truncated(D.Normal(*tensors(dtype, 0.0, 1.0)), low, high)
    n = 20_000
    z = d.sample((n,))
    assert ((z > low) & (z < high)).all()
    assert z.isfinite().all()
    with mp.workdps(60):
        flip = low > 0
        a, b = (-high, -low) if flip else (low, high)
        a, b = (mp.mpf(a) if math.isfinite(a) else -mp.inf), mp.mpf(b)
        mass = mp.ncdf(b) - mp.ncdf(a)
        cdf = [float((mp.ncdf(-x if flip else x) - mp.ncdf(a)) / mass) for x in z[:200].tolist()]
        at = [(x, mp.npdf(x) / mass) if mp.isfinite(x) else (mp.mpf(0), mp.mpf(0)) for x in (a, b)]
        first = at[0][1] - at[1][1]
        second = 1 + at[0][0] * at[0][1] - at[1][0] * at[1][1] - first**2
        first = -first if flip else first
        score = [float(mp.log(mp.npdf(x) / mass)) for x in z[:200].tolist()]
    eps = torch.finfo(dtype).eps
    expected = torch.tensor([1 - x if flip else x for x in cdf], dtype=torch.float64)
    torch.testing.assert_close(d.cdf(z[:200]).double(), expected, rtol=0, atol=16 * eps + 1e-12)
    wanted = torch.tensor(score, dtype=torch.float64)
    torch.testing.assert_close(
        d.log_prob(z[:200]).double(), wanted, rtol=8 * eps + 4e-12, atol=8 * eps
    )
    torch.testing.assert_close(d.mean.item(), float(first), rtol=4 * eps + 1e-13, atol=0)
    torch.testing.assert_close(d.variance.item(), float(second), rtol=4 * eps + 1e-10, atol=0)
    u = d.cdf(z.double().to(dtype)).sort().values
    off = (u - torch.arange(n) / n).abs().max()
    assert off < math.sqrt(math.log(2e9) / (2 * n))


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gradients_to_the_base_and_to_both_ends(dtype, tol):
    """Of each draw, against -dF/dtheta / q by mpmath, in the middle and far out."""

    def cdf(z, loc, scale, low, high):
        if low > loc:
            return 1 - cdf(-z, -loc, scale, -high, -low)
        a, b, x = ((v - loc) / scale for v in (low, high, z))
        return (mp.ncdf(x) - mp.ncdf(a)) / (mp.ncdf(b) - mp.ncdf(a))

    for values in ([0.3, 1.5, -1.0, 2.0], [0.1, 1.0, 8.0, 9.0], [0.1, 0.7, -31.0, -28.0]):
        leaves = [v.requires_grad_() for v in tensors(dtype, *values)]
        d = D.Truncated(D.Normal(*leaves[:2]), *leaves[2:])
        exact = [mp.mpf(v.item()) for v in leaves]
        for _ in range(4):
            z = d.rsample()
            found = torch.autograd.grad(z, leaves)
            with mp.workdps(60):
                at, h = mp.mpf(z.item()), mp.mpf(10) ** -25
                q = (cdf(at + h, *exact) - cdf(at - h, *exact)) / (2 * h)
                wanted = []
                for i in range(4):
                    ends = [[v + s * h * (j == i) for j, v in enumerate(exact)] for s in (1, -1)]
                    slope = (cdf(at, *ends[0]) - cdf(at, *ends[1])) / (2 * h)
                    wanted.append(float(-slope / q))
            for got, expected in zip(found, wanted, strict=True):
                # the sum of all four is 1 where loc and the ends move together
                assert abs(got.item() - expected) < tol * max(1.0, abs(expected)), values


def test_gradients_of_the_moments_are_those_of_the_draws():
    n = 20_000
    values = tensors(torch.float64, 0.3, 1.5, -1.0, 2.0)
    one = [v.clone().requires_grad_() for v in values]
    many = [v.expand(n).clone().requires_grad_() for v in values]
    wanted = torch.autograd.grad(D.Truncated(D.Normal(*one[:2]), *one[2:]).mean, one)
    z = D.Truncated(D.Normal(*many[:2]), *many[2:]).rsample()
    found = torch.autograd.grad(z.sum(), many)
    for got, expected in zip(found, wanted, strict=True):
        assert (got.mean() - expected).abs() < 6.5 * got.std() / n**0.5


def test_moments_and_entropy_of_truncations():
    """Against scipy's closed forms and integrals, and where there is none."""
    d, oracle = cut_normals(), TRUNCATED[cut_normals]()
    torch.testing.assert_close(d.mean, torch.tensor(oracle.mean()), rtol=1e-12, atol=0)
    torch.testing.assert_close(d.variance, torch.tensor(oracle.var()), rtol=1e-9, atol=0)
    torch.testing.assert_close(d.entropy(), torch.tensor(oracle.entropy()), rtol=1e-9, atol=0)
    zero, one = tensors(torch.float64, 0.0, 1.0)
    cauchy = D.Cauchy(zero, one)
    assert D.Truncated(cauchy, low=0.0).mean == math.inf
    assert D.Truncated(cauchy, high=0.0).mean == -math.inf
    both = D.Truncated(cauchy, -1.0, 1.0)
    torch.testing.assert_close(both.variance, 4 / math.pi * one - 1, rtol=1e-12, atol=0)
    tail = D.Truncated(D.Pareto(one, 2.5 * one), low=3.0)  # again a Pareto, from 3
    torch.testing.assert_close(tail.mean, 5 * one, rtol=1e-9, atol=0)
    torch.testing.assert_close(tail.variance, 20 * one, rtol=1e-6, atol=0)
    assert D.Truncated(D.Pareto(one, 1.5 * one), low=3.0).variance == math.inf
    assert D.Truncated(D.Exponential(one), 2.0, 5.0).mode == 2.0
    half = D.Truncated(D.Normal(zero, one), low=0.0)
    torch.testing.assert_close(half.mean, math.sqrt(2 / math.pi) * one)


def test_an_end_outside_of_the_bases_support_does_not_cut():
    d = D.Truncated(D.Gamma(2.0, 1.0), low=-3.0, high=4.0)
    assert d.support.lower_bound == 0.0
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor(-1.0))
    expected = D.Truncated(D.Gamma(2.0, 1.0), high=4.0).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(d.log_prob(torch.tensor(1.0)), expected)


# -- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits(family, dtype):
    """At most 4, as of every family: tails, their logarithms, densities, quantiles."""
    for name, (bits, inputs, got) in worst_excess(family, dtype, draws=1, seed=1).items():
        assert bits <= 4.0, f"{name} at {inputs}: {got}, {bits:.1f} excess wrong bits"


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits_on_the_full_grid(family, dtype):
    for name, (bits, inputs, got) in worst_excess(family, dtype, draws=8, seed=2).items():
        assert bits <= 4.0, f"{name} at {inputs}: {got}, {bits:.1f} excess wrong bits"


# -- both, in programs ----------------------------------------------------------------------------

ALL = [normals, list_of_two, gaussians, cut_normals, half_normals]


@pytest.mark.parametrize("make", ALL, ids=lambda f: f.__name__)
def test_copies_and_expand(make):
    d = make()
    z = d.sample()
    for other in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d), copy.copy(d)):
        torch.testing.assert_close(other.log_prob(z), d.log_prob(z))
        assert repr(other) == repr(d)
    wide = d.expand((4, *d.batch_shape))
    assert wide.rsample((2,)).shape == (2, 4, *d.batch_shape, *d.event_shape)
    assert wide.log_prob(z).shape == (4, *d.batch_shape)
    assert wide.mean.shape == (4, *d.batch_shape, *d.event_shape)


def test_mixtures_and_truncations_under_vmap():
    logits, loc, scale, z = tensors(
        torch.float64, [[0.3, 0.1], [0.0, 1.0]], [[0.0, 1.0], [2.0, 3.0]], 0.7, [0.4, 1.7]
    )

    def ask(logits, loc, z):
        d = D.Mixture(logits, D.Normal(loc, scale))
        t = D.Truncated(d, -3.0, 5.0)
        return [*(f(z) for e in (d, t) for f in (e.log_prob, e.cdf, e.log_sf)), d.variance,
                d.icdf(torch.full_like(z, 0.3))]  # fmt: skip

    mapped = torch.func.vmap(ask)(logits, loc, z)
    for a, b in zip(mapped, ask(logits, loc, z), strict=True):
        torch.testing.assert_close(a, b)

    def score(logits, loc, z):
        d = D.Mixture(logits, D.Normal(loc, scale))
        return d.log_prob(z).sum() + D.Truncated(d, -3.0, 5.0).log_prob(z).sum()

    found = torch.func.vmap(torch.func.grad(score))(logits, loc, z)
    torch.testing.assert_close(found, torch.func.grad(score)(logits, loc, z))


GRAPHS = {
    "univariate": lambda w, loc, s: D.Mixture(w, D.Normal(loc, s)),
    "product": lambda w, loc, s: D.Mixture(w, D.Normal(loc.expand(2, 2), s).to_event(1)),
    "gaussian": lambda w, loc, s: D.Mixture(
        w, D.Elliptical(loc.expand(2, 2), scale_tril=torch.diag_embed(s.expand(2, 2)))
    ),
    "truncated": lambda w, loc, s: D.Truncated(D.Normal(loc, s), w, w + 2),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_draws_and_gradients_can_be_traced_into_a_graph(kind):
    def f(*values):
        d = GRAPHS[kind](*values)
        z = d.rsample((3,))
        return z, torch.autograd.grad(d.log_prob(z).sum() + z.sum(), values)

    values = [v.requires_grad_() for v in tensors(torch.float64, [0.3, 0.1], [0.0, 1.0], 0.7)]
    z, slopes = make_fx(f)(*values)(*values)
    assert z.shape[0] == 3
    assert all(s.isfinite().all() for s in slopes)
    again = GRAPHS[kind](*values)
    d = again if kind == "truncated" else None
    assert d is None or d.support.check(z).all()


def test_a_mixture_guide_finds_both_modes():
    """A posterior that is a mixture of two Normals: the guide becomes it, KL below 0.02 nats."""
    target = D.Mixture(torch.tensor([0.4, -0.4]), D.Normal(torch.tensor([-2.0, 2.0]), 0.6))

    def model():
        pyro.sample("z", target)

    def guide():
        logits = pyro.param("logits", torch.zeros(2))
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5]))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("z", D.Mixture(logits, D.Normal(loc, scale)))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = pyro.infer.Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
    for _ in range(250):
        svi.step()
    store = pyro.get_param_store()
    q = D.Mixture(
        store["logits"].detach(), D.Normal(store["loc"].detach(), store["scale"].detach())
    )
    z = q.sample((20_000,))
    assert (q.log_prob(z) - target.log_prob(z)).mean() < 0.02
    pyro.clear_param_store()


def test_the_elbo_samples_where_no_kl_is_closed():
    q, p = normals(), D.Normal(0.0, 1.0)
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(q, p)
    x = torch.zeros(4, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p.expand((1,)).to_event(1))
            pyro.sample("x", D.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q.expand((1,)).to_event(1))

    found = pv.ELBO(analytic_kl=True, particles=4000).per_datum(model, guide, x)
    z = q.sample((400_000,))
    x_given_z = 2 * D.Normal(z, 1.0).log_prob(torch.tensor(0.0))
    exact = (x_given_z + p.log_prob(z) - q.log_prob(z)).mean()
    torch.testing.assert_close(found.detach(), exact.expand(4), rtol=0, atol=0.5)


POSTERIORS = {
    "units": D.mixture_of(D.Normal, 3),
    "joint": D.mixture_of(D.Normal, 3, joint=True),
    "Gaussian": D.mixture_of(D.MultivariateNormal, 2),
    "Student": D.mixture_of(D.StudentT, 2),
    "fixed": partial(D.mixture_of(D.StudentT, 2), df=5.0),
    "Gamma": D.mixture_of(D.Gamma, 2),
    "text": "mixture(laplace, 3)",
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_vae_has_a_mixture_for_its_posterior(name):
    pyro.clear_param_store()
    vae = pv.models.VAE(12, 3, hidden=16, posterior=POSTERIORS[name])
    x = (torch.rand(20, 12) < 0.3).to(torch.get_default_dtype())
    q = vae.encode(x)
    assert q.batch_shape == (20,)
    assert q.event_shape == (3,)
    assert D.prior_reason(q) == D.prior_reason(vae.posterior)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), pv.ELBO())
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())
    evidence = pv.log_evidence(vae.model, vae.guide, x, particles=50)
    assert evidence.log_px.isfinite().all()
    pyro.clear_param_store()
    again = pv.models.VAE.from_config(json.loads(json.dumps(vae.config)))
    again.load_state_dict(vae.state_dict())
    z = vae.encode(x).sample()
    torch.testing.assert_close(again.encode(x).log_prob(z), vae.encode(x).log_prob(z))


def test_a_vae_with_its_own_encoder_and_a_mixture_for_its_prior():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(12, 3 * 2 * 3)

        def forward(self, x):
            logits, loc, raw = self.out(x).reshape(*x.shape[:-1], 3, 2, 3).unbind(-1)
            return D.Mixture(logits, D.Normal(loc, raw.exp())).to_event(1)

    prior = D.Mixture(torch.zeros(2), D.Normal(torch.tensor([-2.0, 2.0]), 0.5))
    pyro.clear_param_store()
    vae = pv.models.VAE(12, 3, hidden=16, encoder=Encoder(), prior=prior)
    x = (torch.rand(20, 12) < 0.3).to(torch.get_default_dtype())
    assert vae.prior().event_shape == (3,)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), pv.ELBO())
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert pv.log_evidence(vae.model, vae.guide, x, particles=50).log_px.isfinite().all()
    vae.double().prior().log_prob(torch.zeros(3, dtype=torch.float64))
    pyro.clear_param_store()


def test_families_of_mixtures_are_classes():
    made = D.mixture_of(D.Normal, 3)
    assert made is D.mixture_of(D.Normal, 3)
    assert pickle.loads(pickle.dumps(made)) is made
    assert issubclass(made, D.Mixture)
    d = made(torch.zeros(5, 3), loc=torch.zeros(5, 3), scale=torch.ones(5, 3))
    torch.testing.assert_close(d.log_prob(torch.zeros(5)), D.Normal(0, 1).log_prob(torch.zeros(5)))
    assert D.default_prior(made, 4).event_shape == (4,)
    with pytest.raises(ValueError, match="no default prior"):
        D.default_prior(list_of_two(), 4)
    narrowed = D.posterior_domains(D.mixture_of(D.StudentT, 2))["df"]
    assert narrowed.check(torch.tensor([3.0, 4.0]))
    assert not narrowed.check(torch.tensor([3.0, 1.0]))
