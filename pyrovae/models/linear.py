r"""Linear Gaussian models: probabilistic PCA and factor analysis, with everything in closed form.

.. math::

    z \sim \mathcal N(0, I_L), \qquad x \mid z \sim \mathcal N(W z + \mu, \Psi), \qquad
    x \sim \mathcal N(\mu, W W^\top + \Psi),

with :math:`\Psi = \sigma^2 I` (probabilistic PCA) or a diagonal of D variances (factor analysis).
The only deep latent-variable model whose posterior is known: with
:math:`M = I + W^\top \Psi^{-1} W`,

.. math::

    p(z \mid x) = \mathcal N(m(x), M^{-1}), \qquad m(x) = M^{-1} W^\top \Psi^{-1} (x - \mu),

and, without a D x D matrix and without cancellation,

.. math::

    \log p(x) = -\tfrac12 \big( D \log 2\pi + \log|\Psi| + \log|M|
    + (x - \mu - W m)^\top \Psi^{-1} (x - \mu - W m) + m^\top m \big).

EM's M-step is a regression of x on z and 1 under the posterior (Rubin & Thayer 1982). For a
posterior with means :math:`m_n` and mean covariance V,

.. math::

    W = S_{xm} (S_{mm} + V)^{-1}, \qquad \mu = \bar x - W \bar m, \qquad
    \psi_d = \tfrac1N \sum_n (x_n - \mu - W m_n)_d^2 + (W V W^\top)_{dd},

where S are covariances over the data; probabilistic PCA takes the mean of :math:`\psi`.

Source: Tipping & Bishop (1999), J. R. Stat. Soc. B 61; Rubin & Thayer (1982), Psychometrika 47.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor, nn

from pyrovae.models.checks import (
    as_count,
    check_batch,
    check_finite,
    check_initial,
    generator_of,
)

__all__ = ["FactorAnalysis", "LinearGuide", "ProbabilisticPCA"]

STARTS = ("random", "pca")
LOG_2PI = math.log(2 * math.pi)


class _LinearGaussian(nn.Module):
    """What both models share: all but how many noise variances there are."""

    def __init__(self, features: int, latent: int, noises: int, min_noise: float) -> None:
        super().__init__()
        who = type(self).__name__
        self.features = as_count(who, "features", features)
        self.latent = as_count(who, "latent", latent)
        if latent > features:
            raise ValueError(
                f"{who}: latent={latent} is more than features={features}. Expected at most as "
                f"many latents as features. Try: latent={features} or fewer."
            )
        if not 0 < min_noise < float("inf"):
            raise ValueError(
                f"{who}: min_noise must be positive and finite, got {min_noise!r}. Try: 1e-12 "
                "times the variance of the data."
            )
        self.min_noise = float(min_noise)
        self.loadings = nn.Parameter(torch.randn(features, latent) / latent**0.5)  # W
        self.loc = nn.Parameter(torch.zeros(features))
        self.log_noise = nn.Parameter(torch.zeros(noises))  # log psi

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        """Run the generative program: draw z from N(0, I), score x by N(W z + loc, noise).

        Args:
            x: a batch of data, `[B, D]`.
        """
        self._check(x)
        pyro.module("linear", self)
        zero = self.loc.new_zeros(self.latent)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", Normal(zero, 1.0).to_event(1))
            return pyro.sample("x", self.given(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Run the exact posterior at the present parameters.

        Args:
            x: a batch of data, `[B, D]`.
        """
        posterior = self.posterior(x)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", posterior)

    # -- their parts ------------------------------------------------------------------------------

    def given(self, z: Tensor) -> Any:
        """Return p(x | z) for latents `[..., L]`, event shape `[D]`."""
        return Normal(z @ self.loadings.T + self.loc, self.noise.sqrt()).to_event(1)

    @property
    def noise(self) -> Tensor:
        """The variances of the noise, `[D]`."""
        return self.log_noise.exp().expand(self.features)

    @property
    def covariance(self) -> Tensor:
        """The covariance of x, `[D, D]`."""
        return self.loadings @ self.loadings.T + self.noise.diag()

    def _precision_factor(self) -> Tensor:
        """The triangular factor of M, the precision of every posterior, `[L, L]`."""
        scaled = self.loadings / self.noise.sqrt()[:, None]
        return torch.linalg.cholesky(torch.eye(self.latent).to(scaled) + scaled.T @ scaled)

    def _posterior_loc(self, centred: Tensor, factor: Tensor) -> Tensor:
        """The posterior means m, `[N, L]`."""
        return torch.cholesky_solve(((centred / self.noise) @ self.loadings).T, factor).T

    # -- closed forms -----------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x), batch shape `[N]`, event shape `[L]`; gradients pass through."""
        self._check(x)
        factor = self._precision_factor()
        loc = self._posterior_loc(x - self.loc, factor)
        covariance = torch.cholesky_inverse(factor)
        return MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance))

    def log_px(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, `[N]`, nats."""
        self._check(x)
        centred, noise, factor = x - self.loc, self.noise, self._precision_factor()
        loc = self._posterior_loc(centred, factor)
        left = centred - loc @ self.loadings.T
        distance = (left.square() / noise).sum(-1) + loc.square().sum(-1)
        log_det = noise.log().sum() + 2 * factor.diagonal().log().sum()
        return -0.5 * (self.features * LOG_2PI + log_det + distance)

    @torch.no_grad()
    def e_step(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x), batch shape `[N]`, event shape `[L]`."""
        return self.posterior(x)

    def expected_log_joint(self, x: Tensor, posterior: Any) -> Tensor:
        """Return E log p(x, z) under any posterior with a mean and a covariance, `[N]`, nats."""
        self._check(x)
        loc, covariance = posterior.mean, posterior.covariance_matrix
        left = (x - self.loc - loc @ self.loadings.T).square() / self.noise
        precision = self.loadings.T @ (self.loadings / self.noise[:, None])
        wobble = (covariance * precision).sum((-2, -1))  # tr(W' Psi^-1 W V)
        log_px_given_z = -0.5 * (self.features * LOG_2PI + self.noise.log().sum())
        log_px_given_z = log_px_given_z - 0.5 * (left.sum(-1) + wobble)
        second = loc.square().sum(-1) + covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        return log_px_given_z - 0.5 * (self.latent * LOG_2PI + second)

    @torch.no_grad()
    def m_step(self, x: Tensor, posterior: Any) -> None:
        """Set the parameters to the maximum of E log p(x, z) under the posterior, in place.

        Raises:
            ValueError: NaN in the data. The parameters are as they were.
        """
        self._check(x)
        loc, spread = posterior.mean, posterior.covariance_matrix.mean(0)
        means = loc - loc.mean(0)
        centred = x - x.mean(0)
        second = means.T @ means / len(x) + spread
        loadings = torch.linalg.solve(second, means.T @ centred / len(x)).T
        left = (centred - means @ loadings.T).square().mean(0)
        noise = left + ((loadings @ spread) * loadings).sum(-1)
        if not bool(noise.isfinite().all()):
            check_finite(type(self).__name__, x)
        self._set(loadings, x.mean(0) - loadings @ loc.mean(0), noise)

    # -- how to start -----------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, how: str = "random", seed: int = 0) -> None:
        """Start the parameters from data `[N, D]`, in place.

        Args:
            x: the data.
            how: "random": Gaussian loadings, half of each feature's variance theirs and half the
                noise's; "pca": the closed form of probabilistic PCA, which is that model's maximum
                and a start for factor analysis.
            seed: of the random loadings.

        Raises:
            ValueError: NaN in the data, an unknown start.
        """
        check_initial(type(self).__name__, how, STARTS)
        self.check(x)
        mean, variance = x.mean(0), x.var(0, correction=0)
        if how == "pca":
            loadings, noise = _principal(x, self.latent)
            self._set(loadings, mean, noise.expand(self.features))
            return
        shape = self.features, self.latent
        noise = torch.randn(shape, generator=generator_of(seed), dtype=x.dtype).to(x.device)
        self._set(noise * (variance[:, None] / (2 * self.latent)).sqrt(), mean, variance / 2)

    @torch.no_grad()
    def _set(self, loadings: Tensor, loc: Tensor, noise: Tensor) -> None:
        self.loadings.copy_(loadings)
        self.loc.copy_(loc)
        if len(self.log_noise) == 1:
            noise = noise.mean(0, keepdim=True)
        self.log_noise.copy_(noise.clamp_min(self.min_noise).log())

    def check(self, x: Tensor) -> None:
        """Raise unless EM can be run on x: finite data `[N, D]`."""
        self._check(x)
        check_finite(type(self).__name__, x)

    def _check(self, x: Tensor) -> None:
        check_batch(type(self).__name__, x, (self.features,), self.loc)

    def extra_repr(self) -> str:
        return f"features={self.features}, latent={self.latent}"


class ProbabilisticPCA(_LinearGaussian):
    r"""Probabilistic PCA: :math:`x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)`.

    `model` and `guide` are Pyro programs; `guide` is the exact posterior, so that the sampled
    ELBO, `pv.ELBO(analytic_kl=False)`, is log p(x) itself, gradient included, without noise.

    Args:
        features: D, numbers a datum.
        latent: L, numbers in z.
        min_noise: the least variance of the noise (nats are infinite at 0).

    Source: Tipping & Bishop (1999), J. R. Stat. Soc. B 61.

    >>> import pyrovae as pv
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    >>> ppca = pv.models.ProbabilisticPCA(features=3, latent=1)
    >>> ppca.maximize(x)  # the closed form
    >>> law = torch.distributions.MultivariateNormal(ppca.loc, ppca.covariance)
    >>> bool(torch.allclose(ppca.log_px(x), law.log_prob(x), atol=1e-4))
    True
    """

    def __init__(self, features: int, latent: int, min_noise: float = 1e-12) -> None:
        super().__init__(features, latent, 1, min_noise)

    @torch.no_grad()
    def maximize(self, x: Tensor) -> None:
        r"""Set the parameters to the maximum of log p(x), in closed form and in place.

        With eigenvalues :math:`\lambda_1 \ge \dots \ge \lambda_D` and eigenvectors U of the
        data's covariance,
        :math:`\sigma^2 = \frac1{D-L} \sum_{d>L} \lambda_d` and
        :math:`W = U_L (\Lambda_L - \sigma^2 I)^{1/2}`.
        """
        self.initialize(x, "pca")


class FactorAnalysis(_LinearGaussian):
    r"""Factor analysis: :math:`x \sim \mathcal N(\mu, W W^\top + \operatorname{diag} \psi)`.

    Probabilistic PCA with a noise of its own for each feature, so that rescaling a feature changes
    nothing else. There is no closed form of the maximum: EM climbs to it.

    Args:
        features: D, numbers a datum.
        latent: L, numbers in z.
        min_noise: the least variance of the noise; where a feature is explained wholly
            (a Heywood case) EM ends there.

    Source: Rubin & Thayer (1982), Psychometrika 47.

    >>> import pyrovae as pv
    >>> fa = pv.models.FactorAnalysis(features=3, latent=1)
    >>> fa.e_step(torch.zeros(5, 3)).mean.shape
    torch.Size([5, 1])
    """

    def __init__(self, features: int, latent: int, min_noise: float = 1e-12) -> None:
        super().__init__(features, latent, features, min_noise)


class LinearGuide(nn.Module):
    r"""A guide that is linear and Gaussian, with parameters of its own to be trained.

    .. math:: q(z \mid x) = \mathcal N(A x + b, L L^\top)

    The exact posterior of either model above is one of these, so variational EM can be exact: the
    gap between ELBO and log p(x) closes where the E-step converges.

    Args:
        features: D, numbers a datum.
        latent: L, numbers in z.

    >>> import pyrovae as pv
    >>> ppca, q = pv.models.ProbabilisticPCA(3, 1), pv.models.LinearGuide(3, 1)
    >>> run = pv.fit(ppca.model, q.guide, torch.zeros(10, 3), epochs=1, progress=False)
    """

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.features = as_count("LinearGuide", "features", features)
        self.latent = as_count("LinearGuide", "latent", latent)
        self.slope = nn.Parameter(torch.zeros(latent, features))  # A
        self.intercept = nn.Parameter(torch.zeros(latent))  # b
        # below the diagonal L itself, on the diagonal its logarithm
        self.raw = nn.Parameter(torch.zeros(latent, latent))

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return q(z | x), batch shape `[N]`, event shape `[L]`."""
        check_batch("LinearGuide", x, (self.features,), self.slope)
        factor = self.raw.tril(-1) + self.raw.diagonal().exp().diag()
        return MultivariateNormal(x @ self.slope.T + self.intercept, scale_tril=factor)

    def guide(self, x: Tensor) -> Tensor:
        """Run the program: z from q(z | x).

        Args:
            x: a batch of data, `[B, D]`.
        """
        pyro.module("guide", self)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


def _principal(x: Tensor, latent: int) -> tuple[Tensor, Tensor]:
    """The closed form of probabilistic PCA: loadings `[D, L]` and the noise variance `[1]`."""
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # ascending
    values = values.clamp_min(0)
    rest, kept = values[: len(values) - latent], values[len(values) - latent :]
    noise = rest.mean() if len(rest) else values.new_zeros(())
    return vectors[:, -latent:] * (kept - noise).clamp_min(0).sqrt(), noise[None]
