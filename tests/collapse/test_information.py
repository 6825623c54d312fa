"""Mutual information and marginal KL against closed forms; their errors, bias and cap."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.collapse.information import Draw, log_mixture, operate
from tests.ppca import PPCA

# Every comparison of an estimate allows 4 standard errors: a false alarm in 16 000 each. Seeds are
# fixed, so what passes once passes always.
SIGMAS = 4


# Closed forms on probabilistic PCA --------------------------------------------------------------


def closed_forms(ppca, guide):
    """Average KL, its two parts, and the variance of the means, for a linear-Gaussian guide.

    With q(z|x) = N(A x + b, S) and x ~ N(m, C), q(z) = N(A m + b, A C A' + S) and
    I(x; z) = log det(A C A' + S) / det(S) / 2.
    """
    probe = torch.cat([torch.zeros(1, ppca.features), torch.eye(ppca.features)])
    if guide == "exact":
        q = ppca.posterior(probe)
        loc, noise = q.mean, q.covariance_matrix[0]
    else:
        q = ppca.wrong(probe).base_dist
        loc, noise = q.loc, torch.diag(q.scale[0] ** 2)
    A, b = (loc[1:] - loc[0]).T, loc[0]
    moved = A @ ppca.marginal().covariance_matrix @ A.T
    aggregate = dist.MultivariateNormal(A @ ppca.mean + b, moved + noise)
    prior = dist.MultivariateNormal(torch.zeros(ppca.latent), torch.eye(ppca.latent))
    information = 0.5 * (torch.logdet(moved + noise) - torch.logdet(noise)).item()
    marginal = kl_divergence(aggregate, prior).item()
    return information + marginal, information, marginal, moved.diagonal()


@pytest.mark.parametrize("latent", [1, 2, 3])
@pytest.mark.parametrize("guide", ["exact", "wrong"])
def test_estimates_on_probabilistic_pca_are_the_closed_forms(guide, latent):
    ppca = PPCA.random(latent=latent, sigma=1.5)
    n = 2000
    x = ppca.sample(n)
    kl, information, marginal, variance = closed_forms(ppca, guide)
    report = pv.collapse_report(*ppca.programs(guide), x, reference=n, batch_size=500)
    assert report.reference == n
    for found, error, exact in (
        (report.kl, report.kl_std_error, kl),
        (report.mutual_information, report.mutual_information_std_error, information),
        (report.marginal_kl, report.marginal_kl_std_error, marginal),
        (report.surgery_gap, report.surgery_gap_std_error, 0.0),
    ):
        assert 0 < error["z"] < 0.06
        assert abs(found["z"] - exact) < SIGMAS * error["z"]
    assert report.mutual_information_upper["z"] > report.mutual_information["z"]
    spread = variance * (2 / (n - 1)) ** 0.5  # sd of a Normal sample's variance
    assert ((report.unit_variance["z"] - variance).abs() < SIGMAS * spread).all()
    assert report.active_units["z"] == int((variance > 0.01).sum()) == latent
    assert report.verdict == "healthy"


def channel(scale, n, seed):
    """x ~ N(0, 1), z | x ~ N(x, scale^2): draws and their surgery; I = log(1 + 1/scale^2) / 2."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, generator=rng)
    z = x + scale * torch.randn(n, 1, generator=rng)
    q = dist.Normal(x, scale).to_event(1)
    prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    draw = Draw(q, z, q.log_prob(z), prior.log_prob(z))
    return operate([draw], kl_divergence(q, prior.expand([n])))


def test_standard_errors_are_the_spread_of_the_estimates():
    """100 data sets: the sd of 100 Normal numbers is known to 7 %, four times that is 28 %."""
    found = [channel(0.5, 200, seed) for seed in range(100)]
    for value, error in (
        ("information", "information_error"),
        ("marginal", "marginal_error"),
        ("gap", "gap_error"),
    ):
        spread = torch.tensor([getattr(one, value) for one in found]).std()
        mean = torch.tensor([getattr(one, error) for one in found]).mean()
        assert 0.72 < spread / mean < 1.28, value


@pytest.mark.parametrize(("scale", "n"), [(1.0, 20), (0.5, 100), (0.3, 200)])
def test_the_truth_lies_between_both_estimates(scale, n):
    """On average; 4 standard errors of the mean over 60 data sets."""
    exact = 0.5 * math.log1p(scale**-2)
    found = [channel(scale, n, seed) for seed in range(60)]
    low, high = (
        torch.tensor([getattr(one, name) for one in found]) for name in ("information", "upper")
    )
    assert low.mean() - SIGMAS * low.std() / 60**0.5 < exact
    assert exact < high.mean() + SIGMAS * high.std() / 60**0.5
    assert (low < high).all()


@pytest.mark.parametrize("n", [20, 200])
def test_the_cap_is_reached_flagged_and_never_passed(n):
    """I = 9.2 nats of two sharp units, against log 20 = 3.0 and log 200 = 5.3."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.01).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.01).to_event(1))

    report = pv.collapse_report(model, guide, torch.randn(n, 2))
    assert report.cap == math.log(n)
    assert report.mutual_information["z"] <= math.log(n)
    assert report.mutual_information["z"] > math.log(n) - 0.2
    assert report.saturated == {"z": True}
    assert report.verdict == "healthy, MI saturated at log N"
    assert any(f"of log {n} = {math.log(n):.2f}" in note for note in report.notes)
    assert "MI saturated" in report.summary()
    assert f"cannot exceed log {n} = {math.log(n):.2f}" in report.summary()


def test_few_data_are_said_to_leave_a_range():
    """I = 3.5 nats of 500 data: log 500 is 6.2, but a datum has few neighbours."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 3.0, 0.03))

    report = pv.collapse_report(model, guide, torch.randn(500))
    exact = 0.5 * math.log1p(0.03**-2)
    assert report.saturated == {"z": False}
    (note,) = report.notes
    low, high = report.mutual_information["z"], report.mutual_information_upper["z"]
    assert low < exact < high
    assert f"I(x;z) of 'z' is between {low:.2f} and {min(high, report.kl['z']):.2f}" in note


def test_the_reference_set_may_be_larger_than_a_batch():
    """Batches of 8, whose own cap is log 8 = 2.1 nats, of an I of 2.3."""
    ppca = PPCA(torch.tensor([[1.0]]), sigma=0.1)
    x = ppca.sample(400)
    report = pv.collapse_report(*ppca.programs("exact"), x, batch_size=8)
    exact = closed_forms(ppca, "exact")[1]
    assert exact > math.log(8)
    assert report.mutual_information["z"] == pytest.approx(exact, abs=0.2)  # se 0.04, bias 0.03
    small = pv.collapse_report(*ppca.programs("exact"), x, batch_size=8, reference=50)
    assert (small.reference, small.data) == (50, 400)
    assert small.mutual_information["z"] <= math.log(50)


def test_a_density_that_does_not_fit_its_draws_is_noticed():
    class Wrong(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) + 0.3

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for family, notes in ((dist.Normal, 0), (Wrong, 1)):

        def guide(x, family=family):
            with pyro.plate("data", len(x)):
                pyro.sample("z", family(x / 2, torch.full_like(x, 0.7)))

        report = pv.collapse_report(model, guide, torch.randn(500))
        assert len(report.notes) == notes
        assert report.surgery_gap["z"] == pytest.approx(-0.3 * notes, abs=0.1)
    assert "KL of 'z' is not I(x;z) + KL(q(z)||p): off by -0." in report.notes[0]


# The mixture of all posteriors -----------------------------------------------------------------


def brute(posteriors, z):
    logs = torch.stack([fn.log_prob(z[:, None]) for fn in posteriors], 1).flatten(1)
    return logs.double().logsumexp(1) - math.log(logs.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "family",
    [
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        lambda loc, scale: dist.Laplace(loc, scale).to_event(1),
        lambda loc, scale: dist.MultivariateNormal(loc, torch.diag_embed(scale**2)),
        lambda loc, scale: dist.Normal(loc, 1e-6 * scale).to_event(1),  # too sharp for products
        lambda loc, scale: dist.Normal(1e7 + loc, scale).to_event(1),
    ],
    ids=["Normal", "Laplace", "joint", "sharp", "far off"],
)
def test_the_density_of_the_mixture_is_the_sum(family, dtype, monkeypatch):
    monkeypatch.setattr("pyrovae.collapse.information.ELEMENTS", 37)  # many chunks
    loc = torch.randn(12, 3).to(dtype)
    scale = (0.2 + torch.rand(12, 3)).to(dtype)
    whole = family(loc, scale)
    parts = [family(a, b) for a, b in zip(loc.split(4), scale.split(4), strict=True)]
    z = whole.sample()
    expected = brute([family(loc[i], scale[i]) for i in range(12)], z)
    torch.testing.assert_close(log_mixture(parts, z), expected, rtol=1e-5, atol=1e-5)
    if dtype == torch.float64:
        torch.testing.assert_close(log_mixture(parts, z), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_every_shape_of_event_is_mixed(shape):
    loc = torch.randn(9, *shape)
    q = dist.Normal(loc, 0.5).to_event(len(shape))
    z = q.sample()
    each = [dist.Normal(row, 0.5).to_event(len(shape)) for row in loc]
    torch.testing.assert_close(log_mixture([q], z), brute(each, z))
