import pytest
import scipy.stats
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit

from pyrovae.distributions import LocationScale, Logistic

LOC = torch.tensor([-1.5, 0.0, 3.0])
SCALE = torch.tensor([0.2, 1.0, 40.0])


def oracle():
    return scipy.stats.logistic(LOC.double().numpy(), SCALE.double().numpy())


def points():
    return torch.linspace(-60, 60, 241)[:, None] * SCALE.double() + LOC.double()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("log_prob", "logpdf"),
        ("cdf", "cdf"),
        ("sf", "sf"),
        ("log_cdf", "logcdf"),
        ("log_sf", "logsf"),
    ],
)
def test_logistic_equals_scipy_far_into_the_tails(ours, theirs):
    d = Logistic(LOC.double(), SCALE.double())
    z = points()
    expected = torch.as_tensor(getattr(oracle(), theirs)(z.numpy()))
    torch.testing.assert_close(getattr(d, ours)(z), expected, rtol=1e-11, atol=0)


def test_logistic_quantiles_equal_scipy():
    d = Logistic(LOC.double(), SCALE.double())
    u = torch.tensor([1e-300, 1e-30, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])[:, None]
    for ours, theirs in ((d.icdf, oracle().ppf), (d.isf, oracle().isf)):
        torch.testing.assert_close(ours(u), torch.as_tensor(theirs(u.numpy())), rtol=1e-12, atol=0)
    assert d.icdf(torch.zeros(1, 1)).isneginf().all()
    assert d.icdf(torch.ones(1, 1)).isposinf().all()


def test_logistic_float32_tails():
    d = Logistic(torch.tensor(0.0), torch.tensor(1.0))
    z = torch.tensor([-80.0, -20.0, -5.0, 0.0, 5.0, 20.0, 80.0], dtype=torch.float32)
    exact = Logistic(0.0, 1.0)
    for name in ("cdf", "sf", "log_cdf", "log_sf", "log_prob"):
        f32 = getattr(d, name)(z).double()
        f64 = getattr(exact, name)(z.double())
        torch.testing.assert_close(f32, f64, rtol=2e-6, atol=0)


def test_logistic_moments_equal_scipy():
    d = Logistic(LOC.double(), SCALE.double())
    mean, variance = oracle().stats("mv")
    torch.testing.assert_close(d.mean, torch.as_tensor(mean))
    torch.testing.assert_close(d.variance, torch.as_tensor(variance))
    torch.testing.assert_close(d.entropy(), torch.as_tensor(oracle().entropy()))
    z = d.mode + torch.tensor([[-1e-3], [1e-3]])
    assert (d.log_prob(d.mode) > d.log_prob(z)).all()


def test_logistic_samples_follow_the_density():
    """Chi-square over bins, 3 cases: false alarm rate below 1e-4 in all."""
    d = Logistic(LOC, SCALE)
    z = d.rsample((50_000,))
    for i in range(3):
        p = auto_goodness_of_fit(z[:, i], d.log_prob(z)[:, i].exp())
        assert p > 3e-5


def test_logistic_draws_are_finite_where_uniforms_would_not_be():
    zero, one = torch.zeros((), dtype=torch.float32), torch.ones((), dtype=torch.float32)
    z = Logistic(zero, one).rsample((20_000_000,))
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert z.max() > 12  # a tail of 1e-6 must be there: P(max < 12) < 1e-50
    assert z.min() < -12


class EdgeLogistic(Logistic):
    def _exponential(self, shape):
        draw = torch.zeros(shape, dtype=self.loc.dtype)
        draw[0] = 100.0
        return draw.clamp_min(torch.finfo(self.loc.dtype).tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_exponential_still_gives_a_finite_draw_and_score(dtype):
    d = EdgeLogistic(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype))
    z, score = d.rsample_and_log_prob((3,))
    assert z.isfinite().all()
    assert score.isfinite().all()


def test_gradients_equal_finite_differences_and_hessian_at_the_mode():
    loc = torch.tensor([0.3], requires_grad=True)
    scale = torch.tensor([1.7], requires_grad=True)
    z = torch.tensor([2.0], requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: Logistic(a[0], a[1]).log_prob(a[2]), (loc, scale, z)
    )
    assert torch.autograd.gradcheck(lambda *a: Logistic(a[0], a[1]).cdf(a[2]), (loc, scale, z))
    at = torch.zeros((), requires_grad=True)
    (g,) = torch.autograd.grad(Logistic(0.0, 1.0).log_prob(at), at, create_graph=True)
    (h,) = torch.autograd.grad(g, at)
    torch.testing.assert_close(h, torch.tensor(-0.5))


def test_pathwise_gradient_equals_the_exact_one():
    """d E[z^2] / d scale = 2 scale pi^2 / 3; a 6 sigma band, false alarm 2e-9."""
    scale = torch.tensor(1.3, requires_grad=True)
    n = 200_000
    z = Logistic(0.5, scale).rsample((n,))
    eps = ((z - 0.5) / scale).detach()
    (g,) = torch.autograd.grad(z.square().mean(), scale)
    spread = (2 * (0.5 + scale * eps) * eps).std() / n**0.5
    assert (g - 2 * scale * torch.pi**2 / 3).abs() < 6 * spread


def test_sample_and_score_share_the_noise():
    d = Logistic(LOC.double(), SCALE.double())
    z, score = d.rsample_and_log_prob((100,))
    assert z.shape == score.shape == (100, 3)
    torch.testing.assert_close(score, d.log_prob(z), rtol=1e-9, atol=1e-9)


class Bare(LocationScale):
    def _noise(self, shape):
        return torch.rand(shape)

    def _noise_log_prob(self, eps):
        return torch.zeros_like(eps)


@pytest.mark.parametrize(
    ("ask", "hook"),
    [
        (lambda d: d.cdf(torch.zeros(())), "_noise_cdf"),
        (lambda d: d.sf(torch.zeros(())), "_noise_sf"),
        (lambda d: d.icdf(torch.zeros(())), "_noise_icdf"),
        (lambda d: d.isf(torch.zeros(())), "_noise_isf"),
        (lambda d: d.mean, "_noise_mean"),
        (lambda d: d.variance, "_noise_variance"),
        (lambda d: d.entropy(), "_noise_entropy"),
    ],
)
def test_a_missing_hook_is_named(ask, hook):
    with pytest.raises(NotImplementedError, match=f"Bare does not define {hook}"):
        ask(Bare(0.0, 1.0))
