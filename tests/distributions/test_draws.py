"""Draws of every family, at its default and at three hard settings.

All finite and inside the support, with finite log-density and finite gradients. Where an exact
draw is smaller or larger than the format can hold it is held at the end, as often as the law has
mass beyond it; the logarithm of a draw never is. The quick version draws 20,000 to 200,000 of
each setting, the slow one 1e8 in float32 and 1e7 in float64 (of mixtures of vectors, which take
7 s a million with every gradient, a tenth of it).
"""

import math

import pytest
import torch
from torch.autograd import grad

from pyrovae import distributions as D
from pyrovae.distributions import radial
from tests.distributions.table import ROWS

F32, F64 = torch.float32, torch.float64
CHUNK = 1_000_000


def settings(*names):
    """Rows of numbers as keywords."""
    return lambda *rows: [dict(zip(names, row, strict=True)) for row in rows]


LOCATION = settings("loc", "scale")((0.0, 1.0), (0.0, 1e-30), (0.0, 1e29), (1e6, 1e-3))
PAIR = settings("concentration1", "concentration0")
VECTOR = [0.0, 0.0, 0.0]
UP = [0.0, 0.0, 1.0]

SETTINGS = {
    D.Normal: LOCATION,
    D.Laplace: LOCATION,
    D.Logistic: LOCATION,
    D.Cauchy: LOCATION,
    D.Gumbel: LOCATION,
    D.StudentT: settings("df", "loc", "scale")(
        (5.0, 0.0, 1.0), (0.01, 0.0, 1.0), (1e6, 0.0, 1e-20), (0.5, 1e6, 1e-3)
    ),
    D.Gamma: settings("concentration", "rate")((1.0, 1.0), (0.01, 1.0), (1e-3, 1e6), (1e6, 1e-3)),
    D.Erlang: settings("concentration", "rate")(
        (3.0, 1.0), (1.0, 1e30), (40.0, 1e-30), (1e5, 1.0)
    ),
    D.Chi2: settings("df")((2.0,), (0.01,), (1e-3,), (1e6,)),
    D.FisherSnedecor: settings("df1", "df2")((4.0, 4.0), (0.01, 0.01), (0.02, 1e4), (1e4, 1e4)),
    D.Exponential: settings("rate")((1.0,), (1e-18,), (1e30,), (1e3,)),
    D.Weibull: settings("scale", "concentration")(
        (1.0, 1.0), (1.0, 0.01), (1e-3, 0.1), (1e3, 1e3)
    ),
    D.Rayleigh: settings("scale")((1.0,), (1e-18,), (1e18,), (1e-3,)),
    D.Pareto: settings("scale", "alpha")((1.0, 1.0), (1.0, 0.01), (1e-3, 1e-3), (1e3, 1e3)),
    D.Gompertz: settings("concentration", "rate")(
        (1.0, 1.0), (1e-3, 1.0), (1e3, 1e-3), (1e-6, 1e3)
    ),
    D.LogNormal: settings("loc", "scale")((0.0, 1.0), (0.0, 50.0), (-60.0, 8.0), (0.0, 1e-3)),
    D.Beta: PAIR((1.0, 1.0), (0.01, 0.01), (1e-3, 5.0), (1e5, 1e5)),
    D.Kumaraswamy: PAIR((1.0, 1.0), (0.1, 0.1), (0.01, 5.0), (100.0, 0.01)),
    D.Uniform: settings("low", "high")((0.0, 1.0), (1.0, 1.0 + 1e-6), (-1e30, 1e30), (0.0, 1e-30)),
    D.Reciprocal: settings("low", "high")(
        (0.01, 100.0), (1e-3, 1e3), (1.0, 1.0 + 1e-6), (1e-15, 1e15)
    ),
    D.Triangular: settings("low", "peak", "high")(
        (0.0, 0.5, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1.0 + 1e-6), (0.0, 0.0, 1e-20)
    ),
    D.VonMises: settings("loc", "concentration")(
        (0.0, 1.0), (3.1, 1e-6), (math.pi, 1e8), (1e3, 30.0)
    ),
    D.VonMisesFisher: settings("loc", "concentration")(
        (UP, 1.0), (UP, 0.0), (UP, 1e8), ([0.6, -0.8, 0.0, 0.0, 0.0], 1e-3)
    ),
    D.PowerSpherical: settings("loc", "concentration")(
        (UP, 1.0), (UP, 0.0), (UP, 1e8), ([0.6, -0.8, 0.0, 0.0, 0.0], 1e-3)
    ),
    D.ContinuousBernoulli: settings("logits")((0.0,), (100.0,), (1e-8,), (-1e4,)),
    D.Dirichlet: settings("concentration")(
        ([1.0, 1.0, 1.0],), ([0.01, 0.01, 0.01],), ([1e-3, 1.0, 100.0],), ([1e5, 1e5, 1e5],)
    ),
    D.MultivariateNormal: settings("loc", "scale_tril")(
        (VECTOR, torch.eye(3).tolist()),
        (VECTOR, (1e-15 * torch.eye(3)).tolist()),
        (VECTOR, [[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0], [1.0, 1e-3, 1e-3]]),
        ([1e3, -1e3, 0.0], (1e15 * torch.eye(3)).tolist()),
    ),
    D.Elliptical: settings("loc", "scale_diag", "radial")(
        (VECTOR, [1.0, 1.0, 1.0], radial.Normal()),
        (VECTOR, [1.0, 1e-3, 1e3], radial.StudentT(0.5)),
        (VECTOR, [1e-12, 1e-12, 1e-12], radial.Laplace()),
        ([1e3, -1e3, 0.0], [1.0, 1e-3, 1e3], radial.PowerExponential(0.2)),
    ),
}


def mixture(logits, loc, scale, validate_args):
    return D.Mixture(logits, D.Normal(loc, scale), validate_args=validate_args)


def vector_mixture(logits, loc, scale, validate_args):
    return D.Mixture(logits, D.Normal(loc, scale).to_event(1), validate_args=validate_args)


def truncated(loc, scale, low, high, validate_args):
    return D.Truncated(D.Normal(loc, scale), low, high, validate_args=validate_args)


# families of families: rows of their own
SETTINGS |= {
    mixture: settings("logits", "loc", "scale")(
        ([0.0, 0.0], [-1.0, 1.0], [0.5, 0.5]),
        ([0.0, 9.0, -9.0], [0.0, 1e6, -1e6], [1e-3, 1.0, 1e3]),
        ([0.0, 0.0], [0.0, 0.0], [1e-6, 1e6]),
        ([50.0, -50.0], [0.0, 0.0], [1.0, 1.0]),
    ),
    vector_mixture: settings("logits", "loc", "scale")(
        ([0.0, 0.0], [[-1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], [[0.5] * 3, [1.0] * 3]),
        ([0.0, 9.0], [[0.0] * 3, [1e3] * 3], [[1e-3] * 3, [1.0, 1e3, 1e-3]]),
        ([0.0, 0.0], [[0.0] * 3, [0.0] * 3], [[1e-6] * 3, [1e6] * 3]),
        ([50.0, -50.0], [[0.0] * 3, [0.0] * 3], [[1.0] * 3, [1.0] * 3]),
    ),
    truncated: settings("loc", "scale", "low", "high")(
        (0.0, 1.0, -1.0, 2.0),
        (0.0, 1.0, 30.0, 31.0),
        (0.0, 1.0, -math.inf, -34.0),
        (1e6, 1e3, 0.0, 1e30),
    ),
}
CASES = [(family, i) for family in SETTINGS for i in range(4)]


def by_name(value):
    return getattr(value, "__name__", None) or str(value).removeprefix("torch.")


def build(family, setting, dtype, n=None):
    """Return the distribution and its parameters, each repeated n times as a leaf."""
    arguments, leaves = {}, []
    for name, value in setting.items():
        if isinstance(value, float | list):
            value = torch.tensor(value, dtype=dtype)
            if n is not None:
                value = value.expand(n, *value.shape).clone().requires_grad_()
                leaves.append(value)
        arguments[name] = value
    return family(**arguments, validate_args=False), leaves


class Ends:
    """The least and the greatest draw, and how many equal it."""

    def __init__(self):
        self.low, self.at_low = math.inf, 0
        self.high, self.at_high = -math.inf, 0

    def see(self, z):
        low, high = z.min().item(), z.max().item()
        self.at_low = self.at_low * (low >= self.low) + int((z == min(low, self.low)).sum())
        self.at_high = self.at_high * (high <= self.high) + int((z == max(high, self.high)).sum())
        self.low, self.high = min(low, self.low), max(high, self.high)


def draw_and_check(family, setting, dtype, n):
    """Draw n and look at everything of them; return the ends."""
    d, leaves = build(family, setting, dtype, n)
    if hasattr(d, "rsample_and_log_prob"):
        z, score = d.rsample_and_log_prob()
    else:
        z = d.rsample()
        score = d.log_prob(z)
    again = d.log_prob(z.detach())
    assert z.isfinite().all(), f"{(~z.isfinite()).sum()} draws are not finite"
    inside = d.support.check(z)
    assert inside.all(), f"{(~inside).sum()} draws are outside of {d.support}"
    for name, value in (("score", score), ("log_prob", again)):
        assert value.isfinite().all(), f"{(~value.isfinite()).sum()} of {name} are not finite"
    for name, value in (("draw", z), ("score", score), ("log_prob", again)):
        if not value.requires_grad:
            continue
        slopes = grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
        for parameter, slope in zip(setting, slopes, strict=False):
            bad = 0 if slope is None else int((~slope.isfinite()).sum())
            assert not bad, f"{bad} gradients of the {name} in {parameter} are not finite"
    return z.detach()


def check_ends(family, setting, dtype, ends, n):
    """As many draws are at each end as the law has mass beyond it, give or take a rounding.

    Bands of six standard errors and forty draws: false alarm below 1e-8 an end.
    """
    exact = {k: torch.tensor(v, dtype=dtype).double() for k, v in setting.items()}
    d = family(**exact, validate_args=False)
    for end, count, mass, inward in (
        (ends.low, ends.at_low, d.cdf, math.inf),
        (ends.high, ends.at_high, d.sf, -math.inf),
    ):
        near = torch.tensor(end, dtype=dtype)
        for _ in range(2):
            near = torch.nextafter(near, torch.tensor(inward, dtype=dtype))
        least, most = mass(torch.tensor(end, dtype=F64)).item(), mass(near.double()).item()
        band = 6 * (most * (1 - least) / n) ** 0.5 + 40 / n
        assert least - band < count / n < most + band, (end, count / n, least, most)


def run(family, setting, dtype, n):
    ends, univariate = Ends(), None
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        z = draw_and_check(family, setting, dtype, size)
        univariate = z.dim() == 1
        if univariate:
            ends.see(z)
    if univariate and family is not D.VonMises:  # a circle has no ends
        check_ends(family, setting, dtype, ends, n)


def test_every_family_has_its_settings():
    families = {row.family for row in ROWS} | {D.lookup(name) for name in D.names()}
    families -= {D.SphericalUniform}  # it has no parameter
    assert set(SETTINGS) == families | {mixture, vector_mixture, truncated}
    assert all(len(rows) == 4 for rows in SETTINGS.values())


@pytest.mark.parametrize("dtype", [F32, F64], ids=by_name)
@pytest.mark.parametrize(("family", "i"), CASES, ids=by_name)
def test_draws_are_finite_inside_and_scored(family, i, dtype):
    run(family, SETTINGS[family][i], dtype, 100_000 if dtype is F32 else 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=by_name)
@pytest.mark.parametrize(("family", "i"), CASES, ids=by_name)
def test_a_hundred_million_draws(family, i, dtype):
    n = 10**8 if dtype is F32 else 10**7
    run(family, SETTINGS[family][i], dtype, n // 10 if family is vector_mixture else n)


# -- in log space ---------------------------------------------------------------------------------

POSITIVE = [
    D.Gamma, D.Erlang, D.Chi2, D.FisherSnedecor, D.Exponential, D.Weibull, D.Rayleigh, D.Pareto,
    D.Gompertz, D.LogNormal, D.Beta, D.Kumaraswamy, D.Dirichlet,
]  # fmt: skip


def held_at_an_end(family, i):
    """Whether exact draws of this setting leave the range of float32: several are at its end."""
    d, _ = build(family, SETTINGS[family][i], F32, 5000)
    z, info = d.sample().flatten(), torch.finfo(F32)
    low, high = z.min(), z.max()
    return bool(
        (0 < low < 1.01 * info.tiny and (z == low).sum() > 10)
        or (high > 1e-12 * info.max and (z == high).sum() > 10)
    )


def test_what_is_held_has_a_draw_in_log_space():
    """StudentT has both signs, so its own: `signed_log_rsample`."""
    over = {family for family, i in CASES if held_at_an_end(family, i)}
    assert over > {D.Gamma, D.Pareto, D.Weibull, D.LogNormal, D.FisherSnedecor, D.Kumaraswamy}
    assert over <= {*POSITIVE, D.StudentT}


@pytest.mark.parametrize("dtype", [F32, F64], ids=by_name)
@pytest.mark.parametrize(
    ("family", "i"), [case for case in CASES if case[0] in POSITIVE], ids=by_name
)
def test_log_draws_are_finite_with_finite_gradients_and_follow_the_law(family, i, dtype):
    """Wherever exp(log z) is a float64 its cdf is uniform: DKWM, false alarm 1e-9.

    In float32 a rounding of log z moves the cdf of the narrowest law, Gamma(1e6), by 0.002.
    """
    n = 20_000
    d, leaves = build(family, SETTINGS[family][i], dtype, n)
    y = d.log_rsample()
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert all(slope.isfinite().all() for slope in grad(y.sum(), leaves))
    if d.event_shape:
        torch.testing.assert_close(y.logsumexp(-1), y.new_zeros(n))
        return
    exact, _ = build(family, SETTINGS[family][i], F64)
    ordered = y.detach().double().sort().values
    z = ordered.exp()
    known = (z > 1e-300) & (z < 1e300) & (z < 1 if family in (D.Beta, D.Kumaraswamy) else True)
    share = (torch.arange(n, dtype=F64) + 0.5) / n
    assert known.any()
    off = (exact.cdf(z[known]) - share[known]).abs().max()
    assert off < math.sqrt(math.log(2 / 1e-9) / (2 * n)) + (0.003 if dtype is F32 else 0.0)


def test_the_sign_and_the_logarithm_of_a_student_draw():
    d = D.StudentT(torch.tensor(0.01, dtype=F32))
    sign, y = d.signed_log_rsample((100_000,))
    assert y.isfinite().all()
    assert (y > math.log(torch.finfo(F32).max)).float().mean() > 0.3
    small = y < 80
    z = (sign * y.exp())[small].double()
    exact = D.StudentT(torch.tensor(0.01, dtype=F32).double())
    assert abs((z < 0).double().mean() - 0.5) < 6 * 0.5 / len(z) ** 0.5
    inside = exact.cdf(torch.tensor(80.0).double().exp()) * 2 - 1
    assert abs(small.double().mean() - inside) < 6 * 0.5 / len(y) ** 0.5
