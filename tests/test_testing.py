"""The contract test must fail where the contract is broken: each wrong family, by its message."""

import ast
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch.distributions import constraints

import pyrovae.testing
from pyrovae.distributions import Exponential, LocationScale, Logistic, Normal, Weibull
from pyrovae.testing import check_distribution


class WrongDensity(Normal):
    def _noise_log_prob(self, eps):
        return super()._noise_log_prob(eps * 1.1)


class WrongDraws(Normal):
    def _noise(self, shape):
        return 1.1 * super()._noise(shape)


class Detached(Normal):
    def _rsample(self, shape):
        return super()._rsample(shape).detach()


class HalfPath(Normal):
    """The gradient of the scale is forgotten."""

    def _rsample(self, shape):
        return self.loc + self.scale.detach() * self._noise(shape)


class LostTail(Logistic):
    def _noise_log_cdf(self, eps):
        return self._noise_cdf(eps).clamp_min(1e-20).log()


class WrongVariance(Logistic):
    def _noise_variance(self):
        return 3.0


class WrongEntropy(Logistic):
    def _noise_entropy(self):
        return 2.1


class WrongMode(Weibull):
    @property
    def mode(self):
        return self.scale * 3


class WrongScore(Normal):
    def rsample_and_log_prob(self, sample_shape=()):
        z, score = super().rsample_and_log_prob(sample_shape)
        return z, score + 0.01


class Outside(Exponential):
    def _rsample(self, shape):
        return super()._rsample(shape) - 0.01


class Unchecked(Normal):
    def _check_parameters(self):
        pass


class Plausible(Exponential):
    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)


class Stuck(Normal):
    def expand(self, batch_shape, _instance=None):
        return self


ONE = torch.tensor([0.5, 1.5])


@pytest.mark.parametrize(
    ("d", "message"),
    [
        (WrongDensity(0.0, ONE), "density|entropy"),
        (WrongDraws(0.0, ONE), "the draws' cdf"),
        (Detached(0.0, ONE), "not differentiable"),
        (HalfPath(0.0, ONE), "pathwise minus score-function"),
        (LostTail(0.0, ONE), r"log_cdf\(icdf\(1e-30\)\)"),
        (WrongVariance(0.0, ONE), "the variance"),
        (WrongEntropy(0.0, ONE), "the entropy"),
        (WrongMode(ONE, 2.0), "above the mode"),
        (WrongScore(0.0, ONE), "score that came with a draw"),
        (Outside(ONE), "outside"),
        (Unchecked(0.0, ONE), "loc = NaN is accepted"),
        (Plausible(ONE), "outside the support not -inf"),
        (Stuck(0.0, ONE), "expand"),
    ],
    ids=lambda d: type(d).__name__ if not isinstance(d, str) else "",
)
def test_what_is_wrong_is_found_and_said(d, message):
    with pytest.raises(AssertionError, match=message):
        check_distribution(d)


class Misnamed(LocationScale):
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def _noise(self, shape):
        return self._normal(shape)

    def _noise_log_prob(self, eps):
        return -0.5 * eps.square() - 0.918938533204672742


def test_a_wrong_oracle_is_said_with_numbers():
    with pytest.raises(AssertionError, match=r"log_prob, against the oracle's logpdf: -.*, not -"):
        check_distribution(Normal(0.0, 1.0), scipy.stats.norm(0.0, 1.01))
    check_distribution(Misnamed(0.0, 1.0), scipy.stats.norm(0.0, 1.0))


def test_the_random_state_is_left_as_it_was():
    state = torch.get_rng_state()
    check_distribution(Normal(0.0, 1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_it_does_not_need_scipy():
    tree = ast.parse(Path(pyrovae.testing.__file__).read_text(encoding="utf-8"))
    lines = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not [line for line in lines if "scipy" in line]
