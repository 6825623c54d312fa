r"""Probabilistic PCA: the oracle for everything that says "bound", "evidence" or "estimator".

.. math:: z \sim N(0, I_L), \qquad x | z \sim N(W z + m, \sigma^2 I_D)

is linear and Gaussian, so with :math:`M = W^\top W + \sigma^2 I` both the evidence
:math:`x \sim N(m, W W^\top + \sigma^2 I)` and the posterior
:math:`z | x \sim N(M^{-1} W^\top (x - m), \sigma^2 M^{-1})` are closed forms
(Tipping & Bishop 1999). The programs are plain Pyro, with no class of the package in them.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence


class PPCA:
    """Probabilistic PCA with loadings `W` `[D, L]`, noise `sigma`, and `mean` `[D]`."""

    def __init__(self, W: Tensor, sigma: float = 0.5, mean: Tensor | None = None) -> None:
        self.W, self.sigma = W, float(sigma)
        self.mean = torch.zeros_like(W[:, 0]) if mean is None else mean
        self.features, self.latent = W.shape

    @classmethod
    def random(cls, features: int = 5, latent: int = 2, sigma: float = 0.5, seed: int = 0) -> PPCA:
        """Loadings and mean from a seed."""
        rng = torch.Generator().manual_seed(seed)
        W = torch.randn(features, latent, generator=rng)
        return cls(W, sigma, torch.randn(features, generator=rng))

    def sample(self, n: int, seed: int = 1) -> Tensor:
        """`n` data from the model `[n, D]`."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.latent, generator=rng, dtype=self.W.dtype)
        noise = torch.randn(n, self.features, generator=rng, dtype=self.W.dtype)
        return z @ self.W.T + self.mean + self.sigma * noise

    def marginal(self) -> dist.MultivariateNormal:
        """p(x)."""
        eye = torch.eye(self.features, dtype=self.W.dtype)
        return dist.MultivariateNormal(self.mean, self.W @ self.W.T + self.sigma**2 * eye)

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) of each row `[B]`, nats."""
        return self.marginal().log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z|x) of each row, batch `[B]`, event `[L]`."""
        eye = torch.eye(self.latent, dtype=self.W.dtype)
        precision = self.W.T @ self.W + self.sigma**2 * eye
        cov = self.sigma**2 * torch.linalg.inv(precision)
        loc = torch.linalg.solve(precision, self.W.T @ (x - self.mean).T).T
        return dist.MultivariateNormal(loc, (cov + cov.T) / 2)

    def wrong(self, x: Tensor, shift: float = 0.5, widen: float = 1.3) -> dist.Independent:
        """A factorized Normal, off by `shift` posterior sd and `widen` times as wide.

        Its weights are unequal; their variance is finite for two latents and widen > 1.
        """
        exact = self.posterior(x)
        scale = exact.variance.sqrt()
        return dist.Normal(exact.mean + shift * scale, widen * scale).to_event(1)

    def elbo(self, x: Tensor, q: dist.Distribution) -> Tensor:
        """The exact ELBO `[B]` of a Normal q, as log p(x) - KL(q || p(z|x))."""
        base = q.base_dist if isinstance(q, torch.distributions.Independent) else None
        if base is not None:
            q = dist.MultivariateNormal(base.loc, torch.diag_embed(base.scale**2))
        return self.log_px(x) - kl_divergence(q, self.posterior(x))

    def programs(self, guide: str = "exact", **options: float) -> tuple:
        """A plain Pyro `(model, guide)`; `guide` is "exact" or "wrong" (with `shift`, `widen`)."""
        if guide not in ("exact", "wrong"):
            raise ValueError(f'PPCA.programs: guide must be "exact" or "wrong", got {guide!r}.')

        def model(x: Tensor) -> None:
            zero = torch.zeros(self.latent, dtype=self.W.dtype)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
                loc = z @ self.W.T + self.mean
                pyro.sample("x", dist.Normal(loc, self.sigma).to_event(1), obs=x)

        def posterior(x: Tensor) -> None:
            with pyro.plate("data", x.shape[0]):
                q = self.posterior(x) if guide == "exact" else self.wrong(x, **options)
                pyro.sample("z", q)

        return model, posterior
