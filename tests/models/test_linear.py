"""Probabilistic PCA and factor analysis against eigenvalues, scikit-learn and dense Gaussians."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI
from sklearn.datasets import load_wine
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis
from torch.distributions import MultivariateNormal

import pyrovae as pv
from pyrovae.models.linear import FactorAnalysis, LinearGuide, ProbabilisticPCA
from tests.ppca import PPCA

BOTH = pytest.mark.parametrize("family", [ProbabilisticPCA, FactorAnalysis])


def wine():
    """178 wines by 13 numbers, standardized."""
    x = torch.from_numpy(load_wine().data)
    return (x - x.mean(0)) / x.std(0, correction=0)


def off_the_start(family, latent=2):
    """A model a few steps away from its random start, with nothing at a special value."""
    model = family(13, latent)
    pv.EM(model).fit(wine() + torch.arange(13.0), 3, tolerance=0)
    return model


@BOTH
def test_log_px_and_posterior_are_those_of_the_joint_gaussian(family):
    x, model = wine() + torch.arange(13.0), off_the_start(family)
    W, psi = model.loadings, model.noise
    marginal = MultivariateNormal(model.loc, W @ W.T + psi.diag())
    assert torch.allclose(model.covariance, marginal.covariance_matrix)
    assert torch.allclose(model.log_px(x), marginal.log_prob(x), rtol=0, atol=1e-9)
    gain = torch.linalg.solve(marginal.covariance_matrix, W).T  # conditioning of the joint
    posterior = model.e_step(x)
    assert torch.allclose(posterior.mean, (x - model.loc) @ gain.T, rtol=0, atol=1e-9)
    covariance = torch.eye(2) - gain @ W
    assert torch.allclose(posterior.covariance_matrix[0], covariance, rtol=0, atol=1e-9)


def test_log_px_keeps_its_digits_when_there_is_hardly_any_noise():
    model = ProbabilisticPCA(3, 1)
    with torch.no_grad():
        model.loadings.copy_(torch.tensor([[1.0], [2.0], [2.0]]))
        model.log_noise.fill_(math.log(1e-10))
    x = torch.tensor([[1.0, 2.0, 2.0]])  # along W, |W|^2 = 9: variance 9 + 1e-10 there
    exact = -0.5 * (3 * math.log(2 * math.pi) + math.log(9 + 1e-10) + 2 * math.log(1e-10) + 1)
    assert abs(model.log_px(x).item() - exact) < 1e-8


@BOTH
def test_the_m_step_is_a_maximum(family):
    """Any move of the parameters lowers E log p(x, z); the posterior is not the model's own."""
    x, model = wine(), off_the_start(family)
    posterior = MultivariateNormal(torch.randn(178, 2), torch.diag(torch.tensor([0.2, 0.7])))
    model.m_step(x, posterior)
    with torch.no_grad():
        best = model.expected_log_joint(x, posterior).sum()
        for parameter in model.parameters():
            for _ in range(20):
                at = parameter.clone()
                parameter += 1e-3 * torch.randn_like(at)
                assert model.expected_log_joint(x, posterior).sum() < best
                parameter.copy_(at)


def test_expected_log_joint_is_the_mean_over_draws():
    """40,000 draws; beyond 5 standard errors once in 10^6 for each of 5 data."""
    x, model = wine()[:5], off_the_start(ProbabilisticPCA)
    posterior = MultivariateNormal(torch.randn(5, 2), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))
    z = posterior.sample((40_000,))
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    joint = model.given(z).log_prob(x) + prior.log_prob(z)
    error = joint.std(0) / 200
    exact = model.expected_log_joint(x, posterior)
    assert ((joint.mean(0) - exact).abs() < 5 * error).all()


# Maxima ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [1, 3])
def test_ppca_em_climbs_to_the_closed_form_maximum(latent):
    x = wine()
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    noise = values[latent:].mean()
    logs = np.log(values[:latent]).sum() + (13 - latent) * np.log(noise)
    maximum = -0.5 * (13 * np.log(2 * np.pi) + logs + 13)  # Tipping & Bishop (1999)

    model = ProbabilisticPCA(13, latent)
    em = pv.EM(model, seed=1).fit(x, 500, tolerance=1e-13)
    assert em.history[0].log_px < maximum - 0.5
    assert abs(em.log_px - maximum) < 1e-9
    assert abs(model.noise[0].item() - noise) < 1e-6
    W = model.loadings.detach().numpy()
    found = np.linalg.eigvalsh(W @ W.T)[::-1][:latent]
    assert np.abs(found - (values[:latent] - noise)).max() < 1e-4  # W up to a rotation

    model.maximize(x)
    assert abs(model.log_px(x).mean().item() - maximum) < 1e-12


def test_factor_analysis_em_ends_where_scikit_learn_does():
    x = wine()
    twin = SklearnFactorAnalysis(2, tol=1e-12, max_iter=5000, svd_method="lapack").fit(x.numpy())
    model = FactorAnalysis(13, 2)
    em = pv.EM(model).fit(x, 1000, tolerance=1e-11)
    assert em.converged
    assert abs(em.log_px - twin.score(x.numpy())) < 1e-8
    assert np.abs(model.covariance.detach().numpy() - twin.get_covariance()).max() < 1e-3
    assert np.abs(model.noise.detach().numpy() - twin.noise_variance_).max() < 1e-3


@BOTH
@pytest.mark.parametrize("latent", [1, 4])
def test_log_px_never_falls_over_200_iterations(family, latent):
    x = wine()
    em = pv.EM(family(13, latent)).fit(x, 200, tolerance=0.0)
    totals = np.array([178 * step.log_px for step in em.history])
    assert np.diff(totals).min() > -1e-10  # all data together
    assert totals[-1] > totals[0] + 100


def test_a_feature_explained_wholly_ends_at_min_noise():
    """Two copies of a feature: factor analysis explains them without noise (Heywood)."""
    x = wine()[:, [0, 0, 1, 2]]
    model = FactorAnalysis(4, 1, min_noise=1e-6)
    em = pv.EM(model).fit(x, 300, tolerance=0)
    assert em.history[-1].log_px > em.history[0].log_px
    assert model.noise.min() >= 0.99e-6
    assert model.noise[:2].max() < 1e-2


def test_constant_features_and_as_many_latents_as_features():
    x = torch.cat([wine()[:, :2], torch.full((178, 1), 3.0)], 1)
    for family in (ProbabilisticPCA, FactorAnalysis):
        em = pv.EM(family(3, 3, min_noise=1e-8), init="pca").fit(x, 20)
        assert math.isfinite(em.log_px)


# The programs ----------------------------------------------------------------------------------


@BOTH
def test_with_the_exact_guide_the_sampled_elbo_is_log_px_gradient_included(family):
    x, model = wine() + torch.arange(13.0), off_the_start(family)
    objective = pv.ELBO(analytic_kl=False)
    exact = model.log_px(x)
    drawn = objective.per_datum(model.model, model.guide, x)
    assert torch.allclose(drawn, exact, rtol=0, atol=1e-8)
    params = list(model.parameters())
    loss = objective.differentiable_loss(model.model, model.guide, x)
    wanted = torch.autograd.grad(-exact.sum(), params)
    for ours, theirs in zip(torch.autograd.grad(loss, params), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_the_programs_are_those_of_the_oracle():
    """The same loadings in the plain Pyro programs of tests/ppca.py."""
    oracle = PPCA.random(features=5, latent=2, sigma=0.5)
    x, model = oracle.sample(30), ProbabilisticPCA(5, 2)
    with torch.no_grad():
        model.loadings.copy_(oracle.W)
        model.loc.copy_(oracle.mean)
        model.log_noise.fill_(math.log(0.25))
    assert torch.allclose(model.log_px(x), oracle.log_px(x), rtol=0, atol=1e-10)
    _, wrong = oracle.programs("wrong")
    pyro.set_rng_seed(1)
    ours = pv.terms(model.model, wrong, x, particles=3).log_weights
    pyro.set_rng_seed(1)
    theirs = pv.terms(oracle.programs()[0], wrong, x, particles=3).log_weights
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@BOTH
def test_log_evidence_with_the_exact_guide_has_no_noise(family):
    x, model = wine()[:20] + torch.arange(13.0), off_the_start(family)
    evidence = pv.log_evidence(model.model, model.guide, x, particles=3, seed=0)
    assert torch.allclose(evidence.log_px, model.log_px(x), rtol=0, atol=1e-8)


def test_the_collapse_report_agrees_with_closed_forms():
    """KL of the exact posterior from the prior, and which of two latents is in use."""
    x, model = wine(), ProbabilisticPCA(13, 2)
    model.maximize(x)
    with torch.no_grad():
        model.loadings[:, 0] = 0.0  # nothing left of the first latent
    report = pv.collapse_report(model.model, model.guide, x, reference=0)
    posterior = model.e_step(x)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    kl = torch.distributions.kl_divergence(posterior, prior).mean()
    assert abs(float(report.kl["z"]) - kl.item()) < 1e-8
    assert report.active_units == {"z": 1}


def test_fit_by_gradients_climbs_to_the_closed_form_maximum():
    """With the exact guide, and with a guide that has to learn to be exact."""
    x = wine()
    target = ProbabilisticPCA(13, 2)
    target.maximize(x)
    maximum = target.log_px(x).mean().item()
    for guide in (None, LinearGuide(13, 2)):
        model = ProbabilisticPCA(13, 2)
        model.initialize(x)
        start = model.log_px(x).mean().item()
        pv.fit(
            model.model,
            model.guide if guide is None else guide.guide,
            x,
            objective=pv.ELBO(analytic_kl=guide is not None),
            optimizer=pv.adam(0.03),
            lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.98),
            epochs=150,
            batch_size=178,
            progress=False,
        )
        reached = model.log_px(x).mean().item()
        assert start < maximum - 1.0
        # one noisy draw a step, where the guide is not exact
        short = 1e-2 if guide is None else 0.2 * (maximum - start)
        assert maximum - short < reached <= maximum + 1e-9


def test_svi_trains_it_too():
    x, model = wine(), FactorAnalysis(13, 2)
    model.initialize(x)
    start = model.log_px(x).mean()
    loss = pv.ELBO(analytic_kl=False)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.03}), loss)
    for _ in range(50):
        svi.step(x)
    assert model.log_px(x).mean() > start + 0.5


# Trouble ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 5}, "latent=5 is more than features=4.*Expected.*Try"),
        ({"latent": 0}, "latent must be a whole number of at least 1, got 0.*Try"),
        ({"min_noise": 0.0}, "min_noise must be positive and finite, got 0.0.*Try"),
    ],
)
def test_impossible_models_are_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        family(**{"features": 4, "latent": 2} | change)


@BOTH
def test_data_it_cannot_take_are_refused(family):
    x = wine()
    x[7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"nan at row 7, feature 2 \(1 such in 1 of 178.*Try"):
        pv.EM(family(13, 2)).fit(x)
    with pytest.raises(ValueError, match=r"expected a batch of shape \[B, 12\], got \[178, 13\]"):
        family(12, 2).model(x)
    with pytest.raises(ValueError, match="cannot start by 'kmeans'.*Expected one of 'random'"):
        pv.EM(family(13, 2), init="kmeans").fit(wine())
