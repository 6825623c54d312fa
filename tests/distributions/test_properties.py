"""Properties at parameters drawn log-uniformly from 1e-6 to 1e6, for every univariate family.

Nothing is NaN, tails are monotone and add up to one, quantiles invert them within what a rounding
of z is worth, draws lie inside the support with a finite score, and no gradient is NaN. Infinite
or zero is allowed where the exact number leaves the format. Six examples each by default;
PYROVAE_EXAMPLES=200 looks further.
"""

import os

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from pyrovae import distributions as D
from tests.distributions.table import ROWS

F32, F64 = torch.float32, torch.float64
SHARES = [1e-30, 1e-12, 1e-5, 0.01, 0.3, 0.5, 0.7, 0.99, 0.9999]
quick = settings(
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("PYROVAE_EXAMPLES", "6")),
    database=None,
    phases=[Phase.generate],  # shrinking a number of 1e-6 takes minutes
)

positive = st.floats(-6, 6).map(lambda e: 10.0**e)
real = st.tuples(positive, st.sampled_from([-1.0, 0.0, 1.0])).map(lambda pair: pair[0] * pair[1])
whole = st.floats(0, 6).map(lambda e: float(round(10.0**e)))


def of(family, **parameters):
    return st.fixed_dictionaries(parameters).map(lambda given: (family, given))


def ordered(family, start, *names):
    """Ends that are positive steps apart."""
    steps = st.tuples(start, *[positive] * (len(names) - 1))
    ends = steps.map(lambda s: [sum(s[: i + 1]) for i in range(len(s))])
    return ends.map(lambda e: (family, dict(zip(names, e, strict=True))))


STRATEGIES = {
    **{
        family: of(family, loc=real, scale=positive)
        for family in (D.Normal, D.Laplace, D.Logistic, D.Cauchy, D.Gumbel, D.LogNormal)
    },
    D.StudentT: of(D.StudentT, df=positive, loc=real, scale=positive),
    D.Gamma: of(D.Gamma, concentration=positive, rate=positive),
    D.Erlang: of(D.Erlang, concentration=whole, rate=positive),
    D.Chi2: of(D.Chi2, df=positive),
    D.FisherSnedecor: of(D.FisherSnedecor, df1=positive, df2=positive),
    D.Exponential: of(D.Exponential, rate=positive),
    D.Weibull: of(D.Weibull, scale=positive, concentration=positive),
    D.Rayleigh: of(D.Rayleigh, scale=positive),
    D.Pareto: of(D.Pareto, scale=positive, alpha=positive),
    D.Gompertz: of(D.Gompertz, concentration=positive, rate=positive),
    D.Beta: of(D.Beta, concentration1=positive, concentration0=positive),
    D.Kumaraswamy: of(D.Kumaraswamy, concentration1=positive, concentration0=positive),
    D.Uniform: ordered(D.Uniform, real, "low", "high"),
    D.Reciprocal: ordered(D.Reciprocal, positive, "low", "high"),
    D.Triangular: ordered(D.Triangular, real, "low", "peak", "high"),
    D.ContinuousBernoulli: of(D.ContinuousBernoulli, logits=real),
    D.VonMises: of(D.VonMises, loc=real, concentration=positive),
}
TAILED = [family for family in STRATEGIES if family is not D.VonMises]  # it has no quantiles


def build(drawn, dtype, n=None, **options):
    """The family at these parameters, and the parameters, n times as leaves if asked for."""
    family, numbers = drawn
    leaves = {k: torch.tensor(v, dtype=dtype) for k, v in numbers.items()}
    if n is not None:
        leaves = {k: v.expand(n).clone().requires_grad_() for k, v in leaves.items()}
    try:
        return family(**leaves, **options), list(leaves.values())
    except ValueError:
        assume(False)  # the ends of an interval have met
        raise


def cases(test):
    test = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])(test)
    return pytest.mark.parametrize("family", TAILED, ids=lambda family: family.__name__)(test)


def inner_points(d, dtype):
    """Quantiles from both ends, sorted: those inside the support and the format."""
    u = torch.tensor(SHARES, dtype=dtype)
    z = torch.cat([d.icdf(u), d.isf(u)]).sort().values
    assert not z.isnan().any()
    info = torch.finfo(dtype)
    return z[d.support.check(z) & (z.abs() < info.max) & ((z == 0) | (z.abs() >= info.tiny))]


def test_every_univariate_family_is_here():
    univariate = {row.family for row in ROWS if not row.build().event_shape}
    assert univariate - {D.VonMises} == set(TAILED)


@cases
@given(data=st.data())
@quick
def test_tails_are_monotone_and_add_up_to_one(family, dtype, data):
    d, _ = build(data.draw(STRATEGIES[family]), dtype)
    z, eps = inner_points(d, dtype), torch.finfo(dtype).eps
    below, above = d.cdf(z), d.sf(z)
    for share in (below, above):
        assert not share.isnan().any()
        assert ((share >= 0) & (share <= 1)).all()
    assert (below.diff() >= -8 * eps * below[1:]).all()
    assert (above.diff() <= 8 * eps * above[:-1]).all()
    assert ((below + above - 1).abs() <= 8 * eps).all()
    for share, log in ((below, d.log_cdf(z)), (above, d.log_sf(z))):
        assert not log.isnan().any()
        assert (log <= 0).all()
        known = share > 1e-37
        slack = 64 * eps * (1 + log.abs())  # the exponential of a large logarithm
        assert ((log.exp() / share - 1).abs() <= slack)[known].all()


@cases
@given(data=st.data())
@quick
def test_quantiles_invert_the_tails(family, dtype, data):
    """Both sides of z, a few roundings away, enclose the share that was asked for."""
    d, leaves = build(data.draw(STRATEGIES[family]), dtype, validate_args=False)
    info = torch.finfo(dtype)
    u = torch.tensor(SHARES, dtype=dtype)
    size = sum(leaf.abs() for leaf in leaves) if "loc" in d.arg_constraints else 0.0
    size = max(abs(d.support.lower_bound), abs(d.support.upper_bound)) if _moves(d) else size
    for quantile, tail, sign in ((d.icdf, d.cdf, 1), (d.isf, d.sf, -1)):
        z = quantile(u)
        lesser, greater = (z[:-1], z[1:]) if sign > 0 else (z[1:], z[:-1])
        assert (greater >= lesser - 8 * info.eps * lesser.abs().clamp_max(info.max)).all()
        log = z.abs().clamp(info.tiny, info.max).log()  # whose rounding counts where z = exp(y)
        shift = 64 * info.eps * (z.abs() * (1 + log.abs() / 8) + size) + 4 * info.tiny
        low, high = tail(z - sign * shift), tail(z + sign * shift)
        inside = z.isfinite()
        slack = 64 * info.eps * u
        assert (low <= u + slack)[inside].all()
        assert (high >= u - slack)[inside].all()


def _moves(d):
    return isinstance(getattr(d.support, "upper_bound", None), torch.Tensor)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", STRATEGIES, ids=lambda family: family.__name__)
@given(data=st.data())
@quick
def test_draws_are_inside_with_a_finite_score_and_no_gradient_is_nan(family, dtype, data):
    d, leaves = build(data.draw(STRATEGIES[family]), dtype, 20)
    torch.manual_seed(0)
    z, score = d.rsample_and_log_prob()
    assert z.isfinite().all()
    assert d.support.check(z).all()
    assert score.isfinite().all()
    again = d.log_prob(z.detach())
    assert again.isfinite().all()
    for value in (z, score, again):
        if value.requires_grad:
            for slope in torch.autograd.grad(
                value.sum(), leaves, retain_graph=True, allow_unused=True
            ):
                assert slope is None or not slope.isnan().any()


@cases
@given(data=st.data())
@quick
def test_no_gradient_of_a_tail_is_nan(family, dtype, data):
    drawn = data.draw(STRATEGIES[family])
    d, _ = build(drawn, dtype)
    points = inner_points(d, dtype)
    for end in ("lower_bound", "upper_bound"):  # where a share is 0, so is what its log divides by
        points = points[points != getattr(d.support, end, torch.nan)]
    assume(len(points))
    d, leaves = build(drawn, dtype, len(points))
    z = points.clone().requires_grad_()
    for tail in (d.log_prob, d.cdf, d.sf, d.log_cdf, d.log_sf):
        slopes = torch.autograd.grad(
            tail(z).sum(), [z, *leaves], retain_graph=True, allow_unused=True
        )
        for slope in slopes:
            assert slope is None or not slope.isnan().any(), tail.__name__
