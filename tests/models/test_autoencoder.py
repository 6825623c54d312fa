import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import MultivariateNormal

import pyrovae as pv
from pyrovae.models import AutoEncoder, CodeModel
from pyrovae.nn import Head, linear

SQUARED = {"likelihood": "normal_fixed", "likelihood_args": {"scale": 1.0}}


def binary(n=40, shape=(4, 4)):
    return torch.bernoulli(torch.full((n, *shape), 0.4))


def small(**options):
    return AutoEncoder((4, 4), 3, hidden=(9, 5), **options)


def squared_objective(x, mean):
    return -0.5 * (x - mean).square().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "made", "normal"])
def test_every_objective_sees_the_likelihood_at_the_code(likelihood):
    x = binary()
    ae = small(likelihood=likelihood)
    expected = ae.decode(ae.encode(x)).log_prob(x).detach()
    for objective in (pv.ELBO(), pv.ELBO(analytic_kl=False, particles=2), pv.IWAE(3)):
        found = objective.per_datum(ae.model, ae.guide, x)
        torch.testing.assert_close(found, expected)
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        found = SVI(ae.model, ae.guide, pyro.optim.Adam({}), loss).evaluate_loss(x)
        torch.testing.assert_close(torch.tensor(-found), expected.sum())
    assert pv.terms(ae.model, ae.guide, x).latents["z"].log_posterior.eq(0).all()


def test_fit_trains_encoder_and_decoder():
    x = binary()
    ae = small()
    before = [p.detach().clone() for p in ae.parameters()]
    run = pv.fit(ae.model, ae.guide, x, epochs=60, optimizer=pv.adam(0.01), progress=False)
    assert all((a != b).any() for a, b in zip(before, ae.parameters(), strict=True))
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 2
    at_code = ae.decode(ae.encode(x)).log_prob(x).mean().item()
    assert run.history[-1]["elbo"] == pytest.approx(at_code, abs=0.1)  # one step earlier


def linear_autoencoder(d, latent):
    """One linear layer on each side, scored by a squared error."""
    loc = Head(latent, pv.distributions.Normal, d, fixed={"scale": 1.0})
    return AutoEncoder(d, latent, encoder=linear(d, latent), decoder=loc)


def test_a_linear_one_finds_the_principal_components():
    """Its best reconstruction is PCA's (Baldi & Hornik 1989), which scikit-learn computes."""
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    x = torch.randn(200, 6) * torch.tensor([3.0, 2.0, 0.3, 0.3, 0.2, 0.1]) @ rotation + 1
    ae = linear_autoencoder(6, 2)
    exact = torch.optim.LBFGS(ae.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        exact.zero_grad()
        loss = pv.ELBO().differentiable_loss(ae.model, ae.guide, x)
        loss.backward()
        return loss

    exact.step(closure)
    pca = PCA(2).fit(x.numpy())
    best = torch.from_numpy(pca.inverse_transform(pca.transform(x.numpy())))
    torch.testing.assert_close(ae.reconstruct(x), best, atol=1e-3, rtol=0)
    found = pv.ELBO().per_datum(ae.model, ae.guide, x).mean()
    torch.testing.assert_close(found, squared_objective(x, best).mean(), atol=1e-6, rtol=0)


def test_what_an_autoencoder_has_not_is_said():
    ae, x = small(), binary()
    with pytest.raises(ValueError, match=r"site 'z' at a single point \(Delta\)"):
        pv.log_evidence(ae.model, ae.guide, x)
    with pytest.raises(NotImplementedError, match=r"no p\(z\).*with_density"):
        ae.sample(3)
    with pytest.raises(NotImplementedError):
        ae.model(x)  # nothing to draw z from


# -- with a density of the codes ------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 3])
def test_the_density_is_scikit_learns(components):
    x = torch.cat([torch.randn(60, 6), 4 + torch.randn(60, 6)])
    ae = linear_autoencoder(6, 2)
    codes = ae.encode(x).detach().numpy()
    found = ae.with_density(x, components, seed=5).prior()
    oracle = GaussianMixture(components, random_state=5).fit(codes)
    z = torch.randn(50, 2)
    expected = torch.from_numpy(oracle.score_samples(z.numpy()))
    torch.testing.assert_close(found.log_prob(z), expected)
    assert found.sample((7,)).shape == (7, 2)


def test_log_evidence_of_a_linear_one_is_exact():
    """Linear decoder, Gaussian codes: p(x) is a Gaussian in closed form, and so is p(z | x).

    Five Monte Carlo standard errors for each of 30 data: a false alarm in 50,000.
    """
    x = torch.randn(300, 4) @ torch.randn(4, 4)
    ae = linear_autoencoder(4, 2)
    pv.fit(ae.model, ae.guide, x, epochs=100, optimizer=pv.adam(0.02), progress=False)
    codes = ae.with_density(x, observation="normal")
    residual = (x - ae.reconstruct(x)).square().mean().sqrt()
    torch.testing.assert_close(codes.noise(), residual)
    run = pv.fit(codes.model, codes.guide, x, epochs=60, optimizer=pv.adam(0.01), progress=False)

    weight, bias = ae.decoder.linear.weight.detach(), ae.decoder.linear.bias.detach()
    prior, noise = codes.prior(), codes.noise().detach()
    cov = weight @ prior.covariance_matrix @ weight.T + noise**2 * torch.eye(4)
    exact = MultivariateNormal(weight @ prior.loc + bias, cov).log_prob(x[:30])
    found = pv.log_evidence(run.model, run.guide, x[:30], particles=4000, seed=0, progress=False)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-9).all()
    assert found.std_error.max() < 0.2
    # the trained posterior has the exact one's covariance
    precision = weight.T @ weight / noise**2 + prior.precision_matrix
    q = codes.encode(x[:30])
    torch.testing.assert_close(
        q.covariance_matrix.mean(0), precision.inverse(), rtol=0.15, atol=1e-3
    )
    report = pv.collapse_report(run.model, run.guide, x)
    assert report.kl["z"] > 1


def test_training_moves_the_posterior_and_the_noise_alone():
    ae = small(**SQUARED)
    x = binary()
    codes = ae.with_density(x, observation="normal")
    owned = dict(codes.named_parameters())
    assert {name.split(".")[0] for name in owned} == {"posterior", "noise"}
    state = {name: value.clone() for name, value in codes.state_dict().items()}
    kept = {name: p.detach().clone() for name, p in ae.named_parameters()}
    pv.fit(codes.model, codes.guide, x, epochs=3, progress=False)
    after = codes.state_dict()
    moved = {name for name in state if not torch.equal(state[name], after[name])}
    assert moved == set(owned)
    assert all(torch.equal(kept[name], p) for name, p in ae.named_parameters())
    assert all(p.requires_grad for p in ae.parameters())


def test_frozen_networks_stay_in_evaluation_mode():
    """BatchNorm's statistics do not move, and a code does not depend on its batch."""
    x = binary()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    ae = small(encoder=encoder).train()
    codes = ae.with_density(x, observation="normal")
    assert torch.equal(encoder[2].running_mean, torch.zeros(3))  # construction is no training
    pv.fit(codes.model, codes.guide, x, epochs=2, progress=False)
    assert torch.equal(codes.encoder[2].running_mean, torch.zeros(3))
    codes.train()
    torch.testing.assert_close(codes.encode(x[:2]).mean, codes.encode(x).mean[:2])


def test_fitting_raises_the_bound_and_brings_the_posterior_home():
    x = binary(200)
    ae = small()
    pv.fit(ae.model, ae.guide, x, epochs=80, optimizer=pv.adam(0.01), progress=False)
    codes = ae.with_density(x, components=4)
    start = pv.ELBO(particles=20).per_datum(codes.model, codes.guide, x).mean()
    run = pv.fit(codes.model, codes.guide, x, epochs=60, optimizer=pv.adam(0.01), progress=False)
    end = pv.ELBO(particles=20).per_datum(codes.model, codes.guide, x).mean()
    assert end > start + 0.5
    evidence = pv.log_evidence(run.model, run.guide, x, particles=500, seed=0, progress=False)
    assert evidence.mean > end  # a bound from below
    draws = codes.sample(9)
    assert draws.shape == (9, 4, 4)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("components", [1, 4])
def test_saved_runs_come_back(tmp_path, components):
    x = binary()
    ae = small()
    pv.fit(ae.model, ae.guide, x, epochs=2, out=tmp_path / "ae", progress=False)
    codes = ae.with_density(x, components, observation="normal")
    run = pv.fit(codes.model, codes.guide, x, epochs=2, out=tmp_path / "codes", progress=False)
    again = pv.load_run(tmp_path / "ae")
    torch.testing.assert_close(
        pv.ELBO().per_datum(again.model, again.guide, x),
        pv.ELBO().per_datum(ae.model, ae.guide, x),
    )
    loaded = pv.load_run(tmp_path / "codes")
    pair = [pv.log_evidence(r.model, r.guide, x, particles=20, seed=1) for r in (run, loaded)]
    assert torch.equal(pair[0].log_px, pair[1].log_px)


def test_moves_with_its_dtype():
    codes = small().with_density(binary(), 2).float()
    x = binary().float()
    assert pv.ELBO().per_datum(codes.model, codes.guide, x).dtype == torch.float32
    assert codes.sample(2).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoEncoder((4, 4), 0), "must be at least 1"),
        (lambda: AutoEncoder((4, 4), 2, likelihood="gauss"), "unknown likelihood 'gauss'"),
        (lambda: small().model(binary(shape=(3, 3))), 'AutoEncoder, site "x": expected a batch'),
        (lambda: small().reconstruct(binary().float()), "the data are torch.float32"),
        (lambda: small().with_density(binary(), 0), "components must be at least 1"),
        (lambda: small().with_density(binary(), "mixture"), "an integer.*got 'mixture'"),
        (lambda: small().with_density(binary(), 1, observation="gauss"), '"own" or "normal"'),
        (lambda: small().with_density(binary(3), 5), "need at least 5 finite codes, got 3"),
        (
            lambda: small(likelihood="made").with_density(binary(), observation="normal"),
            "needs the mean of the likelihood",
        ),
        (
            lambda: AutoEncoder((4, 4), 2, decoder=nn.Linear(2, 16)).decode(torch.zeros(5, 2)),
            "the decoder returned Tensor, not a distribution",
        ),
        (
            lambda: CodeModel(small(), binary()).model(binary(shape=(3, 3))),
            'CodeModel, site "x": expected a batch',
        ),
    ],
)
def test_mistakes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
