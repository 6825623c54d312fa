"""Collapse report against closed forms of linear-Gaussian models."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from pyrovae.collapse import collapse_report
from tests.ppca import PPCA
from tests.programs import PROGRAMS


def standard(latent):
    return dist.Normal(torch.zeros(latent), 1.0).to_event(1)


def pair(make, prior=None, latent=2):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(latent) if prior is None else prior)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(x))

    return model, guide


def test_kl_of_a_factorized_guide_is_exact_by_site_and_unit():
    ppca = PPCA.random(latent=3)
    x = ppca.sample(57)
    report = collapse_report(*ppca.programs("wrong"), x, batch_size=10)
    q = ppca.wrong(x).base_dist
    units = kl_divergence(q, dist.Normal(torch.zeros(3), 1.0)).mean(0)
    torch.testing.assert_close(report.kl_per_unit["z"], units, rtol=1e-10, atol=0)
    assert report.kl["z"] == pytest.approx(units.sum().item(), rel=1e-10)
    assert report.total_kl == pytest.approx(report.kl["z"])
    torch.testing.assert_close(report.unit_variance["z"], q.loc.var(0), rtol=1e-10, atol=0)
    assert report.data == 57


def test_kl_of_a_full_covariance_is_exact_and_its_units_are_marginals():
    ppca = PPCA.random()
    x = ppca.sample(40)
    report = collapse_report(*ppca.programs("exact"), x)
    q = ppca.posterior(x)
    prior = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    # torch has no KL between a MultivariateNormal and independent Normals: sampled, with
    # 10 draws of 40 data
    assert report.kl["z"] == pytest.approx(kl_divergence(q, prior).mean().item(), abs=0.4)
    marginal = dist.Normal(q.mean, q.variance.sqrt())
    expected = kl_divergence(marginal, dist.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(report.kl_per_unit["z"], expected, rtol=1e-10, atol=0)


def test_a_latent_that_the_decoder_ignores_is_found():
    W = torch.zeros(5, 3)
    W[:, 0] = 1.0
    ppca = PPCA(W)
    x = ppca.sample(300)
    report = collapse_report(*ppca.programs("exact"), x)
    assert report.active_units == {"z": 1}
    assert report.units == {"z": 3}
    assert report.verdict == "partly collapsed"
    assert report.kl_per_unit["z"][1:].abs().max() < 1e-10
    assert "1 of 3" in report.summary()
    healthy = collapse_report(*PPCA.random(latent=3).programs("exact"), x)
    assert (healthy.verdict, healthy.active_units) == ("healthy", {"z": 3})


def test_the_prior_as_guide_is_collapsed():
    report = collapse_report(*pair(lambda x: standard(2).expand([len(x)])), torch.randn(30, 1))
    assert report.verdict == "collapsed"
    assert report.kl["z"] == 0
    assert report.active_units["z"] == 0
    assert report.mutual_information["z"] == pytest.approx(0, abs=1e-10)
    assert report.marginal_kl["z"] == pytest.approx(0, abs=1e-10)


def test_the_threshold_is_the_callers():
    make = lambda x: dist.Normal(x * torch.tensor([1.0, 0.05]), 0.5).to_event(1)  # noqa: E731
    x = torch.randn(500, 1)
    assert collapse_report(*pair(make), x).active_units["z"] == 1
    assert collapse_report(*pair(make), x, threshold=1e-4).active_units["z"] == 2


def test_medians_stand_in_where_there_is_no_mean():
    x = torch.randn(200, 1)
    make = lambda x: dist.Cauchy(x * torch.tensor([1.0, 0.0]), 0.5).to_event(1)  # noqa: E731
    prior = dist.Cauchy(torch.zeros(2), 1.0).to_event(1)
    report = collapse_report(*pair(make, prior), x, particles=400)
    torch.testing.assert_close(report.unit_variance["z"][0], x.var())
    assert report.active_units["z"] == 1
    assert any("by medians" in note for note in report.notes)
    # no KL of Cauchys in torch: sampled; KL = log of ((s + t)^2 + d^2) / (4 s t)
    # (Chyzak & Nielsen 2019)
    exact = torch.log((1.5**2 + (x * torch.tensor([1.0, 0.0])) ** 2) / 2).mean(0)
    # sd of a log-ratio is below 1 nat: 80 000 draws, 5 sigma = 0.02
    torch.testing.assert_close(report.kl_per_unit["z"], exact, rtol=0, atol=0.02)


def test_a_posterior_that_does_not_factorize_says_so():
    make = lambda x: dist.Dirichlet(1 + x.exp() * torch.tensor([1.0, 2.0]))  # noqa: E731
    prior = dist.Dirichlet(torch.ones(2))
    x = torch.randn(20, 1)
    report = collapse_report(*pair(make, prior), x)
    assert report.kl_per_unit["z"] is None
    assert report.kl["z"] == pytest.approx(kl_divergence(make(x), prior).mean().item())
    assert any("does not factorize" in note for note in report.notes)


def test_means_far_from_zero_keep_their_variance():
    """Two passes: the square of 1e8 has no digits left for a variance of 0.02."""
    x = torch.randn(50, 1)
    slopes = torch.tensor([0.1, 0.2])
    report = collapse_report(*pair(lambda x: dist.Normal(1e8 + slopes * x, 1.0).to_event(1)), x)
    exact = slopes**2 * x.var()
    torch.testing.assert_close(report.unit_variance["z"], exact, rtol=1e-6, atol=0)


def test_a_variance_at_the_threshold_is_active_and_unbiased():
    x = torch.tensor([[-1.0], [1.0]])  # variance 2, of which np.var would make 1
    make = lambda x: dist.Normal(x * torch.tensor([1.0, 0.5]), 1.0).to_event(1)  # noqa: E731
    report = collapse_report(*pair(make), x, threshold=2.0)
    assert report.unit_variance["z"].tolist() == [2.0, 0.5]
    assert report.active_units["z"] == 1


def test_without_mutual_information_nothing_is_said_of_it():
    report = collapse_report(*PPCA.random().programs(), PPCA.random().sample(9), reference=0)
    assert report.mutual_information == report.surgery_gap == {"z": None}
    assert report.cap is None
    assert "exceed" not in report.summary()
    assert "nan" not in report.summary()


def test_one_datum_has_a_kl_and_no_mutual_information():
    ppca = PPCA.random()
    x = ppca.sample(1)
    with pytest.raises(ValueError, match="asked of one datum.*at least 2 data.*reference=0"):
        collapse_report(*ppca.programs("wrong"), x)
    report = collapse_report(*ppca.programs("wrong"), x, reference=0)
    exact = kl_divergence(ppca.wrong(x).base_dist, dist.Normal(torch.zeros(2), 1.0)).sum().item()
    assert report.kl["z"] == pytest.approx(exact, rel=1e-12)
    assert report.active_units["z"] is None
    assert "nan" not in report.summary()


def test_a_model_without_latents_is_not_called_collapsed():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    report = collapse_report(model, lambda x: None, torch.randn(5))
    assert (report.verdict, report.kl, report.total_kl) == ("no latents", {}, 0.0)
    assert report.summary() == "no latents: KL 0.000 nats a datum over 0 data"


def test_the_kl_has_its_standard_error():
    ppca = PPCA.random()
    x = ppca.sample(40)
    report = collapse_report(*ppca.programs("wrong"), x)
    each = kl_divergence(ppca.wrong(x).base_dist, dist.Normal(torch.zeros(2), 1.0)).sum(1)
    assert report.kl_std_error["z"] == pytest.approx((each.std() / 40**0.5).item(), rel=1e-10)


def test_units_of_masked_elements_do_not_count():
    """A third of the entries is missing: the units still add up to the site."""
    present = torch.rand(40, 3) > 0.3

    def model(x):
        with pyro.plate("data", len(x)), pyro.plate("features", 3, dim=-2):
            with pyro.poutine.mask(mask=present.T):
                z = pyro.sample("z", dist.Normal(torch.zeros(3, 1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("features", 3, dim=-2):
            with pyro.poutine.mask(mask=present.T):
                pyro.sample("z", dist.Normal(x.T / 2, 0.7))

    x = torch.randn(40, 3)
    report = collapse_report(model, guide, x)
    each = kl_divergence(dist.Normal(x / 2, 0.7), dist.Normal(0.0, 1.0)) * present
    torch.testing.assert_close(report.kl_per_unit["z"], each.mean(0))
    assert report.kl["z"] == pytest.approx(report.kl_per_unit["z"].sum().item())
    assert report.units["z"] == 3


def test_batches_change_nothing_that_is_analytic():
    ppca = PPCA.random()
    x = ppca.sample(23)
    whole, cut = (collapse_report(*ppca.programs("wrong"), x, batch_size=b) for b in (23, 4))
    torch.testing.assert_close(whole.kl_per_unit, cut.kl_per_unit)
    torch.testing.assert_close(whole.unit_variance, cut.unit_variance)


def test_nothing_moves():
    encoder = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    def make(x):
        return dist.Normal(encoder(x), 1.0).to_event(1)

    x = torch.randn(30, 1)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = torch.get_rng_state()
    report = collapse_report(*pair(make), x)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert encoder.training
    assert encoder[0].weight.grad is None
    assert not report.kl_per_unit["z"].requires_grad
    again = collapse_report(*pair(make), x)
    assert report.kl == again.kl
    assert report.mutual_information == again.mutual_information


@pytest.mark.filterwarnings("ignore:collapse_report. the programs cannot run with a particle")
@pytest.mark.parametrize(
    "program",
    [p for p in PROGRAMS if p.local and p.name != "subsampled_inside"],
    ids=lambda p: p.name,
)
def test_every_local_program_is_reported(program):
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)
    report = collapse_report(model, guide, *args, **kwargs)
    state = report.verdict.removesuffix(", MI saturated at log N")
    assert state in ("healthy", "partly collapsed", "collapsed")
    assert math.isfinite(report.total_kl)
    assert report.summary().startswith(report.verdict)


def test_the_kl_of_a_bottom_up_guide_is_sampled():
    """z1 | z2 ~ N(z2, 1); guide z1 ~ N(x, 1), z2 | z1 ~ N(z1 / 2, 1/2): KL by integration."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(len(x)), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x, 1.0))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0, -0.5] * 20)
    report = collapse_report(model, guide, x, particles=2000)
    # E log q(z1) - E log p(z1 | z2) = -1/2 + E (z1 - z2)^2 / 2, with z1 - z2 = z1 / 2 - noise:
    # (x^2 + 1) / 4 + 1/2
    exact = (-0.5 + ((x**2 + 1) / 4 + 0.5) / 2).mean().item()
    # 120 000 draws of sd about 1: 5 sigma = 0.015
    assert report.kl["z1"] == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(("build", "same"), [("top_down", False), ("with_pyro_module", True)])
def test_draws_are_made_where_a_kl_depends_on_them(build, same):
    """A prior of z1 given z2: its KL is a mean over draws of z2."""
    (program,) = (p for p in PROGRAMS if p.name == build)
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)
    few, many = (
        collapse_report(model, guide, *args, particles=k, reference=0, **kwargs).kl for k in (1, 9)
    )
    assert (few == many) == same


@pytest.mark.parametrize("wide", [False, True], ids=["vectorized", "singly"])
def test_information_has_nothing_to_do_with_the_priors_support(wide):
    """I(x; z) of z = x + noise is log(2) / 2; false alarms at 4 standard errors: 6e-5."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(1), 1.0).to_event(1))
            loc = z.reshape(len(x)) if wide else z.squeeze(-1)  # the first carries no particles
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None], 1.0).to_event(1))

    x = torch.randn(600, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*particle dimension on the left")
        found = collapse_report(model, guide, x)
    error = found.mutual_information_std_error["z"]
    assert abs(found.mutual_information["z"] - math.log(2) / 2) < 4 * error < 0.2
    assert found.kl["z"] == found.marginal_kl["z"] == math.inf


def test_options_are_checked():
    with pytest.raises(ValueError, match="particles must be at least 1"):
        collapse_report(*PPCA.random().programs(), torch.zeros(3, 5), particles=0)
    for option, message in (
        ({"reference": 1}, "reference must be 0 .no mutual information. or at least 2, got 1"),
        ({"reference": -2}, "got -2"),
        ({"threshold": 0.0}, "threshold must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            collapse_report(*PPCA.random().programs(), torch.zeros(3, 5), **option)
    with pytest.raises(ValueError, match="collapse_report: no data"):
        collapse_report(*PPCA.random().programs(), torch.zeros(0, 5))
