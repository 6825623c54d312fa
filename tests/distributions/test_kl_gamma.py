"""KL divergences of the Gamma families against mpmath, quadrature, and draws."""

import mpmath as mp
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import kl_divergence

from pyrovae.distributions import composition as C
from pyrovae.distributions import kl_gamma

F32 = torch.float32


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(60):
        yield


def exact_gamma(a, b, c, d):
    a, b, c, d = map(mp.mpf, (a, b, c, d))
    entropic = (a - c) * mp.digamma(a) - mp.loggamma(a) + mp.loggamma(c)
    return entropic + c * mp.log(b / d) + a * (d / b - 1)


def exact_dirichlet(p, q):
    p, q = [mp.mpf(float(x)) for x in p], [mp.mpf(float(x)) for x in q]
    value = mp.loggamma(sum(p)) - mp.loggamma(sum(q))
    for x, y in zip(p, q, strict=True):
        value += mp.loggamma(y) - mp.loggamma(x)
        value += (x - y) * (mp.digamma(x) - mp.digamma(sum(p)))
    return value


def neighbours(count, seed):
    """Shapes from 1e-3 to 1e6 and others at a relative distance of 1e-7 to 10."""
    rng = np.random.default_rng(seed)
    first = 10 ** rng.uniform(-3, 6, (count, 2))
    step = 10 ** rng.uniform(-7, 1, (count, 1)) * rng.uniform(size=(count, 2))
    return torch.tensor(first), torch.tensor(first * (1 + step))


def test_negative_gamma_kl():
    p = C.Gamma(torch.tensor(1e5, dtype=F32), torch.tensor(1.0, dtype=F32))
    q = C.Gamma(torch.tensor(1e5 + 100, dtype=F32), torch.tensor(1.0, dtype=F32))
    assert float(kl_divergence(p, q)) == pytest.approx(0.0499834, rel=1e-5)


def test_dirichlet_kl_of_many_near_neighbours():
    p = C.Dirichlet(torch.full((50,), 1e3, dtype=F32))
    q = C.Dirichlet(torch.full((50,), 1.001e3, dtype=F32))
    true = exact_dirichlet(p.concentration, q.concentration)
    assert float(kl_divergence(p, q)) == pytest.approx(float(true), rel=1e-6)
    assert true == pytest.approx(1.2e-5, rel=0.03)


def test_gamma_against_mpmath():
    p, q = neighbours(300, 0)
    got = kl_gamma.kl_gamma(p[:, 0], p[:, 1], q[:, 0], q[:, 1])
    back = kl_gamma.kl_gamma(q[:, 0], q[:, 1], p[:, 0], p[:, 1])
    for k in range(len(p)):
        rows = (p[k].tolist(), q[k].tolist())
        assert float(got[k]) == pytest.approx(float(exact_gamma(*rows[0], *rows[1])), rel=1e-11)
        assert float(back[k]) == pytest.approx(float(exact_gamma(*rows[1], *rows[0])), rel=1e-11)


def test_dirichlet_against_mpmath():
    p, q = neighbours(300, 1)
    for first, second in ((p, q), (q, p)):
        got = kl_gamma.kl_dirichlet(first, second)
        for k in range(len(p)):
            true = float(exact_dirichlet(first[k], second[k]))
            assert float(got[k]) == pytest.approx(true, rel=1e-8, abs=1e-17)
    beta = kl_divergence(C.Beta(p[:, 0], p[:, 1]), C.Beta(q[:, 0], q[:, 1]))
    torch.testing.assert_close(beta, kl_gamma.kl_dirichlet(p, q))


def test_never_negative_and_zero_at_home():
    p, q = neighbours(5000, 2)
    q = p * (1 + (q / p - 1) * 1e-8)
    for dtype in (F32, torch.float64):
        a, b = p.to(dtype), q.to(dtype)
        assert (kl_divergence(C.Gamma(a[:, 0], a[:, 1]), C.Gamma(b[:, 0], b[:, 1])) >= 0).all()
        assert (kl_divergence(C.Dirichlet(a), C.Dirichlet(b)) >= 0).all()
        assert (kl_divergence(C.Dirichlet(a), C.Dirichlet(a)) == 0).all()
        assert (kl_divergence(C.Chi2(a[:, 0]), C.Chi2(a[:, 0])) == 0).all()


def test_dispatch_meets_torchs_classes():
    ours, theirs = C.Gamma(2.0, 1.0), dist.Gamma(torch.tensor(3.0), torch.tensor(0.5))
    true = float(exact_gamma(2.0, 1.0, 3.0, 0.5))
    assert float(kl_divergence(ours, theirs)) == pytest.approx(true)
    assert float(kl_divergence(theirs, ours)) == pytest.approx(float(exact_gamma(3, 0.5, 2, 1)))
    assert float(kl_divergence(C.Chi2(4.0), C.Erlang(3, 2.0))) == pytest.approx(
        float(exact_gamma(2, 0.5, 3, 2))
    )
    beta = dist.Beta(torch.tensor(2.0), torch.tensor(3.0))
    assert float(kl_divergence(C.Beta(2.0, 3.0), beta)) == 0
    uniform = dist.Uniform(torch.tensor(0.0), torch.tensor(1.0))
    assert float(kl_divergence(C.Beta(2.0, 3.0), uniform)) == pytest.approx(
        -float(C.Beta(2.0, 3.0).entropy())
    )


@pytest.mark.parametrize(
    ("p", "q", "low", "high"),
    [
        (lambda: C.Gamma(2.5, 1.5), lambda: dist.Exponential(torch.tensor(0.7)), 0, 40),
        (lambda: C.Gamma(2.5, 1.5), lambda: C.LogNormal(0.3, 0.8), 1e-12, 40),
        (lambda: C.Erlang(3, 1.5), lambda: C.Chi2(2.2), 0, 60),
        (lambda: C.Beta(1.5, 3.0), lambda: C.Beta(0.7, 1.1), 0, 1),
        (lambda: C.StudentT(5.0, 0.3, 1.2), lambda: dist.Normal(-0.4, 2.0), -4000, 4000),
        (lambda: C.LogNormal(0.3, 0.5), lambda: C.LogNormal(-0.1, 0.8), 1e-9, 100),
    ],
)
def test_against_quadrature(p, q, low, high):
    p, q = p(), q()

    def integrand(z):
        at = torch.tensor(z)
        score = p.log_prob(at)
        return float(score.exp() * (score - q.log_prob(at)))

    points = [v for v in (-20, -3, 0, 0.5, 1, 3, 10, 30) if low < v < high]
    true, _ = quad(integrand, low, high, limit=400, points=points, epsabs=1e-11, epsrel=1e-11)
    assert float(kl_divergence(p, q)) == pytest.approx(true, abs=1e-8)


def test_student_against_normal_without_variance_is_infinite():
    p = C.StudentT(torch.tensor([1.0, 2.0, 2.1]))
    assert torch.isinf(kl_divergence(p, dist.Normal(0.0, 1.0))).tolist() == [True, True, False]


def test_gradient():
    params = [torch.tensor(v, requires_grad=True) for v in (3.0, 20.0, 0.5, 1.3)]
    assert torch.autograd.gradcheck(kl_gamma.kl_gamma, params)
    p = torch.tensor([0.5, 30.0, 4.0], requires_grad=True)
    q = torch.tensor([0.8, 22.0, 4.5], requires_grad=True)
    assert torch.autograd.gradcheck(kl_gamma.kl_dirichlet, (p, q))


def test_dirichlet_against_draws():
    p = C.Dirichlet(torch.tensor([0.5, 2.0, 7.0]))
    q = C.Dirichlet(torch.tensor([1.5, 1.0, 3.0]))
    x = p.sample((50_000,))
    terms = p.log_prob(x) - q.log_prob(x)
    error = abs(float(terms.mean() - kl_divergence(p, q)))
    assert error < 6.5 * float(terms.std()) / 50_000**0.5
