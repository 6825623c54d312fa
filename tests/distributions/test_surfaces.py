"""The fitted polynomials against mpmath, at draws from 1e-3 to 1e6 and beyond the grid of the fit.

A surface that were fitted to a wrong function would agree with its quadrature: the oracle here is
the derivative of mpmath's distribution functions.
"""

import mpmath as mp
import numpy as np
import pytest
import scipy.special as sc
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import distributions as D
from pyrovae.distributions import special
from pyrovae.distributions.composition import betas
from pyrovae.distributions.fused import PIECE, scratch
from pyrovae.distributions.special import surfaces

BOUNDS = {torch.float32: 4e-6, torch.float64: 5e-11}
dtypes = pytest.mark.parametrize("dtype", BOUNDS)


def numbers(x, dtype):
    """A number as the dtype has it, as a tensor and for mpmath."""
    x = torch.tensor(x, dtype=dtype)
    return x, mp.mpf(float(x))


def per_log_cdf(cdf, shape):
    """d cdf / d shape by a central difference at 40 digits."""
    h = shape * mp.mpf(10) ** -12
    return (cdf(shape + h) - cdf(shape - h)) / (2 * h)


@dtypes
def test_gamma_slope(dtype):
    rng = np.random.default_rng(0)
    with mp.workdps(45):
        for _ in range(60):
            shape = 10 ** rng.uniform(-3, 3)
            z = sc.gammaincinv(shape, 10 ** rng.uniform(-12, 0) * rng.uniform(0.1, 1))
            if not 1e-250 < z < np.inf:
                continue
            (a, shape), (y, at) = numbers(shape, dtype), numbers(np.log(z), dtype)
            z = mp.exp(at)
            density = mp.exp(shape * at - z - mp.loggamma(shape))
            cdf = per_log_cdf(lambda s, z=z: mp.gammainc(s, 0, z, regularized=True), shape)
            got = surfaces.gamma_slope(a, y)
            assert abs(float(got) / float(-cdf / density) - 1) < BOUNDS[dtype], (a, y)


def beta_cdf(p, q, x, rest):
    """I_x(p, q), by the series of positive terms that is the shorter one."""
    front = x**p * rest**q / mp.beta(p, q)
    if x * q > rest * p:
        return 1 - front / q * mp.hyp2f1(p + q, 1, q + 1, rest, maxterms=10**6)
    return front / p * mp.hyp2f1(p + q, 1, p + 1, x, maxterms=10**6)


@dtypes
def test_student_slope(dtype):
    rng = np.random.default_rng(1)
    with mp.workdps(45):
        for _ in range(60):
            df = 10 ** rng.uniform(-2, 4.5)
            t = abs(float(sc.stdtrit(df, 10 ** rng.uniform(-8, 0) / 2))) + 1e-4
            if t > 1e100:
                continue
            (df, nu), (log_abs, at) = numbers(df, dtype), numbers(np.log(t), dtype)
            t = mp.exp(at)
            density = mp.exp(mp.loggamma(nu / 2 + 0.5) - mp.loggamma(nu / 2))
            density *= mp.exp(-(nu / 2 + 0.5) * mp.log1p(t * t / nu)) / mp.sqrt(nu * mp.pi)

            def upper(n, t=t):
                return beta_cdf(n / 2, mp.mpf(0.5), n / (n + t * t), t * t / (n + t * t)) / 2

            true = per_log_cdf(upper, nu) / density / t
            got = surfaces.student_slope(df, log_abs)
            assert abs(float(got) / float(true) - 1) < BOUNDS[dtype], (df, t)


@dtypes
@pytest.mark.parametrize("a", [1e-6, 1e-3, 0.1, 0.9, 2.0, 17.0, 300.0, 1e4, 1e9])
def test_curves(a, dtype):
    bound = {torch.float32: 3e-7, torch.float64: 6e-15}[dtype]
    at, exact = numbers(a, dtype)
    with mp.workdps(50):
        norm = mp.loggamma(1 + exact) - exact * mp.log1p(exact) + exact
        digamma = mp.digamma(1 + exact) - mp.log1p(exact)
        half = exact / 2
        step = mp.loggamma(half + 0.5) - mp.loggamma(half) - mp.log(half) / 2
        change = (mp.digamma(half + 0.5) - mp.digamma(half) - 1 / exact) / 2
    value, slope = surfaces.log_norm(at)
    assert abs(float(value) - float(norm)) < bound * (1 + abs(float(norm)))
    assert abs(float(slope) - float(digamma)) < bound
    assert abs(float(surfaces.digamma_rest(at)) - float(digamma)) < bound
    value, slope = surfaces.student_norm(at)
    assert abs(float(value) - float(step)) < bound * (1 + abs(float(step)))
    assert abs(float(slope) / float(change) - 1) < 30 * bound


@dtypes
def test_a_surface_is_the_same_recorded_mapped_and_captured(dtype):
    a = torch.rand(40, dtype=dtype) * 5 + 0.1
    y = torch.randn(40, dtype=dtype)
    for slope in (surfaces.gamma_slope, surfaces.student_slope):
        plain = slope(a, y)
        recorded = slope(a.clone().requires_grad_(), y)
        close = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 0}
        torch.testing.assert_close(recorded.detach(), plain, **close)
        torch.testing.assert_close(torch.vmap(slope)(a, y), plain, **close)
        torch.testing.assert_close(make_fx(slope)(a, y)(a, y), plain, **close)


def test_working_memory_is_not_what_is_returned():
    a, y = torch.rand(50) + 0.5, torch.randn(50)
    first = surfaces.gamma_slope(a, y)
    kept = first.clone()
    surfaces.gamma_slope(a + 3, y)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    with torch.inference_mode():
        scratch((7, 50_000), a.double())
    assert not scratch((7, 50_000), a.double()).is_inference()
    enormous = scratch((1 << 21,), a.double())
    assert enormous.numel() == 1 << 21


# -- vectors --------------------------------------------------------------------------------------


@dtypes
def test_a_dirichlet_draw_has_the_gradient_of_the_plain_one(dtype):
    """Concentrations from 1e-2 to 1e4; a lone component that takes all the mass too."""
    torch.manual_seed(0)
    alpha = (10 ** torch.empty(300, 5, dtype=dtype).uniform_(-2, 4)).requires_grad_()
    weights = torch.randn(300, 5, dtype=dtype)
    torch.manual_seed(1)
    x = D.Dirichlet(alpha).rsample()
    got = torch.autograd.grad((x * weights).sum(), alpha)[0]
    torch.manual_seed(1)
    other = alpha.detach().requires_grad_()
    parts = betas.draw_log_gamma(other.detach()).double()
    wide = other.detach().double().requires_grad_()
    plain = betas._plain_vectors(parts, wide)
    torch.testing.assert_close(x.double(), plain, rtol=1e-5, atol=1e-7)
    true = torch.autograd.grad((plain * weights).sum(), wide)[0]
    mean = (x * weights).sum(-1, keepdim=True).double()  # dx_i is proportional to w_i - mean
    size = true.abs() * (weights.abs() + mean.abs()) / (weights - mean).abs()
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    assert ((got - true).abs() <= bound * size + 1e-30).all()


def test_dirichlet_draws_differentiate_twice_and_in_pieces():
    alpha = torch.tensor([[0.7, 1.3, 2.0]], dtype=torch.float64).requires_grad_()

    def slope(alpha):
        torch.manual_seed(0)
        z = D.Dirichlet(alpha).rsample()
        return torch.autograd.grad(z[..., 0].sum(), alpha, create_graph=True)[0]

    second = torch.autograd.grad(slope(alpha)[0, 0], alpha)[0]
    assert second.isfinite().all()
    assert second.abs().sum() > 0
    rows = 2 * PIECE // 3 + 50
    many = torch.rand(rows, 3).add_(0.2).requires_grad_()
    z = D.Dirichlet(many).rsample()
    torch.testing.assert_close(z.sum(-1), torch.ones(rows))
    score = D.Dirichlet(many).log_prob(z.detach())
    whole = torch.autograd.grad(score.sum(), many)[0]
    few = many.detach()[-40:].requires_grad_()
    part = D.Dirichlet(few).log_prob(z.detach()[-40:])
    torch.testing.assert_close(score[-40:], part)
    torch.testing.assert_close(whole[-40:], torch.autograd.grad(part.sum(), few)[0])


@dtypes
def test_the_score_of_vectors_in_one_step_is_the_plain_one(dtype):
    torch.manual_seed(2)
    alpha = 10 ** torch.empty(200, 4, dtype=dtype).uniform_(-2, 3)
    x = D.Dirichlet(alpha).sample()
    leaves = [t.clone().requires_grad_() for t in (x, alpha)]
    wide = [t.double().requires_grad_() for t in (x, alpha)]
    got = D.Dirichlet(leaves[1]).log_prob(leaves[0])
    true = betas._plain_score_of_vectors(*wide)
    size = 1 + (wide[1] * x.double().log()).abs().sum(-1) / 30
    bound = 2e-5 if dtype == torch.float32 else 1e-12
    assert ((got.double() - true).abs() < bound * size).all()
    for ours, exact in zip(
        torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(true.sum(), wide), strict=True
    ):
        most = torch.finfo(dtype).max
        torch.testing.assert_close(ours.double(), exact.clamp(-most, most), rtol=bound, atol=bound)


def test_beta_slopes_far_out_are_those_of_float64():
    """Where x or 1 - x is below e^-60 the derivatives of float32 are taken as linear in y."""
    a, b = torch.meshgrid(*2 * [torch.tensor([0.01, 0.3, 2.0, 40.0])], indexing="ij")
    for y in (-900.0, -70.0, -60.5, -59.0, 59.0, 60.5, 75.0, 4000.0):
        at = a, b, torch.full_like(a, y)
        exact = special.logit_beta_slopes(*(t.double() for t in at))
        for got, true in zip(special.logit_beta_slopes(*at), exact, strict=True):
            torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=0)
