"""A latent class under a network: the sum over classes, by three roads."""

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO

import pyrovae as pv
from pyrovae.models import NeuralMixture

LIKELIHOODS = {
    "bernoulli": ({}, lambda n: torch.randint(0, 2, (n, 2, 3)).double()),
    "binomial": ({"total_count": 4}, lambda n: torch.randint(0, 5, (n, 2, 3)).double()),
    "normal": ({}, lambda n: torch.randn(n, 2, 3)),
    "normal_learned": ({}, lambda n: torch.randn(n, 2, 3)),
}


def small(likelihood="bernoulli", **options):
    torch.manual_seed(1)
    args = LIKELIHOODS[likelihood][0]
    return NeuralMixture(
        (2, 3), 4, (8, 5), likelihood, embedding=3, likelihood_args=args, **options
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("uniform", [True, False])
def test_log_px_trace_enum_and_importance_weights_agree(likelihood, uniform):
    x, mixture = LIKELIHOODS[likelihood][1](7), small(likelihood, uniform=uniform)
    if not uniform:
        with torch.no_grad():
            mixture.logits.copy_(torch.randn(4))
    parts = [
        mixture.decode(torch.tensor(j)).log_prob(x) + mixture.weights[j].log() for j in range(4)
    ]
    exact = torch.stack(parts).logsumexp(0)
    assert torch.allclose(mixture.log_px(x), exact, rtol=0, atol=1e-10)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mixture.model, mixture.guide, x)
    assert torch.allclose(-loss, exact.sum(), rtol=0, atol=1e-9)
    params = list(mixture.parameters())
    wanted = torch.autograd.grad(-mixture.log_px(x).sum(), params)
    for ours, theirs in zip(torch.autograd.grad(loss, params), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)

    evidence = pv.log_evidence(mixture.model, mixture.guide, x, particles=2, seed=0)
    assert torch.allclose(evidence.log_px, exact, rtol=0, atol=1e-9)


def test_fit_and_svi_train_it():
    x = LIKELIHOODS["bernoulli"][1](12).repeat(5, 1, 1)
    by_fit, by_svi = small(data_mean=x.mean(0)), small(data_mean=x.mean(0))
    start = by_fit.log_px(x).mean()
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    run = pv.fit(
        by_fit.model,
        by_fit.guide,
        x,
        objective=loss,
        optimizer=pv.adam(0.02),
        epochs=30,
        batch_size=30,
        progress=False,
    )
    assert by_fit.log_px(x).mean() > start + 0.3
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]
    svi = SVI(by_svi.model, by_svi.guide, pyro.optim.Adam({"lr": 0.02}), loss)
    for _ in range(60):
        svi.step(x)
    assert by_svi.log_px(x).mean() > start + 0.3


def test_rows_are_taken_in_parts_without_a_change(monkeypatch):
    x, mixture = LIKELIHOODS["normal"][1](11), small("normal")
    whole = mixture.log_joint(x)
    monkeypatch.setattr("pyrovae.models.tables.ENTRIES", 50)  # two data at a time
    assert torch.equal(mixture.log_joint(x), whole)


def test_samples_are_data():
    torch.manual_seed(0)
    assert small("binomial").sample(5).shape == (5, 2, 3)


def test_initialize_starts_anew_from_a_seed_and_leaves_the_random_state():
    x, mixture = LIKELIHOODS["bernoulli"][1](5), small()
    state = torch.get_rng_state()
    mixture.initialize(x, seed=3)
    first = [p.detach().clone() for p in mixture.parameters()]
    mixture.initialize(x, seed=4)
    assert any(not torch.equal(a, b) for a, b in zip(first, mixture.parameters(), strict=True))
    mixture.initialize(x, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, mixture.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuralMixture(4, 0), "classes must be a whole number"),
        (lambda: NeuralMixture(4, 2, embedding=0), "embedding must be a whole number"),
        (lambda: NeuralMixture(4, 2, likelihood="poison"), "unknown likelihood 'poison'"),
        (lambda: small().model(torch.zeros(5, 6)), r"expected a batch of shape \[B, 2, 3\]"),
        (lambda: small().initialize(torch.zeros(5, 2, 3), "kmeans"), "cannot start by 'kmeans'"),
        (lambda: small().check(torch.full((5, 2, 3), 0.5)), r"0.5 at row 0.*outside.*Try"),
        (lambda: small().check(torch.full((5, 2, 3), torch.nan)), "nan at row 0.*Try"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_dirichlet_vae_trains():
    """The softer relative of a class: z on the simplex, a mixture's weights for each datum."""
    x = LIKELIHOODS["bernoulli"][1](12).repeat(5, 1, 1)
    torch.manual_seed(0)
    vae = pv.models.VAE((2, 3), 3, 16, posterior="dirichlet", prior="dirichlet(0.8)")
    run = pv.fit(
        vae.model, vae.guide, x, optimizer=pv.adam(0.02), epochs=40, batch_size=30, progress=False
    )
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 0.2
    assert torch.allclose(vae.encode(x).mean.sum(-1), torch.ones(60))
