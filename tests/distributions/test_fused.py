"""The closed forms in one step: the same values and slopes as the plain formula's autograd."""

import pytest
import torch
from torch.autograd import gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import distributions as D
from pyrovae.distributions.fused import PIECE, fused

EASY = {
    D.Exponential: (0.3, 4.0),
    D.Weibull: (0.3, 4.0),
    D.Rayleigh: (0.3, 4.0),
    D.Pareto: (0.5, 4.0),
    D.Gompertz: (0.3, 4.0),
    D.Kumaraswamy: (0.3, 4.0),
    D.Reciprocal: (0.3, 4.0),
    D.Triangular: (0.3, 4.0),
    D.LogNormal: (0.3, 2.0),
    D.Normal: (0.3, 4.0),
    D.Laplace: (0.3, 4.0),
    D.Logistic: (0.3, 4.0),
    D.Cauchy: (0.3, 4.0),
    D.Gumbel: (0.3, 4.0),
}
COUNT = {D.Exponential: 1, D.Rayleigh: 1, D.Triangular: 3}
families = pytest.mark.parametrize("family", EASY, ids=lambda f: f.__name__)


def parameters(family, shape, spread=1.0):
    """Positive numbers within the bounds, each spread by a power; intervals are put in order."""
    low, high = EASY[family]
    n = COUNT.get(family, 2)
    values = low * (high / low) ** (spread * torch.rand(n, *shape))
    if family in (D.Reciprocal, D.Triangular):
        values = values.cumsum(0)
    return [v.requires_grad_() for v in values]


def plain(score, *at):
    """The same function where nothing is fused, by autograd."""
    captured = make_fx(lambda *x: torch.autograd.grad(score(*x).sum(), x))
    return captured(*at)(*at)


def compare(score, at, rtol, atol=1e-300):
    got = torch.autograd.grad(score(*at).sum(), at)
    for ours, true in zip(got, plain(score, *at), strict=True):
        torch.testing.assert_close(ours, true.to(ours.dtype), rtol=rtol, atol=atol)


@families
def test_log_prob_has_the_slopes_of_the_plain_formula(family):
    at = parameters(family, (400,))
    z = family(*at).sample().requires_grad_()

    def score(z, *at):
        return family(*at, validate_args=False).log_prob(z)

    compare(score, [z, *at], rtol=1e-7, atol=1e-9)


@families
def test_log_prob_in_float32_has_the_slopes_of_float64(family):
    at = [p.detach().float().requires_grad_() for p in parameters(family, (400,))]
    z = family(*at).sample().requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (z, *at)]
    narrow = family(*at, validate_args=False).log_prob(z)
    exact = family(*wide[1:], validate_args=False).log_prob(wide[0])
    torch.testing.assert_close(narrow.double(), exact, rtol=2e-5, atol=2e-5)
    got = torch.autograd.grad(narrow.sum(), [z, *at])
    true = torch.autograd.grad(exact.sum(), wide)
    for ours, other in zip(got, true, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", [f for f in EASY if hasattr(f, "_plain_draw")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_draws_have_the_slopes_of_the_plain_formula(family, dtype, spread):
    """From the same noise; with a wide spread some draws are held inside the format."""
    at = [p.detach().to(dtype).requires_grad_() for p in parameters(family, (2000,), spread)]
    rough = dtype == torch.float32

    def draw(*at):
        torch.manual_seed(3)
        return family(*at, validate_args=False).rsample()

    z = draw(*at)
    assert z.isfinite().all()
    got = torch.autograd.grad(z.sum(), at)
    leaves = [p.detach().requires_grad_() for p in at]
    torch.manual_seed(3)
    d = family(*leaves, validate_args=False)
    noise = d._normal if family is D.LogNormal else d._exponential
    noise = d._uniform if isinstance(d, D.Reciprocal | D.Triangular) else noise
    expected = d._plain_draw(noise(torch.Size([2000])))
    torch.testing.assert_close(z, expected, rtol=2e-4 if rough else 1e-9, atol=1e-30)
    for ours, true in zip(got, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert ours.isfinite().all()
        size = true.abs() + z.detach().abs() * 1e-3
        off = (ours - true).abs() / size.clamp_min(1e-30)
        assert off.max() < (2e-3 if rough else 1e-6)


@families
def test_second_derivatives(family):
    at = parameters(family, (3,))
    z = family(*at).sample().requires_grad_()
    assert gradgradcheck(lambda z, *at: family(*at, validate_args=False).log_prob(z), (z, *at))


def test_pieces_and_broadcasting_change_nothing():
    scale, k = torch.rand(5).add(0.5).requires_grad_(), torch.rand(1).add(1.0).requires_grad_()
    d = D.Weibull(scale, k)
    z = d.sample((PIECE,))
    whole = torch.autograd.grad(d.log_prob(z).sum(), (scale, k))
    parts = [torch.autograd.grad(d.log_prob(c).sum(), (scale, k)) for c in z.split(1000)]
    for got, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(got, sum(pieces), rtol=1e-10, atol=0)


def test_a_graph_takes_the_plain_formula_and_vmap_works():
    d = D.Pareto(torch.ones(3, requires_grad=True), 2.0)
    z = d.sample()
    torch.testing.assert_close(torch.vmap(d.log_prob)(z.expand(4, 3))[0], d.log_prob(z))
    slope = torch.func.grad(lambda z: d.log_prob(z).sum())(z)
    leaf = z.requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(d.log_prob(leaf).sum(), leaf)[0])


def test_where_fast_declines_the_plain_formula_answers():
    x = torch.linspace(0.1, 2.0, 7, requires_grad=True)
    value = fused(lambda x: x.log(), lambda needed, x: None, x)
    assert torch.autograd.grad(value.sum(), x)[0].allclose(1 / x)


@pytest.mark.parametrize("first", [True, False])
def test_where_fast_declines_some_pieces_no_slope_is_lost(first):
    """Of x * y, for x up to 1; a slope that is not needed is dropped, a missing one is zero."""

    def fast(needed, x, y):
        return (x * y, y, x) if x.max() < 1 else None

    x = torch.linspace(0.0, 2.0, 4 * PIECE)
    x = (x if first else x.flip(0)).requires_grad_()
    y = torch.rand(4 * PIECE, requires_grad=True)
    for a, b in ((x, y), (x.detach(), y), (x, y.detach())):
        leaves = [v for v in (a, b) if v.requires_grad]
        got = torch.autograd.grad(fused(torch.mul, fast, a, b).sum(), leaves)
        for ours, true in zip(got, torch.autograd.grad((a * b).sum(), leaves), strict=True):
            torch.testing.assert_close(ours, true, rtol=0, atol=0)


def test_a_large_draw_of_which_one_piece_is_beyond_the_format():
    df = torch.full((3 * PIECE,), 0.01, requires_grad=True)
    z = torch.ones(3 * PIECE)
    z[-1] = torch.inf
    (slope,) = torch.autograd.grad(D.StudentT(df, validate_args=False).log_prob(z)[:-1].sum(), df)
    torch.testing.assert_close(slope[:-1], slope[:1].expand(3 * PIECE - 1))


OVERFLOWING = [
    (D.FisherSnedecor, (0.01, 0.01)),
    (D.LogNormal, (0.0, 50.0)),
    (D.StudentT, (0.01,)),
    (D.StudentT, (0.01, 0.0, 1e3)),
    (D.Gamma, (1e-3, 1.0)),
    (D.Beta, (1e-3, 1e-3)),
]


@pytest.mark.parametrize(("family", "at"), OVERFLOWING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_beyond_the_format_keep_finite_gradients(family, at, dtype):
    params = [torch.full((20_000,), v, dtype=dtype, requires_grad=True) for v in at]
    z = family(*params).rsample()
    assert z.isfinite().all()
    for g in torch.autograd.grad(z.sum(), params):
        assert g.isfinite().all()


@pytest.mark.parametrize("family", [D.Gamma, D.Beta, D.StudentT, D.Chi2])
def test_gamma_like_scores_in_float32_equal_float64(family):
    """Concentrations from 1e-2 to 1e4; what rounding the arguments explains is allowed."""
    count = {D.StudentT: 3, D.Chi2: 1}.get(family, 2)
    at = [(10 ** (6 * torch.rand(3000) - 2)).float() for _ in range(count)]
    z = family(*at).sample()
    keep = z.abs() > 1e-25
    if family is D.Beta:
        keep &= z < 0.999
    leaves = [t[keep].requires_grad_() for t in (z, *at)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    score = family(*leaves[1:]).log_prob(leaves[0])
    exact = family(*wide[1:]).log_prob(wide[0])
    slopes = torch.autograd.grad(score.sum(), leaves)
    true = torch.autograd.grad(exact.sum(), wide)
    slack = 1e-6 * (1 + exact.abs() + sum((g * x).abs() for g, x in zip(true, wide, strict=True)))
    assert ((score - exact).abs() < slack).all()
    for got, right in zip(slopes[1:], true[1:], strict=True):
        size = right.abs() + right.abs().median() * 1e-3
        assert ((got - right).abs() / size).median() < 1e-6
