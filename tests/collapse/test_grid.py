"""Posterior means on a grid against probabilistic PCA and a posterior known by symmetry."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from tests.ppca import PPCA


@pytest.mark.parametrize("latent", [1, 2])
def test_both_means_and_the_evidence_are_exact_where_they_are_known(latent):
    """The trapezoidal rule has no error to speak of for a Gaussian."""
    ppca = PPCA.random(latent=latent)
    x = ppca.sample(30)
    grid = {"low": -6.0, "high": 6.0, "points": 121, "batch_size": 7}
    found = pv.posterior_means_on_grid(*ppca.programs("wrong", shift=0.5), x, **grid)
    exact = ppca.posterior(x)
    torch.testing.assert_close(found.model_mean, exact.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.guide_mean, ppca.wrong(x, shift=0.5).mean)
    torch.testing.assert_close(found.log_px, ppca.log_px(x), rtol=1e-9, atol=1e-9)
    expected = (0.5 * exact.variance.sqrt()).norm(dim=1)
    torch.testing.assert_close(found.distance, expected, rtol=1e-7, atol=1e-7)
    assert found.at_border.max() < 1e-6


def scalar(posterior, likelihood=lambda z: dist.Normal(z, 0.5), prior=None):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior or dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def test_a_posterior_of_two_modes_has_its_mean_between_them():
    """x = z^2 + noise: p(z|x) is even, its mean 0, and a guide on one mode is a mode away."""
    pair = scalar(lambda x: dist.Normal(x.sqrt(), 0.1), lambda z: dist.Normal(z**2, 0.5))
    x = torch.tensor([1.0, 4.0])
    found = pv.posterior_means_on_grid(*pair, x, low=-5.0, high=5.0)
    torch.testing.assert_close(found.model_mean, torch.zeros(2, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.distance, x.sqrt())


def test_points_outside_the_priors_support_have_no_weight():
    """Exponential prior, x | z ~ Exponential(z): p(z|x) = Gamma(2, 1 + x), mean 2 / (1 + x)."""
    prior = dist.Exponential(torch.tensor(1.0))
    pair = scalar(lambda x: dist.Gamma(2.0, 1 + x), lambda z: dist.Exponential(z), prior)
    x = torch.tensor([0.5, 2.0])
    found = pv.posterior_means_on_grid(*pair, x, low=-1.0, high=29.0, points=30_001)
    # a corner at 0: the error of the rule is of second order in the spacing of 1e-3
    torch.testing.assert_close(found.model_mean[:, 0], 2 / (1 + x), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.guide_mean[:, 0], 2 / (1 + x))
    torch.testing.assert_close(found.log_px, -2 * (1 + x).log(), rtol=1e-5, atol=1e-5)


def test_a_guide_without_a_mean_is_shown_by_its_median():
    found = pv.posterior_means_on_grid(
        *scalar(lambda x: dist.Cauchy(x, 0.3)), torch.tensor([1.0, -2.0]), low=-9.0, high=9.0
    )
    torch.testing.assert_close(found.guide_mean[:, 0], torch.tensor([1.0, -2.0]))


def test_networks_and_random_numbers_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    pair = scalar(lambda x: dist.Normal(net(x[:, None])[:, 0], 1.0))
    x = torch.randn(20)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    pv.posterior_means_on_grid(*pair, x)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training


@pytest.mark.filterwarnings("ignore:posterior_means_on_grid. the programs cannot run")
def test_a_decoder_that_cannot_carry_particles_is_run_point_by_point():
    weight = torch.randn(1, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = (z.reshape(len(x), 1) @ weight).reshape(len(x), 3)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    ppca = PPCA(weight.T, sigma=0.5)
    x = ppca.sample(3)
    found = pv.posterior_means_on_grid(model, guide, x, low=-5.0, high=5.0, points=101)
    torch.testing.assert_close(found.model_mean, ppca.posterior(x).mean, rtol=1e-6, atol=1e-6)


def test_sequences_of_different_lengths_with_a_latent_in_an_lstm():
    tokens = torch.tensor([[1, 2, 3, 4, 0], [0, 6, 6, 6, 6], [5, 5, 0, 2, 2]])
    lengths = torch.tensor([5, 1, 3])
    torch.manual_seed(0)
    options = {"embedding": 6, "hidden": 8, "dropout": 0.0, "init": "torch"}
    vae = pv.models.SequenceVAE(7, 1, **options)
    found = pv.posterior_means_on_grid(vae.model, vae.guide, tokens, lengths, points=401)
    z = torch.linspace(-10, 10, 401)
    log_joint = vae.decode(z.view(-1, 1, 1), 5, lengths).log_prob(tokens)
    log_joint = log_joint + dist.Normal(0.0, 1.0).log_prob(z)[:, None]
    torch.testing.assert_close(found.model_mean[:, 0], (log_joint.softmax(0) * z[:, None]).sum(0))
    torch.testing.assert_close(found.log_px, log_joint.logsumexp(0) + math.log(20 / 400))
    torch.testing.assert_close(found.guide_mean, vae.encode(tokens, lengths).mean)


def test_a_grid_that_is_too_narrow_or_too_coarse_is_not_trusted():
    pair, x = scalar(lambda x: dist.Normal(x, 1.0)), torch.tensor([0.0, 5.0])
    with pytest.warns(UserWarning, match=r"1 of 2 data \(row 1, ...\) reaches beyond the grid"):
        pv.posterior_means_on_grid(*pair, x, low=-4.0, high=4.0)
    with pytest.warns(UserWarning, match="narrower than the grid is fine.*more points"):
        pv.posterior_means_on_grid(*pair, x, low=-20.0, high=20.0, points=21)
    positive = scalar(lambda x: dist.Gamma(2.0 + 0 * x, 1.0), prior=dist.Gamma(2.0, 1.0))
    with pytest.warns(UserWarning, match=r"2 of 2 data \(row 0, ...\) reaches beyond the grid"):
        pv.posterior_means_on_grid(*positive, x, low=-5.0, high=-1.0)


@pytest.mark.parametrize(
    ("latent", "options", "message"),
    [
        (3, {}, "{'z': 3}.*a single site of one or two units"),
        (2, {"low": 1.0, "high": 1.0}, "from 1.0 to 1.0 with 201 points"),
        (2, {"points": 2}, "at least 3 points"),
        (2, {"low": [0.0, 0.0, 0.0]}, r"each of the 2 dimension\(s\)"),
        (2, {"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_grids_that_are_none_are_refused(latent, options, message):
    ppca = PPCA.random(latent=latent)
    with pytest.raises(ValueError, match=message):
        pv.posterior_means_on_grid(*ppca.programs(), ppca.sample(4), **options)
