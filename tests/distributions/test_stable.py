import math

import mpmath as mp
import pytest
import torch

from pyrovae.distributions import stable
from pyrovae.distributions.special import log_gamma_ratio

CASES = {
    "log1mexp": (lambda x: mp.log(-mp.expm1(-x)), [1e-30, 1e-3, 0.1, 0.69, 0.7, 3.0, 50.0]),
    "minus_log1p": (lambda x: x - mp.log1p(x), [-0.999, -0.5, -0.3, -1e-3, 1e-6, 0.2, 0.5, 1e3]),
    "expm1_minus": (lambda x: mp.expm1(x) - x, [-50.0, -1.0, -0.5, -1e-6, 1e-3, 0.6, 0.8, 20.0]),
    "lgamma1p": (
        lambda x: mp.loggamma(1 + x) + mp.euler * x,
        [-0.9, -0.49, -1e-3, 1e-6, 1e-3, 0.2, 0.49, 0.51, 3.0, 100.0],
    ),
    "harmonic": (
        lambda x: mp.digamma(1 + x) + mp.euler,
        [-0.9, -0.49, -1e-3, 1e-6, 1e-3, 0.2, 0.49, 0.51, 3.0, 100.0],
    ),
    "log_sinhc": (lambda y: mp.log(mp.sinh(y) / y), [-20.0, 1e-5, 0.1, 0.49, 0.51, 5.0, 300.0]),
    "langevin": (lambda y: mp.coth(y) - 1 / y, [-3.0, 1e-6, 0.3, 0.99, 1.01, 8.0, 100.0]),
    "langevin_slope": (
        lambda y: 1 / y**2 - 1 / mp.sinh(y) ** 2,
        [-3.0, 1e-5, 0.3, 0.99, 1.01, 8.0, 100.0],
    ),
    "log_ndtr": (lambda x: mp.log(mp.ncdf(x)), [-100.0, -5.0, -0.5, 0.0, 1.0, 5.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_equals_mpmath_to_a_few_ulps(name, dtype):
    exact, points = CASES[name]
    x = torch.tensor(points, dtype=dtype)
    got = getattr(stable, name)(x).tolist()
    with mp.workdps(50):
        for at, value in zip(x.tolist(), got, strict=True):
            right = exact(mp.mpf(at))
            assert abs(value - right) <= 16 * torch.finfo(dtype).eps * abs(right), at


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right_on_both_sides_of_every_branch(name):
    exact, points = CASES[name]
    x = torch.tensor(points, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(stable, name)(x).sum(), x)
    with mp.workdps(50):
        right = torch.tensor([float(mp.diff(exact, mp.mpf(at))) for at in x.tolist()])
    torch.testing.assert_close(slope, right, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_gamma_ratio_does_not_cancel(dtype):
    for a, b in ((1e-3, 0.5), (0.7, 3.0), (19.0, 0.5), (21.0, 0.5), (1e4, 1.5), (1e7, 0.5)):
        got = log_gamma_ratio(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
        with mp.workdps(50):
            x = mp.mpf(torch.tensor(a, dtype=dtype).item())
            right = mp.loggamma(x + b) - mp.loggamma(x)
        assert got.item() == pytest.approx(float(right), rel=40 * torch.finfo(dtype).eps)


def test_expectations_under_the_exponential_law():
    one = torch.tensor(1.0)
    for f, right in (
        (lambda t: t.log(), -stable.EULER),
        (lambda t: t.log().square(), stable.EULER**2 + math.pi**2 / 6),
        (lambda t: t.sqrt(), math.sqrt(math.pi) / 2),
        (lambda t: t.pow(5), 120.0),
        (lambda t: t.pow(-0.5), math.sqrt(math.pi)),
    ):
        got = stable.exponential_mean(f, one)
        assert got.item() == pytest.approx(right, rel=1e-9)
    assert stable.mean_under_exponential(lambda t: t * t) == pytest.approx(2.0, rel=1e-12)
