import math

import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence

from pyrovae import distributions as D
from pyrovae.distributions import radial
from pyrovae.nn import Head

LAWS = [
    radial.Normal(),
    radial.StudentT(5.0),
    radial.Laplace(),
    radial.Logistic(),
    radial.PowerExponential(0.6),
    radial.PowerExponential(3.0),
]
SHAPES = ["scale_tril", "scale_diag", "low rank"]


def shape(name, d=3):
    generator = torch.Generator().manual_seed(1)
    diagonal = torch.rand(d, generator=generator) + 0.5
    if name == "scale_tril":
        below = torch.randn(d, d, generator=generator).tril(-1)
        return {"scale_tril": below + diagonal.diag()}
    if name == "scale_diag":
        return {"scale_diag": diagonal}
    return {"cov_factor": torch.randn(d, 2, generator=generator), "cov_diag": diagonal}


def law_name(law):
    return type(law).__name__


@pytest.mark.parametrize("spelling", SHAPES)
def test_the_gaussian_and_the_t_equal_scipy(spelling):
    loc, z = torch.randn(3), torch.randn(7, 3) * 4
    d = D.Elliptical(loc, radial.Normal(), **shape(spelling))
    theirs = scipy.stats.multivariate_normal(loc, d.covariance_matrix)
    torch.testing.assert_close(d.log_prob(z), torch.as_tensor(theirs.logpdf(z)))
    torch.testing.assert_close(d.entropy(), torch.tensor(float(theirs.entropy())))
    t = D.Elliptical(loc, radial.StudentT(3.3), **shape(spelling))
    theirs = scipy.stats.multivariate_t(loc, d.covariance_matrix, df=3.3)
    torch.testing.assert_close(t.log_prob(z), torch.as_tensor(theirs.logpdf(z)))
    torch.testing.assert_close(t.entropy(), torch.tensor(float(theirs.entropy())))


@pytest.mark.parametrize(
    ("law", "univariate"),
    [
        (radial.Normal(), D.Normal(0.3, 1.7)),
        (radial.Laplace(), D.Laplace(0.3, 1.7)),
        (radial.Logistic(), D.Logistic(0.3, 1.7)),
        (radial.StudentT(5.0), D.StudentT(5.0, 0.3, 1.7)),
    ],
    ids=["Normal", "Laplace", "Logistic", "StudentT"],
)
def test_in_one_dimension_a_law_is_the_family_of_its_name(law, univariate):
    univariate = D.map_tensors(univariate, torch.Tensor.double)
    d = D.Elliptical(univariate.loc[None], law, scale_diag=univariate.scale[None])
    z = torch.linspace(-9, 9, 11)
    torch.testing.assert_close(d.log_prob(z[:, None]), univariate.log_prob(z))
    torch.testing.assert_close(d.variance[0], univariate.variance)
    torch.testing.assert_close(d.entropy(), univariate.entropy())


@pytest.mark.parametrize("law", LAWS, ids=law_name)
@pytest.mark.parametrize("spelling", SHAPES)
def test_draws_have_the_covariance_entropy_and_scores(law, spelling):
    """6.5 sigma bands around 50,000 draws."""
    d = D.Elliptical(torch.tensor([0.3, -1.0, 4.0]), law, **shape(spelling))
    z, score = d.rsample_and_log_prob((50_000,))
    torch.testing.assert_close(score, d.log_prob(z))
    centred = z - d.loc
    outer = centred[:, :, None] * centred[:, None, :]
    error = outer.std(0) / len(z) ** 0.5
    assert ((outer.mean(0) - d.covariance_matrix).abs() < 6.5 * error).all()
    assert (-score.mean() - d.entropy()).abs() < 6.5 * score.std() / len(z) ** 0.5
    torch.testing.assert_close(d.variance, d.covariance_matrix.diagonal())


@pytest.mark.parametrize("law", LAWS, ids=law_name)
def test_the_radius_has_its_density(law):
    """Kolmogorov-Smirnov against the density integrated on a grid; false alarm 1e-9."""
    d, n = 4, 40_000
    r = law.like(torch.zeros(())).radius(torch.Size((n, d)), torch.zeros(())).sort().values
    grid = torch.cat([torch.linspace(0, 60, 200_001)[1:], torch.logspace(1.79, 6, 4001)])
    log_area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    density = torch.exp(law.like(grid).log_density(grid.square(), d) + log_area) * grid ** (d - 1)
    cdf = torch.cumulative_trapezoid(density, grid)
    assert cdf[-1].item() == pytest.approx(1.0, abs=1e-5)
    at = cdf[torch.searchsorted(grid[1:], r).clamp_max(len(cdf) - 1)]
    off = (at - (torch.arange(n) + 0.5) / n).abs().max()
    assert off < math.sqrt(math.log(2e9) / (2 * n)) + 1e-3


def test_batches_of_shapes_and_of_radial_parameters():
    df = torch.tensor([3.0, 8.0], requires_grad=True)
    d = D.Elliptical(torch.zeros(3), radial.StudentT(df), scale_diag=torch.ones(3))
    assert d.batch_shape == (2,)
    assert d.rsample((5,)).shape == (5, 2, 3)
    e = d.expand([4, 2])
    assert e.radial.df.shape == (4, 2)
    assert e.log_prob(e.rsample()).shape == (4, 2)
    (g,) = torch.autograd.grad(d.rsample((50,)).square().sum(), df)
    assert g.isfinite().all()
    single = D.map_tensors(d, torch.Tensor.float)
    assert single.rsample().dtype == torch.float32
    assert single.radial.df.dtype == torch.float32


def test_a_zero_factor_has_a_gradient():
    """Through eigenvectors it would be NaN: all eigenvalues agree."""
    factor = torch.zeros(3, 2, requires_grad=True)
    d = D.Elliptical(torch.zeros(3), radial.Laplace(), cov_factor=factor, cov_diag=torch.ones(3))
    z = d.rsample((10,))
    (g,) = torch.autograd.grad(z.square().sum() + d.log_prob(z).sum(), factor)
    assert g.isfinite().all()


@pytest.mark.parametrize("law", LAWS, ids=law_name)
def test_the_centre_is_finite_with_finite_gradients(law):
    loc = torch.zeros(3, requires_grad=True)
    d = D.Elliptical(loc, law, scale_diag=torch.ones(3))
    value = d.log_prob(torch.zeros(3))
    assert value.isfinite()
    (g,) = torch.autograd.grad(value, loc)
    assert g.isfinite().all()
    assert (d.log_prob(d.mode) >= d.log_prob(d.sample((100,)))).all()


def test_moments_that_do_not_exist():
    d = D.Elliptical(torch.zeros(2), radial.StudentT(0.9), scale_diag=torch.ones(2))
    assert d.mean.isnan().all()
    assert d.variance.isposinf().all()
    assert kl_divergence(d, D.Normal(torch.zeros(2), 1.0).to_event(1)) == math.inf


def test_a_head_predicts_it():
    head = Head(5, D.Elliptical, 3, fixed={"radial": radial.Laplace()})
    d = head(torch.randn(7, 5))
    assert (d.batch_shape, d.event_shape) == ((7,), (3,))
    assert isinstance(d.radial, radial.Laplace)
    assert Head(5, D.Elliptical, 3)(torch.randn(5)).rsample().shape == (3,)
