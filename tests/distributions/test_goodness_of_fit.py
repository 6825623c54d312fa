r"""Draws follow the density: for every family, in both formats, with both error rates.

Univariate, by the inequality of Dvoretzky, Kiefer, Wolfowitz (1956) and Massart (1990): the
empirical cdf of n draws leaves the band :math:`\epsilon = \sqrt{\log(2/\alpha)/2n}` around the
true one with probability at most :math:`\alpha`, and does not leave it around one that is wrong
by :math:`2\epsilon` somewhere with at most the same probability. Here :math:`\alpha = 10^{-9}`,
n = 10,000, :math:`2\epsilon = 0.065`. Others by Pyro's goodness of fit, false alarm 1e-9; what it
does not miss is tried out: a scale or a concentration that is twice as large. Draws of float32
are judged by the law in float64.
"""

import math

import pytest
import torch
from pyro.distributions.constraints import sphere
from pyro.distributions.testing.gof import auto_goodness_of_fit
from torch.distributions import constraints

from pyrovae import distributions as D
from tests.distributions.table import ROWS

ALPHA = 1e-9
DRAWS = 10_000
BAND = math.sqrt(math.log(2 / ALPHA) / (2 * DRAWS))
F32, F64 = torch.float32, torch.float64


def has_cdf(d):
    try:
        d.cdf(d.sample())
    except NotImplementedError:
        return False
    return True


CDFS = [row for row in ROWS if has_cdf(row.build())]
OTHERS = [row for row in ROWS if row not in CDFS]


def name_of(value):
    return getattr(value, "name", str(value).removeprefix("torch."))


def given(row):
    d = row.build()
    return {name: getattr(d, name) for name in row.arguments}


def neighbours(row):
    """The row's law with one parameter twice as large: those that still are laws."""
    for name, value in given(row).items():
        if not isinstance(value, torch.Tensor):
            continue
        moved = torch.where(value == 0, 1.0, 2 * value)
        try:
            yield row.family(**(given(row) | {name: moved}), validate_args=True)
        except ValueError:
            continue  # its ends have crossed


def distance(levels):
    """How far the empirical cdf of draws is from the law that gives them these levels, at most."""
    n = levels.shape[0]
    levels = levels.sort(0).values
    grid = torch.arange(n, dtype=F64).reshape(-1, *(1,) * (levels.dim() - 1))
    return torch.maximum((levels - grid / n).abs(), (levels - (grid + 1) / n).abs()).amax(0)


@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
@pytest.mark.parametrize("row", CDFS, ids=name_of)
def test_draws_stay_in_the_band_and_leave_that_of_a_neighbour(row, dtype):
    torch.manual_seed(1)
    z = row.build(dtype).sample((DRAWS,)).double()
    d = row.family(**given(row), validate_args=False)  # a rounding may leave a support that moves
    levels = d.cdf(z)
    assert (distance(levels) < BAND).all()
    seen = 0
    for other in neighbours(row):
        other._validate_args = False
        wrong = other.cdf(z)
        far = (wrong - levels).abs().amax(0) > 2 * BAND
        assert (distance(wrong)[far] > BAND).all()
        seen += int(far.sum())
    assert seen


def fits(d, z):
    """Whether Pyro's goodness of fit is not too small; an excess of fit is a misfit too."""
    n, chart = len(z), z[..., :-1] if isinstance(d.support, type(constraints.simplex)) else z
    chart = chart.reshape(n, -1, *chart.shape[1 + len(d.batch_shape) :])
    probs = d.log_prob(z).exp().reshape(n, -1)
    dim = z.shape[-1] - 1 if isinstance(d.support, type(sphere)) else None  # of a surface
    p = [
        float(auto_goodness_of_fit(chart[:, i], probs[:, i], dim=dim))
        for i in range(probs.shape[1])
    ]
    return ALPHA < min(p) and max(p) < 1 - ALPHA


@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
@pytest.mark.parametrize("row", OTHERS, ids=name_of)
def test_draws_fit_the_density_and_not_that_of_a_neighbour(row, dtype):
    torch.manual_seed(1)
    z = row.build(dtype).sample((DRAWS,)).double()
    z = z / z.sum(-1, keepdim=True) if row.family is D.Dirichlet else z
    if isinstance(row.build().support, type(sphere)):
        z = z / z.norm(dim=-1, keepdim=True)
    assert fits(row.build(), z)
    others = list(neighbours(row))
    assert not all(fits(other, z) for other in others) or row.family is D.SphericalUniform
