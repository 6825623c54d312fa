r"""The house's three cases: a guide that cannot reach the prior, or reaches beyond it.

Model: z ~ N(0, 1), x | z ~ N(z, 1), x = 0.5: x ~ N(0, 2), so log p(x) = -1.328; z | x ~ N(0.25,
1/2). A guide on the set S estimates log p(x) + log P(z in S | x):

* Uniform within one posterior standard deviation: -1.328 + log 0.683 = -1.709;
* any Gamma: -1.328 + log P(z > 0 | x) = -1.777.
"""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm

from pyrovae.collapse import collapse_report
from pyrovae.evidence import log_evidence

X = torch.tensor([0.5, 0.5], dtype=torch.float64)
TRUE = norm.logpdf(0.5, scale=2**0.5)


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gamma_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)  # NaN for a negative z


def guide_with(make):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(x))

    return guide


uniform = guide_with(lambda x: dist.Uniform(x / 2 - 0.5**0.5, x / 2 + 0.5**0.5))
gamma = guide_with(lambda x: dist.Gamma(1 + x, 1.0))
normal = guide_with(lambda x: dist.Normal(1.2 + 0 * x, 1.0))


def test_the_truth():
    assert pytest.approx(-1.328, abs=5e-4) == TRUE
    exact = guide_with(lambda x: dist.Normal(x / 2, 0.5**0.5))
    found = log_evidence(normal_model, exact, X, particles=2)
    assert found.log_px[0].item() == pytest.approx(TRUE, abs=1e-10)
    assert found.support == {"z": "equal"}
    assert not found.lower_bound


def test_a_uniform_guide_is_silently_low_and_labelled():
    with pytest.warns(
        UserWarning, match="site 'z': the guide's support is narrower .* only a lower bound"
    ) as caught:
        found = log_evidence(normal_model, uniform, X, particles=100_000, seed=0)
    assert len(caught) == 1
    expected = TRUE + math.log(norm.cdf(1) - norm.cdf(-1))
    assert expected == pytest.approx(-1.709, abs=0.001)
    # false alarm 1e-5
    assert bool(((found.log_px - expected).abs() < 4.5 * found.std_error).all())
    assert found.std_error.max() < 0.002
    assert found.khat.max() < 0.5  # k-hat is happy: it cannot see what is missing
    assert found.support == {"z": "narrower"}
    assert found.lower_bound
    assert "mean log p(x) >= -1.7" in found.summary()
    assert "a lower bound only" in found.summary()
    assert math.isfinite(found.elbo[0])


def test_a_gamma_guide_of_a_normal_prior_is_silently_low_and_labelled():
    with pytest.warns(UserWarning, match="only a lower bound"):
        found = log_evidence(normal_model, gamma, X, particles=100_000, seed=0)
    expected = TRUE + norm.logsf(0, 0.25, 0.5**0.5)
    assert expected == pytest.approx(-1.777, abs=5e-4)
    # false alarm 1e-5
    assert bool(((found.log_px - expected).abs() < 4.5 * found.std_error).all())
    assert found.lower_bound


def test_a_normal_guide_of_a_gamma_prior_has_infinite_kl_and_the_right_evidence():
    found = log_evidence(gamma_model, normal, X, particles=100_000, seed=0)
    right = log_evidence(
        gamma_model, guide_with(lambda x: dist.Gamma(2 + 0 * x, 1.0)), X, particles=100_000, seed=1
    )
    error = (found.std_error**2 + right.std_error**2).sqrt()
    assert bool(((found.log_px - right.log_px).abs() < 4.5 * error).all())
    assert found.support == {"z": "wider"}
    assert not found.lower_bound
    assert bool((found.elbo == -math.inf).all())
    assert "infinite KL" in found.summary()


def test_the_infinity_does_not_wait_for_a_draw_that_shows_it():
    """P(z < 0) = 3e-7 here: no draw falls outside, and KL is infinite all the same."""
    far = guide_with(lambda x: dist.Normal(5 + 0 * x, 1.0))
    assert log_evidence(gamma_model, far, X, particles=10, seed=0).elbo[0].item() == -math.inf
    report = collapse_report(gamma_model, far, X)
    assert report.kl["z"] == math.inf
    assert any("infinite" in note for note in report.notes)


def test_both_at_once_is_a_bound_with_infinite_kl():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    crossing = guide_with(lambda x: dist.Uniform(0.5 + 0 * x, 1.5))
    with pytest.warns(UserWarning, match="only a lower bound"):
        found = log_evidence(model, crossing, X, particles=50_000, seed=0)
    expected = math.log(norm.cdf(0.5) - norm.cdf(0.0))  # over (1/2, 1)
    assert bool(((found.log_px - expected).abs() < 4.5 * found.std_error).all())
    assert found.support == {"z": "crossing"}
    assert found.elbo[0].item() == -math.inf


def test_chunks_do_not_matter_where_draws_fall_outside():
    ours, others = (
        log_evidence(gamma_model, normal, X, particles=300, seed=2, chunk=c) for c in (None, 14)
    )
    torch.testing.assert_close(ours.log_px, others.log_px, rtol=1e-12, atol=0)


def test_equal_supports_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_evidence(normal_model, normal, X, particles=5)
