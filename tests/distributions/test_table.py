"""Every family keeps the contract; a user's family of about ten lines does too."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import distributions as D
from pyrovae.testing import check_distribution
from tests.distributions.table import ROWS

NOT_A_FAMILY = {
    "Reparameterized", "LocationScale", "InverseCDF", "Hazard", "Composition",  # bases
    "Bernoulli", "Binomial", "Reshaped",  # discrete; of another distribution's draws
    "Mixture", "Truncated",  # of other distributions, see test_implicit.py
}  # fmt: skip
OWN = [row for row in ROWS if issubclass(row.family, D.Reparameterized)]
PARAMETRIC = [row for row in OWN if row.family is not D.SphericalUniform]
UNIVARIATE = [row for row in OWN if not row.build().event_shape]


def by_name(row):
    return row.name


def test_the_table_is_complete():
    public = {
        name
        for name in D.__all__
        if isinstance(getattr(D, name), type) and name not in NOT_A_FAMILY
    }
    rows = {row.family.__name__ for row in ROWS}
    assert public == rows, f"missing: {public - rows}; unknown: {rows - public}"
    assert set(D.names()) <= rows


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_the_contract(row):
    """The statistical checks and their error rates are described in `pyrovae.testing`."""
    check_distribution(row.build(), row.frozen())


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_the_contract_in_float32(row):
    check_distribution(row.build(torch.float32))


METHODS = ["cdf", "icdf", "log_cdf", "sf", "log_sf", "isf", "log_prob"]
PROPERTIES = ["mean", "variance", "stddev", "mode"]


@pytest.mark.parametrize("row", UNIVARIATE, ids=by_name)
def test_every_method_is_there(row):
    d = row.build()
    u = torch.full(d.batch_shape, 0.3)
    for name in set(METHODS) - row.lacks:
        value = getattr(d, name)(u if name in ("icdf", "isf") else d.icdf(u))
        assert value.shape == d.batch_shape
        assert value.isfinite().all()
    for name in PROPERTIES:
        assert getattr(d, name).shape == d.batch_shape
    assert d.entropy().isfinite().all()
    assert d.support.check(d.sample()).all()


@pytest.mark.parametrize("row", OWN, ids=by_name)
def test_pickles(row):
    d = row.build()
    z = d.sample()
    for other in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        torch.testing.assert_close(other.log_prob(z), d.log_prob(z))
        assert repr(other) == repr(d)


@pytest.mark.parametrize("row", UNIVARIATE, ids=by_name)
def test_works_under_vmap(row):
    """All but drawing: construction, densities, tails, moments, and gradients of them."""
    d = row.build()
    arguments = d.parameters
    value = d.sample()

    def ask(arguments, z):
        e = type(d)(**arguments)
        tails = [] if row.lacks else [e.cdf(z), e.log_sf(z), e.icdf(torch.full_like(z, 0.3))]
        return [e.log_prob(z), *tails, e.variance, e.entropy()]

    for mapped, plain in zip(
        torch.func.vmap(ask)(arguments, value), ask(arguments, value), strict=True
    ):
        torch.testing.assert_close(mapped, plain)

    def score(arguments, z):
        return type(d)(**arguments).log_prob(z).sum()

    found = torch.func.vmap(torch.func.grad(score))(arguments, value)
    whole = torch.func.grad(score)(arguments, value)
    for name in arguments:
        torch.testing.assert_close(found[name], whole[name])


@pytest.mark.parametrize("row", PARAMETRIC, ids=by_name)
def test_can_be_traced_into_a_graph(row):
    d = row.build()
    fixed = {"radial": d.radial} if isinstance(d, D.Elliptical) else {}

    def f(*values):
        e = type(d)(**dict(zip(d.parameters, values, strict=True)), **fixed)
        z = e.rsample((3,))
        return z, torch.autograd.grad(e.log_prob(z).sum() + z.sum(), values)

    values = [v.clone().requires_grad_() for v in d.parameters.values()]
    z, slopes = make_fx(f)(*values)(*values)
    assert z.shape == (3, *d.batch_shape, *d.event_shape)
    assert d.support.check(z).all()
    assert all(s.isfinite().all() for s in slopes)


@pytest.mark.parametrize("row", PARAMETRIC, ids=by_name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_refused_by_name(row, dtype):
    d = row.build()
    name, value = next(iter(d.parameters.items()))
    with pytest.raises(TypeError, match=f"{name}.*{dtype}"):
        type(d)(**{**d.parameters, name: value.to(dtype)})


# -- what a user writes ---------------------------------------------------------------------------


class Sech(D.LocationScale):
    r"""Hyperbolic secant: eps = 2/pi log tan(pi u / 2)."""

    def _noise(self, shape):
        return torch.log(torch.tan(torch.pi / 2 * self._uniform(shape))) * (2 / torch.pi)

    def _noise_log_prob(self, eps):
        return -torch.log(2 * torch.cosh(torch.pi / 2 * eps))


class Lomax(D.InverseCDF):
    arg_constraints = {"scale": constraints.positive, "k": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, scale, k, *, validate_args=None):
        super().__init__(scale=scale, k=k, validate_args=validate_args)

    def icdf(self, u):
        return self.scale * torch.expm1(-torch.log1p(-u) / self.k)

    def _log_prob(self, z):
        return torch.log(self.k / self.scale) - (self.k + 1) * torch.log1p(z / self.scale)


class LogitNormal(D.Composition):
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval
    transform = torch.distributions.SigmoidTransform()

    def __init__(self, loc, scale, *, validate_args=None):
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    def _parts(self):
        return (D.Normal(self.loc, self.scale),)


class BetaPrime(D.Composition):
    arg_constraints = {"a": constraints.positive, "b": constraints.positive}
    support = constraints.positive

    def __init__(self, a, b, *, validate_args=None):
        super().__init__(a=a, b=b, validate_args=validate_args)

    def _parts(self):
        return dist.Gamma(self.a, 1.0), dist.Gamma(self.b, 1.0)

    def _compose(self, x, y):
        return x / y

    def _log_prob(self, z):
        beta = self.a.lgamma() + self.b.lgamma() - (self.a + self.b).lgamma()
        return (self.a - 1) * z.log() - (self.a + self.b) * z.log1p() - beta


USERS = [
    Sech(0.3, torch.tensor([0.5, 2.0])),
    Lomax(torch.tensor([1.0, 2.0]), 3.0),
    LogitNormal(torch.tensor([0.3, -1.0]), 0.8),
    BetaPrime(torch.tensor([2.0, 3.0]), 4.0),
]


@pytest.mark.parametrize("d", USERS, ids=lambda d: type(d).__name__)
def test_a_users_family_keeps_the_contract_unchanged(d):
    check_distribution(d)


def test_a_composition_with_a_transform_has_the_tails_of_its_part():
    d = LogitNormal(0.3, 0.8)
    u = torch.tensor([1e-10, 0.2, 0.9])
    torch.testing.assert_close(d.cdf(d.icdf(u)), u)
    torch.testing.assert_close(d.log_sf(d.isf(u)), u.log())


class Falling(D.Composition):
    arg_constraints = {"rate": constraints.positive}
    support = constraints.less_than(0.0)
    transform = torch.distributions.AffineTransform(0.0, -2.0)

    def __init__(self, rate, *, validate_args=None):
        super().__init__(rate=rate, validate_args=validate_args)

    def _parts(self):
        return (D.Exponential(self.rate),)


def test_a_falling_transform_swaps_the_tails():
    d = Falling(1.5)
    check_distribution(d)
    z = torch.tensor(-3.0)
    torch.testing.assert_close(d.cdf(z), torch.exp(torch.tensor(-1.5 * 1.5)))
    torch.testing.assert_close(d.icdf(d.cdf(z)), z)


@pytest.mark.parametrize("name", ["cdf", "sf", "log_cdf", "log_sf", "icdf", "isf"])
def test_what_a_users_family_lacks_is_said(name):
    with pytest.raises(NotImplementedError, match="BetaPrime does not define"):
        getattr(BetaPrime(2.0, 3.0), name)(torch.tensor(0.5))
    if name != "icdf":
        with pytest.raises(NotImplementedError, match="Lomax does not define"):
            getattr(Lomax(2.0, 3.0), name)(torch.tensor(0.5))
