"""Directional laws against mpmath, scipy, quadrature and closed forms.

Statistical checks have a band of 6.5 standard errors (false alarm 1e-10 each) or DKWM's band at
1e-9, with fixed seeds.
"""

import copy
import math
import pickle

import mpmath as mp
import numpy as np
import pyro
import pytest
import scipy.stats as st
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.autograd import grad
from torch.distributions import constraints, kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import distributions as D
from pyrovae.distributions.kl_directional import bessel_divergence
from pyrovae.distributions.special import bessel, polar
from tests.distributions.accuracy import excess

F32, F64 = torch.float32, torch.float64
KAPPAS = [1e-3, 1.0, 30.0, 1e3, 1e6]
DIMS = [2, 3, 5, 10, 50, 1000]


@pytest.fixture(autouse=True)
def _double_and_seeded():
    torch.manual_seed(7)
    torch.set_default_dtype(F64)
    with mp.workdps(30):
        yield
    torch.set_default_dtype(F32)
    pyro.clear_param_store()


def unit(*numbers):
    v = torch.tensor(numbers)
    return v / v.norm()


def axis(d, **kwargs):
    return (
        torch.nn.functional.one_hot(torch.tensor(0), d).to(torch.get_default_dtype()).to(**kwargs)
    )


def relative(got, expected):
    return float(abs((mp.mpf(got) - expected) / expected))


# -- Bessel functions -----------------------------------------------------------------------------


def mp_bessel(order, x):
    order, x = mp.mpf(order), mp.mpf(x)
    i, j = (mp.besseli(n, x, maxterms=10**6) for n in (order, order + 1))
    log = mp.loggamma(order + 1) - order * mp.log(x / 2) + mp.log(i)
    a = j / i
    return log, x - log, a, 1 - a, 1 - a * a - (2 * order + 1) / x * a, x * a - log


FUNCTIONS = [
    bessel.log_bessel, bessel.bessel_gap, bessel.bessel_ratio, bessel.bessel_ratio_complement,
    bessel.bessel_variance, bessel.bessel_information,
]  # fmt: skip


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 1.5, 9.0, 17.5, 18.0, 24.0, 499.0])
def test_bessel_functions_equal_mpmath(order):
    for x in (1e-6, 0.1, 0.2501, 2.5, 7.0, 24.0, 26.0, 70.0, 1e3, 1e5):
        with mp.workdps(50):
            true = mp_bessel(order, x)
        for f, t in zip(FUNCTIONS, true, strict=True):
            got = f(order, torch.tensor(x)).item()
            # x - L of a tiny x has the absolute accuracy of x
            assert relative(got, t) < (1e-9 if f is bessel.bessel_gap and x < 1e-3 else 1e-12), (
                f,
                x,
            )


@pytest.mark.parametrize("order", [0.0, 0.5, 4.0, 24.0])
@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_bessel_functions_have_two_derivatives(order, f):
    x = torch.tensor([0.05, 0.6, 3.0, 40.0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: f(order, x), x)
    assert torch.autograd.gradgradcheck(lambda x: f(order, x), x)


def test_bessel_functions_at_zero_and_beyond_the_range_of_a_cosh():
    x = torch.tensor([0.0, 1e12], requires_grad=True)
    for order in (0.0, 0.5, 24.0):
        for f in FUNCTIONS[:5]:
            value = f(order, x)
            assert value.isfinite().all()
        assert bessel.bessel_ratio(order, x)[0] == 0
        assert bessel.log_bessel(order, x)[0] == 0
        far = bessel.bessel_ratio_complement(order, x)[1].item()
        assert far == pytest.approx((2 * order + 1) / 2e12, rel=1e-10)


# -- the pathwise gradient ------------------------------------------------------------------------


def mp_slope(d, k, theta):
    """d theta / d kappa by mpmath's quadrature of the two sides, each from zero."""
    k, theta = mp.mpf(k), mp.mpf(theta)
    order = mp.mpf(d) / 2 - 1
    mean = mp.besseli(order + 1, k) / mp.besseli(order, k)

    def f(s):
        weight = (mp.sin(s) / mp.sin(theta)) ** (d - 2) if d > 2 else 1
        return (mp.cos(s) - mean) * weight * mp.exp(k * (mp.cos(s) - mp.cos(theta)))

    width = 3 / mp.sqrt(k + d)
    left = mp.cos(theta) > mean
    far = max(theta - 10 * width, 0) if left else min(theta + 10 * width, mp.pi)
    if not left:
        while far < mp.pi and abs(f(far)) > mp.mpf(10) ** -25:
            far = min(2 * far, mp.pi)
    pieces = mp.linspace(min(theta, far), max(theta, far), 8)
    return mp.quad(f, pieces) * (-1 if left else 1)


@pytest.mark.parametrize("d", DIMS)
def test_the_slope_of_the_polar_angle_equals_mpmath(d):
    for k in (2.0**-10, 3.0, 2.0**20):
        centre = math.acos(bessel.bessel_ratio(0.5 * d - 1, torch.tensor(k)).item())
        for q in (-2.0, -0.3, 0.3, 4.0):
            theta = torch.tensor(centre + q / math.sqrt(k + d)).float().item()
            if not 0 < theta < 3.1:
                continue
            true = mp_slope(d, k, theta)
            for dtype, tol in ((F32, 2e-6), (F64, 2e-11)):
                got = polar.polar_slope(d, *torch.tensor([k, theta], dtype=dtype)).item()
                assert relative(got, true) < tol, (k, theta)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("d", DIMS)
def test_an_angle_of_zero_does_not_move(d, dtype):
    """A draw of float32 is at the mean itself once in 2^24 times."""
    k = torch.tensor([1e-6, 1.0, 30.0, 1e8], dtype=dtype)
    assert (polar.polar_slope(d, k, torch.zeros_like(k)) == 0).all()
    assert polar.polar_slope(d, k, torch.full_like(k, math.pi)).isfinite().all()


def test_a_von_mises_draw_at_the_mean_has_gradients(monkeypatch):
    k = torch.tensor([1e-6, 1.0, 30.0, 1e8], requires_grad=True)
    d = D.VonMises(0.5, k)
    monkeypatch.setattr(D.VonMises, "_uniform", lambda self, shape: torch.full(shape, 0.5))
    z = d.rsample()
    assert (z == 0.5).all()
    assert (grad(z.sum(), k)[0] == 0).all()


@pytest.mark.parametrize("d", [2, 3, 5, 10, 50])
def test_gradient_of_the_mean_cosine_is_the_variance_of_the_cosine(d):
    """d E[mu'z] / d kappa = A'(kappa), in a band of 6.5 Monte Carlo errors of 40,000 draws."""
    for k in (0.5, 2.0, 50.0):
        kappa = torch.full((40_000,), k, requires_grad=True)
        z = D.VonMisesFisher(axis(d), kappa).rsample()
        (g,) = grad(z[:, 0].sum(), kappa)
        true = bessel.bessel_variance(0.5 * d - 1, torch.tensor(k))
        assert (g.mean() - true).abs() < 6.5 * g.std() / len(g) ** 0.5


def test_bug_svae_von_mises_fisher_gradient_is_biased_at_five_dimensions():
    """pytorch 147048: s-vae-pytorch gives 0.12766 for d E[mu'z] / d kappa at d = 5, kappa = 2."""
    true = float(mp_bessel(1.5, 2)[4])
    assert true == pytest.approx(0.14739, abs=5e-6)
    kappa = torch.full((200_000,), 2.0, requires_grad=True)
    z = D.VonMisesFisher(axis(5), kappa).rsample()
    (g,) = grad(z[:, 0].sum(), kappa)
    error = g.std().item() / len(g) ** 0.5
    assert 6.5 * error < 0.14739 - 0.12766  # the test can tell them apart
    assert abs(g.mean().item() - true) < 6.5 * error


def test_bug_pyros_von_mises_has_no_rsample():
    """147048: here E[cos(z - a)] = A cos(mu - a) has the right derivatives in both parameters."""
    assert not pyro.distributions.VonMises.has_rsample
    loc, kappa = (torch.full((40_000,), v, requires_grad=True) for v in (3.0, 1.7))
    z = D.VonMises(loc, kappa).rsample()
    slopes = grad(torch.cos(z - 0.4).sum(), (loc, kappa))
    k = torch.tensor(1.7)
    mean, spread = bessel.bessel_ratio(0.0, k), bessel.bessel_variance(0.0, k)
    for g, true in zip(slopes, (-mean * math.sin(2.6), spread * math.cos(2.6)), strict=True):
        assert (g.mean() - true).abs() < 6.5 * g.std() / len(g) ** 0.5


@pytest.mark.parametrize("family", [D.VonMisesFisher, D.PowerSpherical])
@pytest.mark.parametrize("d", [2, 3, 6])
def test_gradients_in_the_mean_direction_are_tangent_and_unbiased(family, d):
    """E[f(z)] of a quadratic f, from the first two moments, differentiated along the sphere."""
    n = 40_000
    mean = torch.randn(d)
    mean = mean / mean.norm()
    loc = mean.expand(n, d).clone().requires_grad_()
    z = family(loc, 4.0).rsample()
    a, b = torch.randn(d), torch.randn(d, d)
    (g,) = grad((z @ a + ((z @ b) * z).sum(-1)).sum(), loc)
    assert (g * mean).sum(-1).abs().max() < 1e-12 * g.abs().max()
    leaf = mean.clone().requires_grad_()
    m = family(leaf / leaf.norm(), 4.0)
    second = m.covariance_matrix + m.mean[:, None] * m.mean
    (true,) = grad(a @ m.mean + (b * second).sum(), leaf)
    assert ((g.mean(0) - true).abs() < 6.5 * g.std(0) / n**0.5 + 1e-12).all()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("d", [2, 3, 5, 1000])
def test_draws_stay_on_the_sphere_and_move_along_it(dtype, d):
    for family in (D.VonMisesFisher, D.PowerSpherical):
        for k in (0.0, 1e-3, 1.0, 1e3, 1e5):
            loc = (-axis(d, dtype=dtype)).requires_grad_()
            kappa = torch.full((500,), k, dtype=dtype, requires_grad=True)
            law = family(loc, kappa)
            z, score = law.rsample_and_log_prob()
            assert law.support.check(z).all()
            assert score.isfinite().all()
            assert z.dtype == score.dtype == dtype
            direction = torch.randn_like(z)
            direction = direction - (direction * z).sum(-1, keepdim=True) * z
            slopes = grad((z * z).sum(), (loc, kappa), retain_graph=True)
            eps = torch.finfo(dtype).eps
            assert slopes[1].abs().max() < 100 * eps  # tangent: the length does not move
            for g in grad((z * direction).sum() + score.sum(), (loc, kappa)):
                assert g.isfinite().all()


def test_a_draw_is_a_point_of_the_family_near_it():
    """The whole map by finite differences: turning the mean turns the draw, as the slope says."""

    def draw(loc, kappa):
        torch.manual_seed(3)
        return D.VonMisesFisher(loc / loc.norm(), kappa).rsample()

    loc, kappa = unit(0.3, -1.0, 0.2).requires_grad_(), torch.tensor(2.5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: draw(loc, k), kappa, atol=1e-7)  # d = 3 inverts


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("k", [1e-4, 0.3, 5.0, 1e4])
def test_many_draws_have_finite_gradients(dtype, k):
    n = 100_000
    for make in (
        lambda kappa: D.VonMises(torch.tensor(3.0, dtype=dtype), kappa),
        lambda kappa: D.VonMisesFisher(axis(3, dtype=dtype), kappa),
    ):
        kappa = torch.full((n,), k, dtype=dtype, requires_grad=True)
        law = make(kappa)
        z, score = law.rsample_and_log_prob()
        assert law.support.check(z).all()
        assert score.isfinite().all()
        for g in grad(z.sum() + score.sum(), kappa):
            assert g.isfinite().all()


# -- draws ----------------------------------------------------------------------------------------


def band(n):
    return math.sqrt(math.log(2 / 1e-9) / (2 * n))


@pytest.mark.parametrize("d", [2, 3, 4, 20, 1000])
@pytest.mark.parametrize("k", [0.0, 0.5, 20.0, 1e4])
def test_polar_angles_of_draws_follow_their_density(d, k):
    """DKWM against the quadrature of the density of the angle."""
    n = 20_000
    law = D.VonMisesFisher(axis(d), torch.full((n,), k))
    theta = law._polar((n,))
    theta = torch.atan2(theta[1], theta[0]).abs().sort().values
    near, far = theta[0].item() * 0.5, min(theta[-1].item() * 1.2, math.pi)
    s = torch.linspace(near, far, 20_001)
    log_f = (d - 2) * s.sin().clamp_min(1e-300).log() + k * (s.cos() - 1)
    f = (log_f - log_f.max()).exp()
    cdf = torch.cumulative_trapezoid(f, s) / torch.trapezoid(f, s)
    at = torch.searchsorted(s[1:].contiguous(), theta).clamp_max(len(cdf) - 1)
    off = (cdf[at] - (torch.arange(n) + 0.5) / n).abs().max()
    assert off < band(n) + 2e-3  # the grid's own error


@pytest.mark.parametrize("k", KAPPAS)
def test_von_mises_draws_follow_scipy(k):
    n = 20_000
    for dtype in (F32, F64):
        z = D.VonMises(0.0, torch.tensor(k, dtype=dtype)).sample((n,)).double()
        law = st.vonmises(k) if k < 1e3 else st.norm(scale=(k - 0.5) ** -0.5)
        u = np.sort(law.cdf(z.numpy()))
        assert np.abs(u - (np.arange(n) + 0.5) / n).max() < band(n) + 1e-3


# -- the tails of von Mises -----------------------------------------------------------------------


def mp_mass(a, b, k):
    pieces = mp.linspace(a, b, 2 + int(min((b - a) * mp.sqrt(k), 12)))
    top = max(mp.cos(s) for s in pieces)  # mpmath's tolerance is absolute
    total = mp.quad(lambda s: mp.exp(k * (mp.cos(s) - top)), pieces)
    return total * mp.exp(k * top) / (2 * mp.pi * mp.besseli(0, k))


ORACLE = {
    "cdf": lambda z, m, k: mp_mass(-mp.pi - m, z - m, k),
    "sf": lambda z, m, k: mp_mass(z - m, mp.pi - m, k),
    "log_cdf": lambda z, m, k: mp.log(mp_mass(-mp.pi - m, z - m, k)),
    "log_sf": lambda z, m, k: mp.log(mp_mass(z - m, mp.pi - m, k)),
    "log_prob": lambda z, m, k: (
        k * (mp.cos(z - m) - 1) - mp.log(2 * mp.pi * mp.exp(-k) * mp.besseli(0, k))
    ),
}


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_von_mises_has_at_most_four_excess_wrong_bits(name, dtype):
    for m, k in ((0.01, 2.0), (0.5, 60.0), (-2.9, 0.01), (2.0, 7.0)):
        for z in (-3.0, -1.2, 0.4, 2.6):
            at = [torch.tensor(v, dtype=dtype) for v in (z, m, k)]
            got = getattr(D.VonMises(at[1], at[2]), name)(at[0]).item()
            bits = excess(got, ORACLE[name], [t.item() for t in at], dtype)
            assert bits is None or bits <= 4, (z, m, k, got, bits)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_von_mises_quantiles_invert_both_tails_at_every_cut(dtype):
    loc = torch.tensor([0.0, 0.3, -2.0, 3.1, -3.14159], dtype=dtype)[:, None, None]
    kappa = torch.tensor(KAPPAS, dtype=dtype)[:, None]
    law = D.VonMises(loc, kappa)
    u = torch.tensor([1e-30, 1e-9, 1e-3, 0.2, 0.5, 0.8, 0.999], dtype=dtype)
    eps = torch.finfo(dtype).eps
    for quantile, tail in ((law.icdf, law.cdf), (law.isf, law.sf)):
        z = quantile(u)
        size = 1 + (z.abs() + loc.abs() + 1) * law.log_prob(z).exp() / u
        known = 16 * eps * size < 0.5  # elsewhere one rounding of z is worth the tail
        off = (tail(z) / u - 1).abs() / size
        assert off[known].max() < 16 * eps
    ends = law.icdf(torch.tensor([0.0, 1.0], dtype=dtype))
    assert (ends[..., 0] == -torch.tensor(math.pi, dtype=dtype)).all()
    assert (ends[..., 1] == torch.tensor(math.pi, dtype=dtype)).all()


def test_von_mises_tails_and_quantiles_have_derivatives():
    loc = torch.tensor([0.3, -2.0, 3.0], requires_grad=True)
    kappa = torch.tensor([2.0, 0.5, 30.0], requires_grad=True)
    z = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    u = torch.tensor([0.2, 0.9, 0.4], requires_grad=True)
    for name, at in (("cdf", z), ("log_sf", z), ("icdf", u), ("isf", u), ("log_prob", z)):
        assert torch.autograd.gradcheck(
            lambda m, k, x, name=name: getattr(D.VonMises(m, k), name)(x), (loc, kappa, at)
        )


# -- moments and divergences ----------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 7])
@pytest.mark.parametrize("k", [0.0, 0.7, 40.0])
@pytest.mark.parametrize("family", [D.VonMisesFisher, D.PowerSpherical])
def test_moments_entropy_and_normalizer_equal_quadrature(family, d, k):
    law = family(axis(d), torch.tensor(k))
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(300))
    theta, w = (x + 1) * math.pi / 2, w * math.pi / 2
    z = torch.zeros(300, d)
    z[:, 0], z[:, 1] = theta.cos(), theta.sin()
    log_q = law.log_prob(z)
    area = 2 * math.pi ** ((d - 1) / 2) / math.gamma((d - 1) / 2)  # of the circle of latitude
    mass = w * area * theta.sin() ** (d - 2) * log_q.exp()
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0), **close)
    torch.testing.assert_close((mass * -log_q).sum(), law.entropy(), **close)
    torch.testing.assert_close((mass * z[:, 0]).sum(), law.mean[0], **close)
    along = (mass * (z[:, 0] - law.mean[0]).square()).sum()
    across = (mass * z[:, 1].square()).sum() / (d - 1)
    torch.testing.assert_close(torch.stack([along, across]), law.variance[:2], **close)
    torch.testing.assert_close(law.covariance_matrix.diagonal(), law.variance, **close)


@pytest.mark.parametrize("k", [1e-3, 0.7, 40.0])
def test_von_mises_moments_equal_scipy(k):
    law = D.VonMises(0.4, k)
    torch.testing.assert_close(law.entropy(), torch.tensor(st.vonmises(k).entropy()))
    variance = float(mp_bessel(0, k)[3])
    assert law.variance.item() == pytest.approx(variance, rel=1e-13)
    assert law.mean == law.mode == 0.4
    wide = D.VonMises(0.4 + 8 * math.pi, k)
    torch.testing.assert_close(wide.mean, law.mean)
    torch.testing.assert_close(wide.log_prob(torch.tensor(1.0)), law.log_prob(torch.tensor(1.0)))


def test_von_mises_fisher_equals_scipy():
    for d, k in ((2, 1.0), (3, 5.0), (4, 0.1), (9, 30.0)):
        mean = torch.randn(d)
        mean = mean / mean.norm()
        law, oracle = D.VonMisesFisher(mean, k), st.vonmises_fisher(mean.numpy(), k)
        z = D.SphericalUniform(d).sample((20,))
        torch.testing.assert_close(law.log_prob(z), torch.tensor(oracle.logpdf(z.numpy())))
        torch.testing.assert_close(law.entropy(), torch.tensor(float(oracle.entropy())))


@pytest.mark.parametrize("order", [0.0, 0.5, 4.0, 24.0])
def test_divergence_of_concentrations_equals_mpmath(order):
    for p, q in ((1e-3, 1e-4), (2.0, 2.001), (2.0, 3.9), (2.0, 4.1), (5.0, 1e3), (1e4, 30.0)):
        with mp.workdps(60):
            lp, _, a, *_ = mp_bessel(order, p)
            true = mp_bessel(order, q)[0] - lp - (mp.mpf(q) - mp.mpf(p)) * a
        got = bessel_divergence(order, torch.tensor(p), torch.tensor(q))
        assert relative(got.item(), true) < 1e-12, (p, q)


PAIRS = {
    "VonMisesFisher": lambda d, k, mean: D.VonMisesFisher(mean, k),
    "PowerSpherical": lambda d, k, mean: D.PowerSpherical(mean, k),
    "SphericalUniform": lambda d, k, mean: D.SphericalUniform(d),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("other", ["VonMisesFisher", "SphericalUniform"])
def test_divergences_on_the_sphere_equal_quadrature(name, other):
    """d = 3: Gauss-Legendre in the height, trapezoid around."""
    p, q = PAIRS[name](3, 2.5, unit(1.0, 2.0, -0.5)), PAIRS[other](3, 1.3, unit(0.0, 1.0, 1.0))
    h, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))
    phi = torch.arange(160) * (2 * math.pi / 160)
    r = (1 - h * h).sqrt()[:, None]
    z = torch.stack([r * phi.cos(), r * phi.sin(), h[:, None].expand(80, 160)], -1)
    log_p, log_q = p.log_prob(z), q.log_prob(z)
    true = (w[:, None] * log_p.exp() * (log_p - log_q)).sum() * (2 * math.pi / 160)
    torch.testing.assert_close(kl_divergence(p, q), true, rtol=1e-8, atol=1e-10)


def test_divergences_of_von_mises_equal_quadrature():
    s = torch.arange(400) * (2 * math.pi / 400) - math.pi
    p = D.VonMises(1.3, 2.5)
    for q in (D.VonMises(-3.0, 0.7), D.Uniform(-math.pi, math.pi)):
        log_p = p.log_prob(s)
        true = (log_p.exp() * (log_p - q.log_prob(s))).sum() * (2 * math.pi / 400)
        torch.testing.assert_close(kl_divergence(p, q), true, rtol=1e-8, atol=1e-12)
    assert kl_divergence(p, D.Uniform(-1.0, math.pi)) == math.inf
    wide = kl_divergence(p, D.Uniform(-2 * math.pi, 2 * math.pi))
    exact = kl_divergence(p, D.Uniform(-math.pi, math.pi))
    torch.testing.assert_close(wide, exact + math.log(2))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("d", [2, 3, 50, 1000])
def test_divergences_are_never_negative_and_right_at_the_limits(dtype, d):
    k = torch.logspace(-4, 6, 41, dtype=dtype)
    loc = axis(d, dtype=dtype)
    p = D.VonMisesFisher(loc, k)
    uniform = D.SphericalUniform(d, dtype=dtype)
    for step in (0.0, 1e-6, 1e-2, 3.0):
        assert (kl_divergence(p, D.VonMisesFisher(loc, k * (1 + step))) >= 0).all()
    assert (kl_divergence(p, p) == 0).all()
    to_uniform = kl_divergence(p, uniform)
    assert (to_uniform.diff() > 0).all()
    small = k < 1e-2  # kappa^2 / 2d
    torch.testing.assert_close(to_uniform[small], k[small].square() / (2 * d), rtol=1e-3, atol=0)
    same = kl_divergence(p, D.VonMisesFisher(loc, torch.zeros_like(k)))
    torch.testing.assert_close(same, to_uniform, rtol=1e2 * torch.finfo(dtype).eps, atol=0)
    far = k > 1e5  # a Gaussian of d - 1 dimensions and precision kappa on a flat sphere
    if d <= 50:
        gauss = D.VonMisesFisher(loc, 1e6)
        entropy = 0.5 * (d - 1) * math.log(2 * math.pi * math.e / 1e6)
        assert gauss.entropy().item() == pytest.approx(entropy, abs=1e-3 * d)
    power = kl_divergence(D.PowerSpherical(loc, k), uniform)
    assert (power >= 0).all()
    assert (power.diff() > 0).all()
    assert far.any()


def test_divergences_of_different_spheres_are_refused():
    with pytest.raises(ValueError, match="one dimension, got event shapes"):
        kl_divergence(D.VonMisesFisher(axis(3), 1.0), D.SphericalUniform(4))


# -- bad input, support ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D.VonMisesFisher(axis(3), -1.0), "VonMisesFisher.*'concentration'.*-1"),
        (lambda: D.VonMisesFisher(torch.ones(3), 1.0), "VonMisesFisher.*'loc'.*Sphere"),
        (lambda: D.VonMisesFisher(torch.ones(1), 1.0), "VonMisesFisher: loc must be.*d >= 2"),
        (lambda: D.VonMisesFisher(1.0, 1.0), "VonMisesFisher: loc must be.*d >= 2"),
        (lambda: D.PowerSpherical(axis(3) * torch.nan, 1.0), "PowerSpherical.*'loc'.*nan"),
        (lambda: D.PowerSpherical(axis(3), torch.inf), "PowerSpherical.*'concentration'.*inf"),
        (lambda: D.VonMises(0.0, 0.0), "VonMises.*'concentration'.*0"),
        (lambda: D.VonMises(torch.inf, 1.0), "VonMises.*'loc'.*inf"),
        (lambda: D.SphericalUniform(1), "SphericalUniform: dim must be.*got 1"),
        (lambda: D.VonMises(0.0, 1.0).log_prob(torch.tensor(4.0)), "within the support.*4"),
        (lambda: D.VonMisesFisher(axis(3), 1.0).log_prob(torch.ones(3)), "within the support"),
        (lambda: D.SphericalUniform(3).log_prob(torch.ones(3)), "within the support"),
        (lambda: D.SphericalUniform(3).log_prob(axis(4)), "does not fit"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_16_bits_are_refused():
    with pytest.raises(TypeError, match="float16"):
        D.SphericalUniform(3, dtype=torch.float16)


def test_outside_the_support_there_is_no_density():
    off = torch.stack([2 * axis(3), torch.zeros(3), torch.full((3,), math.nan), axis(3)])
    for law in (
        D.VonMisesFisher(axis(3), 2.0, validate_args=False),
        D.PowerSpherical(axis(3), 2.0, validate_args=False),
        D.SphericalUniform(3, validate_args=False),
    ):
        score = law.log_prob(off)
        assert (score[:3] == -math.inf).all()
        assert score[3].isfinite()
    law = D.VonMises(0.0, 2.0, validate_args=False)
    assert (law.log_prob(torch.tensor([4.0, -4.0, math.nan])) == -math.inf).all()
    assert law.cdf(torch.tensor([-4.0, 4.0])).tolist() == [0.0, 1.0]


def test_power_spherical_has_no_density_opposite_to_its_mean():
    law = D.PowerSpherical(axis(3), torch.tensor([0.0, 2.0]))
    assert law.log_prob(-axis(3)).tolist() == [pytest.approx(-math.log(4 * math.pi)), -math.inf]


# -- as parts of programs -------------------------------------------------------------------------

LAWS = {
    "circle": lambda: D.VonMises(torch.tensor([0.3, -2.0]), torch.tensor([1.5, 20.0])),
    "fisher": lambda: D.VonMisesFisher(torch.stack([axis(4), -axis(4)]), torch.tensor([2.0, 0.0])),
    "power": lambda: D.PowerSpherical(torch.stack([axis(4), -axis(4)]), torch.tensor([2.0, 0.0])),
    "uniform": lambda: D.SphericalUniform(4).expand((2,)),
}


@pytest.mark.parametrize("name", LAWS)
def test_copies_expand_and_events(name):
    law = LAWS[name]()
    z = law.sample((5,))
    for other in (pickle.loads(pickle.dumps(law)), copy.deepcopy(law), law.expand((3, 2))):
        assert torch.equal(other.log_prob(z.unsqueeze(1)), law.log_prob(z).unsqueeze(1).expand(
            other.log_prob(z.unsqueeze(1)).shape))  # fmt: skip
    assert law.to_event(1).log_prob(z).shape == (5,)
    assert law.expand((3, 2)).sample().shape == (3, *z.shape[1:])


@pytest.mark.parametrize("name", ["circle", "fisher", "power"])
def test_log_prob_under_vmap_and_in_graphs(name):
    law = LAWS[name]()
    z = law.sample()

    def score(loc, concentration, z):
        return type(law)(loc, concentration, validate_args=False).log_prob(z)

    plain = law.log_prob(z)
    args = (law.loc, law.concentration, z)
    torch.testing.assert_close(torch.func.vmap(score)(*args), plain)
    torch.testing.assert_close(make_fx(score)(*args)(*args), plain)
    mapped = torch.func.vmap(torch.func.grad(score, argnums=1))(*args)
    kappa = law.concentration.clone().requires_grad_()
    (whole,) = grad(score(law.loc, kappa, z).sum(), kappa)
    torch.testing.assert_close(mapped, whole)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_draws_can_be_traced(d):
    """A graph holds 24 proposals; the draws it gives follow the law (DKWM at 1e-9)."""
    n = 2_000

    def draw(loc, kappa):
        return D.VonMisesFisher(loc, kappa, validate_args=False).rsample((n,))

    loc, kappa = axis(d), torch.tensor(3.0)
    z = make_fx(draw)(loc, kappa)(loc, kappa)
    w = z[:, 0].sort().values
    mean = bessel.bessel_ratio(0.5 * d - 1, kappa)
    spread = bessel.bessel_variance(0.5 * d - 1, kappa)
    assert (w.mean() - mean).abs() < 6.5 * (spread / n) ** 0.5
    other = D.VonMisesFisher(loc, kappa).sample((n,))[:, 0].sort().values
    ranks = torch.searchsorted(other, w).double() / n
    assert (ranks - torch.arange(n) / n).abs().max() < 2 * band(n)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_finds_a_conjugate_posterior(loss):
    """The mean direction of a von Mises-Fisher law, from one observation, has one too."""
    x = unit(1.0, -2.0, 0.5, 0.1)

    def model():
        z = pyro.sample("z", D.SphericalUniform(4))
        pyro.sample("x", D.VonMisesFisher(z, 6.0), obs=x)

    def guide():
        raw = pyro.param("raw", lambda: torch.ones(4))
        kappa = pyro.param(
            "kappa",
            lambda: torch.tensor(1.0),
            constraint=constraints.positive,
        )
        pyro.sample("z", D.VonMisesFisher(raw / raw.norm(), kappa))

    elbo = loss(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(100):
        svi.step()
    raw, kappa = pyro.param("raw").detach(), pyro.param("kappa").item()
    assert (raw / raw.norm()) @ x > 0.995
    assert kappa == pytest.approx(6.0, rel=0.15)
