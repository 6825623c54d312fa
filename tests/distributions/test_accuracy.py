"""At most 4 excess wrong bits: every family, every method, both formats, no block list.

Parameters are log-uniform over 1e-3..1e3, quantiles 1e-30 to 1 - eps from both ends. TFP's own
limit is 20 bits, with a list of families that are let off.
"""

import mpmath as mp
import numpy as np
import pytest
import scipy.stats as st
import torch

from pyrovae import distributions as D
from tests.distributions import accuracy_of_integrals as integrals
from tests.distributions.accuracy import ORACLES, worst_excess
from tests.distributions.accuracy_of_moments import (
    MOMENTS,
    worst_excess_at,
    worst_excess_of_moments,
)
from tests.distributions.table import ROWS

LIMIT = 4.0
FAMILIES = list(ORACLES)
INTEGRALS = list(integrals.INTEGRALS)
DTYPES = [torch.float32, torch.float64]


def check(worst):
    assert worst
    for name, (bits, inputs, got) in worst.items():
        assert bits <= LIMIT, f"{name} at {inputs}: {got}, {bits:.1f} excess wrong bits"


def test_every_univariate_family_is_here():
    names = {row.family for row in ROWS if not row.build().event_shape}
    assert names <= set(FAMILIES) | set(INTEGRALS) | {D.VonMises}  # its own: test_directional
    assert set(FAMILIES) | set(INTEGRALS) == set(MOMENTS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits(family, dtype):
    check(worst_excess(family, dtype, draws=4, seed=1))


@pytest.mark.parametrize("family", INTEGRALS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits_of_integrals(family, dtype):
    check(integrals.worst_excess(family, dtype, draws=2, seed=1))


@pytest.mark.parametrize("family", list(MOMENTS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits_of_moments(family, dtype):
    check(worst_excess_of_moments(family, dtype, draws=20, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2, 6))
def test_excess_wrong_bits_on_the_full_grid(family, dtype, seed):
    check(worst_excess(family, dtype, draws=50, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("family", INTEGRALS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2, 6))
def test_excess_wrong_bits_of_integrals_on_the_full_grid(family, dtype, seed):
    check(integrals.worst_excess(family, dtype, draws=60, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("family", list(MOMENTS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_excess_wrong_bits_of_moments_on_the_full_grid(family, dtype):
    check(worst_excess_of_moments(family, dtype, draws=1000, seed=2))


POINTS = {
    # nearly all of the mass is nearly at 1: (z - mean)^2 is not to be taken
    D.Kumaraswamy: [(11.5, 0.008), (1e3, 1e-3), (1e3, 1e3), (1e-3, 1e-3), (0.004, 28.0)],
    # a factor of the variance underflows or overflows, and the variance does not
    D.LogNormal: [(-62.25, 4.875), (-579.0, 18.3), (88.5, 0.04)],
    # the variance overflows, the standard deviation does not
    D.Weibull: [(4.8, 0.0516), (0.01, 0.0083)],
}


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_variances_at_points_that_were_wrong(family, dtype):
    check(worst_excess_at(family, dtype, POINTS[family]))


@pytest.mark.parametrize("z", [1e-12, 0.3, 0.4546826347005705, 1.0 + 1e-9, 30.0, 1e12])
@pytest.mark.parametrize(
    "at", [(4.7326765601071985, 442.5943356059312), (900.0, 0.01), (0.01, 900.0)]
)
def test_density_of_f_does_not_lose_log_z(z, at):
    """Through the logit of mz/(mz + n) it had lost 4.2 bits more than explained."""
    d = D.FisherSnedecor(*torch.tensor(at, dtype=torch.float64))
    got = d.log_prob(torch.tensor(z, dtype=torch.float64)).item()
    right, condition = integrals.Point(D.FisherSnedecor, mp.mpf(z), [*map(mp.mpf, at)]).density()
    assert integrals.bits((got - right) / right, condition, 2.0**-52) < 3


QUADRATURE = {
    D.Weibull: lambda s, k: st.weibull_min(k, scale=s),
    D.Rayleigh: lambda s, k: st.rayleigh(scale=s),
    D.Pareto: lambda m, a: st.pareto(a, scale=m),
    D.Gompertz: lambda c, b: st.gompertz(c, scale=1 / b),
    D.Reciprocal: lambda lo, w: st.reciprocal(lo, lo + w),
}


@pytest.mark.parametrize("family", QUADRATURE)
def test_moments_equal_quadrature(family):
    """Against the integral of the quantile function, which no closed form enters."""
    x, w = np.polynomial.legendre.leggauss(400)
    t = np.exp(x * 6 - np.exp(-x * 6))  # E in double-exponential form
    dt = t * (1 + np.exp(-x * 6)) * 6 * w
    for a, b in ((0.7, 4.5), (3.0, 12.0), (0.05, 30.0)):
        d = (
            family(a)
            if family is D.Rayleigh
            else family(a, a + b if family is D.Reciprocal else b)
        )
        z = d.isf(torch.exp(-torch.as_tensor(t))).numpy()
        mass = dt * np.exp(-t)
        mean = (z * mass).sum()
        torch.testing.assert_close(d.mean, torch.tensor(mean), rtol=1e-8, atol=0)
        variance = ((z - mean) ** 2 * mass).sum()
        torch.testing.assert_close(d.variance, torch.tensor(variance), rtol=1e-7, atol=0)
        frozen = QUADRATURE[family](a, b)
        torch.testing.assert_close(d.entropy(), torch.tensor(frozen.entropy()), rtol=1e-6, atol=0)
