"""Every kind of support as a prior under NUTS, against quadrature.

A latent z is seen once, x ~ Normal(z, s). The posterior mean by NUTS has to be within 6 standard
errors, from its effective sample size, of the one on a grid (false alarm about 1e-8 each where
the chain has mixed); the seed is fixed.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size

from pyrovae import distributions as D
from pyrovae.distributions import radial


@pytest.fixture(autouse=True)
def _double_and_seeded():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(1)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def drawn(model, samples=250, warmup=100):
    """Return the draws of z."""
    kernel = NUTS(model, max_tree_depth=5)
    mcmc = MCMC(kernel, samples, warmup, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()


def seen(prior, x, scale):
    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, scale).to_event(z.dim()), obs=torch.as_tensor(x))

    return model


def agrees(values, expected):
    """Compare the mean of draws `[n, ...]` with what it should be."""
    ess = effective_sample_size(values.unsqueeze(0), sample_dim=1).clamp(4.0, len(values))
    off = (values.mean(0) - expected).abs() / (values.std(0) / ess.sqrt())
    assert (off < 6).all(), (values.mean(0), expected, ess)


def on_grid(prior, low, high, x, scale, f=lambda z: z):
    """Return the posterior mean of f by the midpoint rule."""
    z = low + (high - low) * (torch.arange(200_000) + 0.5) / 200_000
    weight = torch.softmax(prior.log_prob(z) + dist.Normal(z, scale).log_prob(torch.tensor(x)), 0)
    return (weight * f(z)).sum()


def two_normals():
    return D.Mixture(torch.tensor([0.0, 1.0]), D.Normal(torch.tensor([-1.0, 1.0]), 0.8))


KINDS = {
    "real": (lambda: D.StudentT(4.0, 0.5, 2.0), -40.0, 40.0),
    "positive": (lambda: D.LogNormal(0.0, 1.0), 0.0, 15.0),
    "from zero": (lambda: D.Gamma(2.5, 1.0), 0.0, 30.0),
    "from a parameter": (lambda: D.Pareto(0.5, 2.0), 0.5, 15.0),
    "unit interval": (lambda: D.Kumaraswamy(2.0, 1.5), 0.0, 1.0),
    "interval": (lambda: D.Triangular(-1.0, 0.5, 3.0), -1.0, 3.0),
    "truncated": (lambda: D.Truncated(D.Normal(0.0, 1.0), low=0.5), 0.5, 12.0),
    "mixture": (two_normals, -10.0, 10.0),
}
QUICK = ("real", "from a parameter", "interval")


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_univariate_prior(kind):
    make, low, high = KINDS[kind]
    prior = make()
    z = drawn(seen(prior, 0.9, 0.7))["z"]
    assert prior.support.check(z).all()
    agrees(z, on_grid(prior, low, high, 0.9, 0.7))


@pytest.mark.slow
def test_a_vector_prior():
    """A Gaussian one, whose posterior is known."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    prior = D.Elliptical(torch.zeros(2), radial.Normal(), scale_tril=torch.linalg.cholesky(cov))
    x = torch.tensor([1.0, -0.5])
    z = drawn(seen(prior, x, 0.7))["z"]
    agrees(z, cov @ torch.linalg.solve(cov + 0.49 * torch.eye(2), x))


@pytest.mark.slow
def test_a_prior_on_the_simplex():
    """Counts with a Dirichlet prior, whose posterior is known."""
    a, counts = torch.tensor([1.0, 2.0, 0.7]), torch.tensor([3.0, 1.0, 6.0])

    def model():
        p = pyro.sample("z", D.Dirichlet(a))
        pyro.sample("x", dist.Multinomial(probs=p), obs=counts)

    agrees(drawn(model)["z"], (a + counts) / (a + counts).sum())


def test_a_prior_on_the_circle():
    prior = D.VonMises(0.4, 2.0)
    z = drawn(seen(prior, 0.9, 0.7))["z"]
    agrees(z, on_grid(prior, -math.pi, math.pi, 0.9, 0.7))


def test_a_prior_on_the_sphere_is_refused_by_pyro():
    """No bijection goes from a plane to a sphere; what to do instead is in the docstring."""
    up = torch.tensor([0.0, 0.0, 1.0])
    with pytest.raises(NotImplementedError, match="Cannot transform _Sphere constraints"):
        drawn(lambda: pyro.sample("z", D.VonMisesFisher(up, 3.0)), 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", [D.VonMisesFisher, D.PowerSpherical])
def test_a_prior_on_the_sphere_as_a_factor(family):
    prior = family(torch.tensor([0.0, 0.6, 0.8]), 3.0)

    def model():
        v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("prior", prior.log_prob(v / v.norm()))

    v = drawn(model, 400)["v"]
    agrees(v / v.norm(dim=-1, keepdim=True), prior.mean)
