"""Gamma, Erlang, Chi2, Beta, Dirichlet, FisherSnedecor, StudentT, LogNormal against scipy.

Statistical tests: with n draws the empirical cdf leaves the DKWM band, of half-width
sqrt(log(2/alpha)/2n), with probability at most alpha = 1e-9, and a cdf that is wrong by twice that
anywhere is missed with at most the same probability. Means are compared in 6.5 standard errors.
"""

import copy
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.special as sc
import scipy.stats as st
import torch
from torch.autograd import grad

from pyrovae.distributions import composition as C
from pyrovae.distributions import special as S
from pyrovae.testing import check_distribution

F64, F32 = torch.float64, torch.float32
FAMILIES = [
    (C.Gamma, {"concentration": [2.5, 0.3], "rate": [1.5, 0.2]}),
    (C.Erlang, {"concentration": [3.0, 1.0], "rate": [2.0, 0.5]}),
    (C.Chi2, {"df": [3.3, 0.7]}),
    (C.Beta, {"concentration1": [0.4, 5.0], "concentration0": [2.0, 3.0]}),
    (C.FisherSnedecor, {"df1": [3.0, 1.2], "df2": [7.0, 9.0]}),
    (C.StudentT, {"df": [2.7, 9.0], "loc": [0.3, -2.0], "scale": [1.5, 0.2]}),
    (C.LogNormal, {"loc": [0.3, -1.0], "scale": [0.7, 0.2]}),
]
SCIPY = {
    C.Gamma: lambda concentration, rate: st.gamma(concentration, scale=1 / rate),
    C.Erlang: lambda concentration, rate: st.gamma(concentration, scale=1 / rate),
    C.Chi2: lambda df: st.chi2(df),
    C.Beta: lambda concentration1, concentration0: st.beta(concentration1, concentration0),
    C.FisherSnedecor: lambda df1, df2: st.f(df1, df2),
    C.StudentT: lambda df, loc, scale: st.t(df, loc, scale),
    C.LogNormal: lambda loc, scale: st.lognorm(scale, scale=np.exp(loc)),
}
rows = pytest.mark.parametrize(
    ("family", "arguments"), FAMILIES, ids=lambda v: getattr(v, "__name__", "")
)


def build(family, arguments, dtype=F64):
    return family(**{k: torch.tensor(v, dtype=dtype) for k, v in arguments.items()})


def scipy_of(family, arguments):
    return SCIPY[family](**{k: np.array(v) for k, v in arguments.items()})


# -- the contract ---------------------------------------------------------------------------------


@rows
def test_contract(family, arguments):
    check_distribution(build(family, arguments), scipy_of(family, arguments))


def test_dirichlet_contract():
    # concentrations above 1: Pyro's goodness of fit needs a density without poles
    check_distribution(C.Dirichlet(torch.tensor([[1.5, 2.0, 3.0], [1.2, 4.0, 9.0]])))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_dirichlet_draws_have_beta_margins(dtype):
    n, alpha = 40_000, np.array([0.05, 0.5, 2.0, 30.0])
    x = C.Dirichlet(torch.tensor(alpha, dtype=dtype)).sample((n,)).double().numpy()
    band = np.sqrt(np.log(2 / 1e-9) / (2 * n)) + 1 / n
    for k in range(4):
        at = np.sort(x[:, k])
        levels = st.beta(alpha[k], alpha.sum() - alpha[k]).cdf(at)
        inside = at > 1e-37
        assert np.abs(levels - np.arange(1, n + 1) / n)[inside].max() < band
    np.testing.assert_allclose(x.sum(-1), 1, rtol=1e-6)


@rows
@pytest.mark.parametrize("dtype", [F32, F64])
def test_methods_against_scipy(family, arguments, dtype):
    d, s = build(family, arguments, dtype), scipy_of(family, arguments)
    rtol = {F32: 3e-6, F64: 1e-11}[dtype]
    u = torch.tensor([1e-30, 1e-10, 1e-3, 0.3, 0.9], dtype=dtype).unsqueeze(1)
    for mine, theirs in (("icdf", s.ppf), ("isf", s.isf)):
        z = getattr(d, mine)(u)
        assert z.dtype == dtype
        ok = u[:, 0] > (1e-20 if family in (C.StudentT, C.FisherSnedecor, C.Beta) else 0)
        loose = rtol * (1e4 if dtype == F64 else 1)  # scipy's quantiles are no better
        expected = torch.as_tensor(theirs(u.double().numpy()))
        sane = ok.unsqueeze(1) & (expected.abs() > 1e-37) & (expected.abs() < 1e37)
        torch.testing.assert_close(z.double()[sane], expected[sane], rtol=loose, atol=1e-300)
    z = d.icdf(u[1:])
    z = torch.where(d.support.check(z), z, d.icdf(torch.tensor(0.5, dtype=dtype)))
    x = z.double().numpy()
    for mine, theirs in (
        ("log_prob", s.logpdf),
        ("cdf", s.cdf),
        ("sf", s.sf),
        ("log_cdf", s.logcdf),
        ("log_sf", s.logsf),
    ):
        got = getattr(d, mine)(z)
        assert got.dtype == dtype
        expected = torch.as_tensor(theirs(x))
        torch.testing.assert_close(got.double(), expected, rtol=20 * rtol, atol=rtol / 10)
    torch.testing.assert_close(
        d.entropy().double(), torch.as_tensor(s.entropy()), rtol=rtol, atol=rtol
    )
    torch.testing.assert_close(d.mean.double(), torch.as_tensor(s.mean()), rtol=rtol, atol=0)
    torch.testing.assert_close(d.variance.double(), torch.as_tensor(s.var()), rtol=rtol, atol=0)


@rows
def test_draws_follow_the_density_in_float32(family, arguments):
    n = 40_000
    torch.manual_seed(1)
    z = build(family, arguments, F32).sample((n,)).double().numpy()
    band = np.sqrt(np.log(2 / 1e-9) / (2 * n))
    levels = np.sort(scipy_of(family, arguments).cdf(z), axis=0)
    grid = np.arange(1, n + 1)[:, None] / n
    assert np.abs(levels - grid).max() < band + 1 / n


@rows
def test_they_are_pyros_and_keep_their_type(family, arguments):
    d = build(family, arguments)
    parent = dist.Gamma if family is C.Erlang else getattr(dist, family.__name__)
    assert isinstance(d, parent)
    wide = d.expand((5, 2))
    assert type(wide) is family
    assert wide.rsample((3,)).shape == (3, 5, 2)
    for other in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(other.mean, d.mean)
    z, score = d.rsample_and_log_prob((4,))
    torch.testing.assert_close(score, d.log_prob(z))


@rows
def test_bad_arguments_name_the_parameter(family, arguments):
    first = next(iter(arguments))
    for name in arguments:
        if name == "loc":
            continue
        bad = {k: torch.tensor(v) for k, v in arguments.items()}
        bad[name] = torch.tensor([-1.0, 1.0])
        with pytest.raises(ValueError, match=f"parameter '{name}'") as raised:
            family(**bad)
        assert "-1" in str(raised.value)
    half = {k: torch.tensor(v).half() for k, v in arguments.items()}
    with pytest.raises(TypeError, match=f"{first}.*float16"):
        family(**half)
    with pytest.raises(TypeError, match="bfloat16"):
        family(**{k: v.bfloat16() for k, v in half.items()})


def test_erlang_refuses_fractions():
    with pytest.raises(ValueError, match="concentration"):
        C.Erlang(2.5, 1.0)
    assert C.Erlang(torch.tensor(3), 2.0).mean == 1.5
    assert C.Erlang(1000, 1.0).sample((10_000,)).mean() == pytest.approx(1000, abs=2.1)


@rows
def test_outside_the_support_without_validation(family, arguments):
    if family is C.StudentT:
        pytest.skip("every real number is inside")
    d = build(family, arguments)
    below = torch.tensor(-1.0)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(below)
    free = family(**{k: torch.tensor(v) for k, v in arguments.items()}, validate_args=False)
    assert (free.log_prob(below) == -torch.inf).all()
    assert (free.cdf(below) == 0).all()
    assert (free.log_sf(below) == 0).all()
    if family is C.Beta:
        assert (free.log_prob(torch.tensor(1.5)) == -torch.inf).all()
        assert (free.sf(torch.tensor(1.5)) == 0).all()


def test_moments_and_modes_that_do_not_exist():
    f = C.FisherSnedecor(torch.tensor(3.0), torch.tensor([1.0, 3.0, 5.0]))
    assert f.mean.tolist()[0] == torch.inf
    assert f.variance.isnan().tolist() == [True, False, False]
    assert f.variance[1] == torch.inf
    t = C.StudentT(torch.tensor([0.5, 1.5, 3.0]))
    assert t.mean.isnan().tolist() == [True, False, False]
    assert t.variance[1] == torch.inf
    b = C.Beta(torch.tensor([0.5, 1.0, 0.5, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0, 0.5, 2.0]))
    expected = torch.tensor([torch.nan, torch.nan, 0.0, 1.0, 2 / 3])
    torch.testing.assert_close(b.mode, expected, equal_nan=True)
    assert C.Dirichlet(torch.tensor([0.5, 0.5])).mode.isnan().all()
    torch.testing.assert_close(
        C.Dirichlet(torch.tensor([2.0, 4.0])).mode, torch.tensor([0.25, 0.75])
    )


# -- bugs measured elsewhere ----------------------------------------------------------------------


def test_beta_of_tiny_concentrations_does_not_pile_up_at_one_half():
    d = C.Beta(torch.tensor(1e-3, dtype=F32), torch.tensor(1e-3, dtype=F32))
    x = d.sample((100_000,))
    middle = ((x > 0.4) & (x < 0.6)).double().mean()
    true = st.beta.cdf(0.6, 1e-3, 1e-3) - st.beta.cdf(0.4, 1e-3, 1e-3)
    assert abs(middle - true) < 6.5 * (true / 100_000) ** 0.5
    assert ((x > 0) & (x < 1)).all()
    assert torch.isfinite(d.log_prob(x)).all()
    y = d.rsample_logit((100_000,))
    assert y.unique().numel() > 90_000


def test_dirichlet_of_tiny_concentrations_does_not_pile_up_at_one_third():
    d = C.Dirichlet(torch.full((3,), 1e-3, dtype=F32))
    x = d.sample((50_000,))
    assert ((x - 1 / 3).abs() < 0.05).all(-1).double().mean() < 1e-3
    assert (x.max(-1).values > 0.999).double().mean() > 0.97
    torch.testing.assert_close(x.mean(0), torch.full((3,), 1 / 3, dtype=F32), atol=0.014, rtol=0)
    assert torch.isfinite(d.log_prob(x)).all()
    assert torch.isfinite(d.log_rsample((1000,))).all()


def test_gamma_of_tiny_concentration_keeps_its_logarithm():
    d = C.Gamma(torch.tensor(1e-3, dtype=F32), torch.tensor(1.0, dtype=F32))
    z, y = d.sample((20_000,)), d.log_rsample((20_000,))
    tiny = torch.finfo(F32).tiny
    assert (z >= tiny).all()
    held = (z == tiny).double().mean()
    true = sc.gammainc(1e-3, tiny)
    assert abs(held - true) < 6.5 * (true * (1 - true) / 20_000) ** 0.5
    assert torch.isfinite(y).all()
    assert y.unique().numel() > 19_000


@pytest.mark.parametrize("df", [1e4, 1e5, 1e6, 1e7, 1e8])
def test_student_density_at_large_df_in_float32(df):
    d = C.StudentT(torch.tensor(df, dtype=F32))
    at = torch.tensor([0.0, 1.0, 4.0], dtype=F32)
    expected = st.t.logpdf(at.double().numpy(), float(d.df))
    np.testing.assert_allclose(d.log_prob(at).numpy(), expected, rtol=3e-7)
    assert float(d.entropy()) == pytest.approx(st.norm.entropy() + 1 / df, abs=3e-7)


def test_student_gradient_at_small_df_is_finite():
    for df in (0.3, 0.1, 0.03, 0.01):
        p = torch.full((20_000,), df, dtype=F32, requires_grad=True)
        z = C.StudentT(p).rsample()
        assert torch.isfinite(z).all()
        (g,) = grad(z.sum(), p)
        assert not g.isnan().any()


def test_a_student_draw_that_overflows_is_held():
    """Held before the scale, it overflowed behind it, and inf - inf is NaN."""
    scale = torch.full((1000,), 1e6, dtype=F32, requires_grad=True)
    z = C.StudentT(torch.tensor(0.01, dtype=F32), 1.0, scale).rsample()
    assert z.isfinite().all()
    assert (z.abs() == z.abs().max()).sum() > 1  # at the bound, which leaves room for slopes
    assert grad(z.sum(), scale)[0].isfinite().all()


def test_beta_gradient_where_torchs_is_infinite():
    a = torch.tensor([2.0**16 + k for k in (5, 100, 1000)], dtype=F32, requires_grad=True)
    x = C.Beta(a, torch.tensor(1.5, dtype=F32)).rsample((200,))
    (g,) = grad(x.sum(), a)
    assert torch.isfinite(g).all()


def test_dirichlet_score_at_a_subnormal_value():
    x = torch.tensor([1e-42, 1.0], dtype=F32, requires_grad=True)
    for alpha in ([1.0, 1.0], [0.5, 2.0], [2.0, 2.0]):
        d = C.Dirichlet(torch.tensor(alpha, dtype=F32))
        (g,) = grad(d.log_prob(x), x)
        assert torch.isfinite(g).all()


@pytest.mark.parametrize("c", [1e5, 1e6])
def test_densities_keep_their_digits_at_large_concentrations_in_float32(c):
    s = torch.tensor(c, dtype=F32)
    half = torch.tensor(0.5, dtype=F32)
    assert float(C.Beta(s, s).log_prob(half)) == pytest.approx(st.beta.logpdf(0.5, c, c), rel=3e-7)
    assert float(C.Gamma(s, s).log_prob(half * 2)) == pytest.approx(
        st.gamma.logpdf(1.0, c, scale=1 / c), rel=3e-7
    )
    assert float(C.Gamma(s, s).entropy()) == pytest.approx(
        0.5 * np.log(2 * np.pi * np.e / c), rel=1e-5
    )


# -- gradients ------------------------------------------------------------------------------------


def test_gamma_gradient_is_better_than_five_in_ten_thousand():
    """-dF/da / pdf by torch's own incomplete gamma, differenced in float64."""
    for a in (1e-2, 0.05, 0.7, 3.0, 200.0, 1e4):
        shape = torch.full((200,), a, requires_grad=True)
        z = C.Gamma(shape, torch.tensor(1.0)).rsample()
        (g,) = grad(z.sum(), shape)
        keep = z > 1e-290
        z, got = z.detach()[keep].numpy(), g[keep].numpy()
        h = 1e-4 * a
        weights = np.array([1, -8, 8, -1]) / (12 * h)
        cdf = [sc.gammainc(a + k * h, z) for k in (-2, -1, 1, 2)]
        sf = [-sc.gammaincc(a + k * h, z) for k in (-2, -1, 1, 2)]
        slope = np.where(z > a, weights @ np.array(sf), weights @ np.array(cdf))
        expected = -slope / st.gamma.pdf(z, a)
        np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_dirichlet_gradient_is_that_of_its_beta_margin():
    alpha = torch.tensor([0.3, 2.0, 5.0], requires_grad=True)
    torch.manual_seed(4)
    x = C.Dirichlet(alpha).rsample()
    for i in range(3):
        (g,) = grad(x[i], alpha, retain_graph=True)
        fixed, at = alpha.detach(), float(x[i].detach())
        a, b = float(fixed[i]), float(fixed.sum() - fixed[i])
        h = 1e-4 * a
        weights = np.array([1, -8, 8, -1]) / (12 * h)
        cdf = np.array([sc.betainc(a + k * h, b, at) for k in (-2, -1, 1, 2)])
        assert float(g[i]) == pytest.approx(-(weights @ cdf) / st.beta.pdf(at, a, b), rel=1e-8)
    # the others make room in proportion
    (g,) = grad(x[0], alpha, retain_graph=True)
    (h,) = grad(x[1], alpha)
    assert float(g[1]) == pytest.approx(float(h[1] * -(x[0] / (1 - x[1])).detach()), rel=1e-10)


MEANS = {
    # E[f(z)] in closed form
    "gamma": (C.Gamma, [0.7, 2.0], lambda z: z + z * z, lambda a, r: a / r + a * (a + 1) / r**2),
    "log gamma": (C.Gamma, [0.3, 2.0], torch.log, lambda a, r: torch.digamma(a) - r.log()),
    "beta": (
        C.Beta,
        [0.6, 1.7],
        lambda x: x * x,
        lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1)),
    ),
    "student": (
        C.StudentT,
        [7.0, 0.4, 1.3],
        lambda t: t * t,
        lambda n, m, s: m**2 + s**2 * n / (n - 2),
    ),
    "chi2": (C.Chi2, [2.5], lambda z: z * z, lambda n: n * (n + 2)),
    "f": (C.FisherSnedecor, [3.0, 12.0], lambda z: z, lambda a, b: b / (b - 2) + 0 * a),
    "log-normal": (C.LogNormal, [0.2, 0.4], lambda z: z, lambda m, s: torch.exp(m + s * s / 2)),
}


@pytest.mark.parametrize("name", MEANS)
def test_gradients_of_expectations_are_unbiased(name):
    family, at, f, mean = MEANS[name]
    n = 40_000
    params = [torch.full((n,), v, requires_grad=True) for v in at]
    z = family(*params).rsample()
    each = grad(f(z).sum(), params)
    exact = [torch.tensor(v, requires_grad=True) for v in at]
    true = grad(mean(*exact), exact)
    for g, t in zip(each, true, strict=True):
        assert abs(float(g.mean() - t)) < 6.5 * float(g.std()) / n**0.5 + 1e-12


def test_dirichlet_gradient_of_an_expectation_is_unbiased():
    n, weights = 40_000, torch.tensor([1.0, -2.0, 0.5])
    alpha = torch.tensor([0.4, 1.3, 3.0])
    each = alpha.expand(n, 3).clone().requires_grad_()
    value = (C.Dirichlet(each).rsample() * weights).sum(-1)
    (g,) = grad(value.pow(2).sum(), each)
    exact = alpha.clone().requires_grad_()
    total = exact.sum()
    second = ((weights**2 * exact).sum() + (weights * exact).sum() ** 2) / (total * (total + 1))
    (t,) = grad(second, exact)
    assert ((g.mean(0) - t).abs() < 6.5 * g.std(0) / n**0.5).all()


def seeded(family, *parameters):
    torch.manual_seed(3)
    return family(*parameters, validate_args=False).rsample()


@pytest.mark.parametrize(
    ("family", "at"),
    [
        (C.Gamma, [[1.3, 4.0], [0.5, 2.0]]),
        (C.Beta, [[1.3, 4.0], [0.5, 2.0]]),
        (C.StudentT, [[1.3, 40.0], [0.5, 2.0], [1.0, 2.0]]),
        (C.FisherSnedecor, [[3.0, 4.0], [5.0, 2.0]]),
        (C.Chi2, [[1.3, 4.0]]),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_second_derivatives_of_draws(family, at):
    """At a fixed cdf value: the draw is the quantile of its own level, which has derivatives."""
    params = [torch.tensor(v, requires_grad=True) for v in at]
    z = seeded(family, *params)
    first = grad((z * z).sum(), params, create_graph=True)
    second = grad(sum(g.sum() for g in first), params)
    copies = [p.detach().clone().requires_grad_() for p in params]
    d = family(*copies)
    level = d.cdf(z.detach()).detach()
    q = d.icdf(level)
    expected_first = grad((q * q).sum(), copies, create_graph=True)
    expected = grad(sum(g.sum() for g in expected_first), copies)
    torch.testing.assert_close(q, z.detach(), rtol=1e-9, atol=0)
    for got, true in zip(first + second, expected_first + expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-6, atol=1e-9)


def test_dirichlet_second_derivatives_in_two_dimensions_are_betas():
    alpha = torch.tensor([0.7, 2.5], requires_grad=True)
    torch.manual_seed(5)
    x = C.Dirichlet(alpha).rsample()
    (g,) = grad(x[0], alpha, create_graph=True)
    (second,) = grad(g[0], alpha)
    a = alpha.detach().clone().requires_grad_()
    q = S.betaincinv(a[0], a[1], S.betainc(a[0], a[1], x[0].detach()).detach())
    (h,) = grad(q, a, create_graph=True)
    (expected,) = grad(h[0], a)
    torch.testing.assert_close(g, h)
    torch.testing.assert_close(second, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_student_draw_whose_normal_is_zero(dtype, monkeypatch):
    """torch's is 0 once in 2^24, and the root of df/chi^2 is infinite often at small df."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    df = torch.tensor([1e-3, 0.01, 5.0], dtype=dtype, requires_grad=True)
    z, score = C.StudentT(df).rsample_and_log_prob((50,))
    assert (z == 0).all()
    assert score.isfinite().all()
    assert all(g.isfinite().all() for g in grad(z.sum() + score.sum(), df))


# -- slow -----------------------------------------------------------------------------------------

HARD = [
    (C.Gamma, [1e-3, 1.0]),
    (C.Gamma, [0.3, 1e-3]),
    (C.Gamma, [1e4, 1e3]),
    (C.Beta, [1e-3, 1e-3]),
    (C.Beta, [1e-3, 1e3]),
    (C.Beta, [1e4, 0.1]),
    (C.StudentT, [1e-2]),
    (C.StudentT, [1e7]),
    (C.FisherSnedecor, [1e-2, 1e-2]),
    (C.LogNormal, [0.0, 50.0]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "at"), HARD)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_ten_million_hard_draws_are_inside_and_scored(family, at, dtype):
    for _ in range(10):
        params = [torch.full((1_000_000,), v, dtype=dtype, requires_grad=True) for v in at]
        d = family(*params, validate_args=False)
        z, score = d.rsample_and_log_prob()
        assert torch.isfinite(z).all()
        assert d.support.check(z).all()
        assert torch.isfinite(score).all()
        for g in grad(z.sum() + score.sum(), params):
            assert not g.isnan().any()
