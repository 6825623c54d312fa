import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyrovae.distributions.directional import circle
from pyrovae.nn import bounded_positive, is_circle, squash, unit_vector
from pyrovae.nn.maps import interval_end, safe_map, tril

EXTREME = torch.tensor([-1e30, -104.0, -50.0, -1.0, 0.0, 1.0, 90.0, 1e30], dtype=torch.float32)


def test_bounded_positive_is_exp_near_zero_and_bounded_far_away():
    a = torch.tensor([-1e-3, 0.0, 1e-3], requires_grad=True)
    torch.testing.assert_close(bounded_positive(a), a.exp(), rtol=1e-9, atol=0)
    (g,) = torch.autograd.grad(bounded_positive(a)[1], a)
    assert g[1] == 1
    torch.testing.assert_close(bounded_positive(EXTREME)[[0, -1]].log().double(),
                               torch.tensor([-10.0, 10.0]))  # fmt: skip
    assert (bounded_positive(EXTREME).diff() >= 0).all()


@pytest.mark.parametrize("a", EXTREME.tolist())
def test_normal_log_prob_has_finite_gradients_where_softplus_and_exp_have_not(a):
    raw = torch.tensor(a, dtype=torch.float32, requires_grad=True)
    d = dist.Normal(torch.zeros((), dtype=torch.float32), bounded_positive(raw))
    value = d.log_prob(torch.tensor(1.0, dtype=torch.float32))
    (g,) = torch.autograd.grad(value, raw)
    assert value.isfinite()
    assert g.isfinite()


def test_softplus_does_break_there():
    raw = torch.tensor(-50.0, dtype=torch.float32, requires_grad=True)
    scale = torch.nn.functional.softplus(raw)
    d = dist.Normal(torch.zeros((), dtype=torch.float32), scale)
    value = d.log_prob((0.5 * scale).detach())
    (g,) = torch.autograd.grad(value, raw)
    assert not g.isfinite()


@pytest.mark.parametrize(
    "domain",
    [
        constraints.real,
        constraints.positive,
        constraints.nonnegative,
        constraints.greater_than(2.0),
        constraints.greater_than_eq(torch.tensor(-3.0, dtype=torch.float32)),
        constraints.less_than(1.5),
        constraints.unit_interval,
        constraints.interval(-2.0, 5.0),
        constraints.interval(0.0, 8.0),
        constraints.half_open_interval(0.0, 3.0),
        constraints.simplex,
        constraints.real_vector,
        constraints.independent(constraints.positive, 1),
        constraints.lower_cholesky,
        dist.constraints.softplus_positive,
        dist.constraints.softplus_lower_cholesky,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_every_map_lands_inside_its_domain_with_finite_gradients(domain, size):
    shape, to = safe_map(domain, 4)
    raw = (torch.randn(50, *shape, dtype=torch.float32) * size).requires_grad_()
    value = to(raw, {})
    assert domain.check(value).all()
    assert value.shape[1:] == (torch.Size([4] * domain.event_dim))
    (g,) = torch.autograd.grad(value.sum(), raw)
    assert g.isfinite().all()
    if not isinstance(domain, type(constraints.real)) and domain.event_dim == 0:
        for end in ("lower_bound", "upper_bound"):
            if size <= 1 and hasattr(domain, end):
                assert (value != getattr(domain, end)).all()


def test_where_interval_maps_start():
    zero = torch.zeros((), requires_grad=True)
    for domain, start, slope in (
        (constraints.unit_interval, 0.5, 0.25),
        (constraints.interval(-40.0, 40.0), 0.0, 1.0),
        (constraints.interval(0.0, 8.0), 1.0, 7 / 8),
    ):
        value = safe_map(domain, 0)[1](zero, {})
        torch.testing.assert_close(value.detach(), torch.tensor(start))
        torch.testing.assert_close(torch.autograd.grad(value, zero)[0], torch.tensor(slope))


def test_unknown_constraints_have_no_map():
    assert safe_map(constraints.positive_definite, 3) is None
    assert safe_map(constraints.independent(constraints.boolean, 1), 3) is None


@pytest.mark.parametrize("n", [1, 2, 5])
def test_tril_puts_each_number_in_one_place(n):
    a = torch.randn(3, 7, n * (n + 1) // 2)
    m = tril(a, n)
    rows, columns = torch.tril_indices(n, n, -1)
    torch.testing.assert_close(m[..., rows, columns], a[..., n:])
    torch.testing.assert_close(m.diagonal(dim1=-1, dim2=-2), bounded_positive(a[..., :n]))
    assert m.triu(1).eq(0).all()


@pytest.mark.parametrize("domain", [constraints.unit_interval, constraints.dependent])
def test_intervals_nest(domain):
    a, b = torch.randn(2, 1000) * 20
    low = interval_end("low", domain)(a, {})
    high = interval_end("high", domain)(b, {"low": low})
    assert (low < high).all()
    if domain is constraints.unit_interval:
        assert (low > 0).all()
        assert (high < 1).all()


def test_squash_bound():
    assert squash(torch.tensor(1e9), 3.0) == 3.0


@pytest.mark.parametrize("d", [2, 5])
def test_unit_vectors_are_unit_and_never_lose_their_gradient(d):
    a = torch.cat([torch.randn(50, d), torch.zeros(1, d), torch.full((1, d), 1e-30)])
    a.requires_grad_()
    v = unit_vector(a)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(52))
    (g,) = torch.autograd.grad((v * torch.randn_like(v)).sum(), a)
    assert g.isfinite().all()
    assert (g.abs().sum(-1) > 0).all()
    torch.testing.assert_close(v[:50], a[:50] / a[:50].norm(dim=-1, keepdim=True))


def test_an_angle_goes_around_without_a_jump():
    turn = torch.linspace(-3.0, 3.0, 61)
    a = torch.stack([turn.cos(), turn.sin()], -1) * 2
    shape, to = safe_map(circle, 0)
    assert shape == (2,)
    torch.testing.assert_close(to(a, {}), turn)
    assert is_circle(circle)
    assert not is_circle(constraints.unit_interval)
    assert not is_circle(constraints.interval(-torch.ones(2), torch.ones(2)))


def test_spheres_are_mapped_onto():
    shape, to = safe_map(dist.constraints.sphere, 4)
    assert shape == (4,)
    assert dist.constraints.sphere.check(to(torch.randn(7, 4), {})).all()
