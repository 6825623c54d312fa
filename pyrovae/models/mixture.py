r"""The Gaussian mixture: a latent class, a Gaussian for each, and everything in closed form.

.. math::

    z \sim \mathrm{Categorical}(\pi_1 \dots \pi_k), \qquad
    x \mid z = j \sim \mathcal N(\mu_j, \Sigma_j), \qquad
    p(x) = \sum_j \pi_j\, \mathcal N(x; \mu_j, \Sigma_j).

It is the case in which EM needs nothing but itself (Dempster, Laird & Rubin 1977): the posterior
is a table of responsibilities :math:`r_{nj} = p(z_n = j \mid x_n)`, and the parameters that
maximize :math:`\sum_n E_{r_n} \log p(x_n, z_n)` are weighted means and covariances. With
:math:`N_j = \sum_n r_{nj}`,

.. math::

    \pi_j = \frac{N_j}{N}, \qquad \mu_j = \frac1{N_j} \sum_n r_{nj} x_n, \qquad
    S_j = \frac1{N_j} \sum_n r_{nj} (x_n - \mu_j)(x_n - \mu_j)^\top,

and :math:`\Sigma_j = S_j + \rho I` (full), :math:`\sum_j \pi_j S_j + \rho I` (tied),
:math:`\operatorname{diag} S_j + \rho I` (diagonal) or
:math:`(\tfrac1D \operatorname{tr} S_j + \rho) I` (spherical).

The ridge :math:`\rho` (`reg_covar`) keeps a class from shrinking onto a single datum, where the
likelihood is infinite. It is scikit-learn's, and it has a meaning: this M-step is the exact
maximum of :math:`\sum_n E_{r_n} \log p(x_n, z_n)` plus the :meth:`~GaussianMixture.penalty`
:math:`-\tfrac\rho2 \sum_j N_j \operatorname{tr} \Sigma_j^{-1}`. With :math:`\rho = 0` EM never
lowers log p(x); with :math:`\rho > 0` it may, by amounts of the order of :math:`\rho`.

Source: Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39; Bishop (2006), section 9.2.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from pyro.distributions import Categorical, MultivariateNormal, Normal
from torch import Tensor, nn

from pyrovae.models.checks import (
    as_count,
    check_batch,
    check_finite,
    check_initial,
    generator_of,
)
from pyrovae.models.tables import LatentClass

__all__ = ["COVARIANCES", "GaussianMixture"]

Covariance = Literal["full", "tied", "diagonal", "spherical"]
COVARIANCES: tuple[Covariance, ...] = ("full", "tied", "diagonal", "spherical")
STARTS = ("kmeans", "data", "random")


class GaussianMixture(LatentClass):
    r"""A mixture of `classes` Gaussians over `features` numbers, as a Pyro program.

    The parameters are free tensors behind maps onto their domains, so that gradients and closed
    forms move the same ones: :math:`\pi` = softmax(`logits`), `loc` as it is, and the triangular
    factor of :math:`\Sigma_j` with its diagonal's logarithm. They start as noise;
    :meth:`initialize` starts them from data.

    `guide` is the exact posterior at the present parameters, without parameters of its own and
    not differentiated. That loses nothing: :math:`\nabla \log p(x) = E_{p(z|x)} \nabla
    \log p(x, z)`. With Pyro's `TraceEnum_ELBO`, which sums over z, value and gradient are exact.

    Args:
        features: D, numbers a datum.
        classes: k.
        covariance: "full", "tied" (one for all classes), "diagonal" or "spherical".
        reg_covar: :math:`\rho`, added to every variance by the M-step, as in scikit-learn.

    Raises:
        ValueError: counts below 1, an unknown covariance, a negative ridge.

    >>> import pyrovae as pv
    >>> x = torch.tensor([[-2.0], [-1.9], [2.0], [2.2]])
    >>> mixture = pv.models.GaussianMixture(features=1, classes=2)
    >>> mixture.initialize(x)
    >>> mixture.e_step(x).probs.round().sum(0).tolist()  # responsibilities [N, k]
    [2.0, 2.0]
    """

    def __init__(
        self,
        features: int,
        classes: int,
        covariance: Covariance = "full",
        reg_covar: float = 1e-6,
    ) -> None:
        super().__init__()
        self.features = as_count("GaussianMixture", "features", features)
        self.classes = as_count("GaussianMixture", "classes", classes)
        if covariance not in COVARIANCES:
            raise ValueError(
                f"GaussianMixture: unknown covariance {covariance!r}. Expected one of "
                f"{', '.join(map(repr, COVARIANCES))}. Try: covariance='full'."
            )
        if not 0 <= reg_covar < float("inf"):
            raise ValueError(
                f"GaussianMixture: reg_covar must be finite and at least 0, got {reg_covar!r}. "
                "Try: 1e-6 times the variance of the data."
            )
        self.covariance, self.reg_covar = covariance, float(reg_covar)
        self.logits = nn.Parameter(torch.zeros(classes))
        self.loc = nn.Parameter(torch.randn(classes, features))
        self.spread: _Spread = {
            "full": lambda: _Triangular(classes, features),
            "tied": lambda: _Triangular(1, features),
            "diagonal": lambda: _Diagonal(classes, features),
            "spherical": lambda: _Diagonal(classes, 1),
        }[covariance]()

    # -- their parts ------------------------------------------------------------------------------

    def given(self, z: Tensor) -> Any:
        """Return p(x | z) for classes z of any shape: that batch shape, event shape `[D]`."""
        return self.spread.around(self.loc[z], z)

    @property
    def covariances(self) -> Tensor:
        """The covariance matrices, `[k, D, D]`, whatever their kind."""
        factor = self.spread.factor(self.features)
        return (factor @ factor.mT).expand(self.classes, -1, -1)

    # -- closed forms -----------------------------------------------------------------------------

    @torch.no_grad()
    def m_step(self, x: Tensor, posterior: Categorical) -> None:
        """Set the parameters to the maximum of E log p(x, z) plus the penalty, in place.

        A class that no datum belongs to keeps its place, at a weight of about 1e-15.

        Raises:
            ValueError: NaN in the data, fewer data than classes, a singular covariance. The
                parameters are as they were.
        """
        self._check(x)
        self._check_enough(x)
        shares = posterior.probs  # [N, k]
        counts = shares.sum(0)
        if not bool(counts.isfinite().all()):
            check_finite("GaussianMixture", x)
        least = 10 * torch.finfo(x.dtype).eps
        empty = counts <= least
        if bool(empty.any()):
            _warn_empty(empty)
        counts = counts.clamp_min(least)
        means = torch.where(empty[:, None], self.loc, shares.T @ x / counts[:, None])
        self.spread.update(x, shares, means, empty, self.reg_covar)
        self.loc.copy_(means)
        self.logits.copy_((counts / counts.sum()).log())

    @torch.no_grad()
    def penalty(self, x: Tensor, posterior: Categorical) -> Tensor:
        r"""Return :math:`-\tfrac\rho2 \sum_j N_j \operatorname{tr} \Sigma_j^{-1}`, nats.

        This is what the M-step maximizes beside E log p(x, z).
        """
        counts = posterior.probs.sum(0)
        return -0.5 * self.reg_covar * (counts * self.spread.inverse_trace(self.features)).sum()

    # -- how to start -----------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, how: str = "kmeans", seed: int = 0) -> None:
        """Start the parameters from data `[N, D]`, in place.

        Args:
            x: the data.
            how: "kmeans": an M-step from the clusters that scikit-learn's KMeans finds; "data":
                means at k different data, all the covariance of the whole data, equal weights;
                "random": an M-step from random responsibilities, as scikit-learn's "random".
            seed: of whatever is random.

        Raises:
            ValueError: NaN in the data, fewer (different) data than classes, an unknown start.
        """
        check_initial("GaussianMixture", how, STARTS)
        self.check(x)
        if how == "random":
            shares = torch.rand(len(x), self.classes, generator=generator_of(seed), dtype=x.dtype)
            self.m_step(x, Categorical(probs=shares.to(x.device)))
        elif how == "kmeans":
            self.m_step(x, Categorical(probs=_clusters(x, self.classes, seed)))
        else:
            distinct = _distinct(x, self.classes)
            everyone = torch.ones(len(x), self.classes).to(x) / self.classes
            self.m_step(x, Categorical(probs=everyone))  # the covariance of all data
            rows = torch.randperm(len(distinct), generator=generator_of(seed))[: self.classes]
            self.loc.copy_(distinct[rows.to(x.device)])

    def check(self, x: Tensor) -> None:
        """Raise unless EM can be run on x: finite data `[N, D]`, at least as many as classes."""
        self._check(x)
        self._check_enough(x)
        check_finite("GaussianMixture", x)

    def _check(self, x: Tensor) -> None:
        check_batch("GaussianMixture", x, (self.features,), self.loc)

    def _check_enough(self, x: Tensor) -> None:
        if len(x) < self.classes:
            raise ValueError(
                f"GaussianMixture: {len(x)} data for {self.classes} classes. Expected at least as "
                f"many data as classes. Try: classes={len(x)} or fewer; more data."
            )

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, classes={self.classes}, "
            f"covariance={self.covariance!r}, reg_covar={self.reg_covar:g}"
        )


# Covariances -----------------------------------------------------------------------------------


class _Spread(nn.Module):
    """The covariances of the classes: parameters, their M-step, and the law around a mean."""

    raw: nn.Parameter

    def around(self, loc: Tensor, z: Tensor) -> Any:
        """The Gaussian of each class of z, batch shape of z, event shape `[D]`."""
        raise NotImplementedError

    def factor(self, features: int) -> Tensor:
        """L with L L^T the covariance, `[k or 1, D, D]`."""
        raise NotImplementedError

    def inverse_trace(self, features: int) -> Tensor:
        """The trace of each inverse covariance, `[k or 1]`."""
        raise NotImplementedError

    def update(self, x: Tensor, shares: Tensor, loc: Tensor, empty: Tensor, ridge: float) -> None:
        """Set the covariances to their maximum given the means, or raise before anything moves."""
        raise NotImplementedError


class _Triangular(_Spread):
    """`Sigma_j = L_j L_j^T`: a row for each class, or a single one for all (tied)."""

    def __init__(self, rows: int, features: int) -> None:
        super().__init__()
        # below the diagonal L itself, on the diagonal its logarithm
        self.raw = nn.Parameter(torch.zeros(rows, features, features))

    def factor(self, features: int) -> Tensor:
        diagonal = self.raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        return self.raw.tril(-1) + diagonal

    def around(self, loc: Tensor, z: Tensor) -> Any:
        factor = self.factor(loc.shape[-1])
        return MultivariateNormal(loc, scale_tril=factor[0] if len(factor) == 1 else factor[z])

    def inverse_trace(self, features: int) -> Tensor:
        eye = torch.eye(features).to(self.raw)
        inverse = torch.linalg.solve_triangular(self.factor(features), eye, upper=False)
        return inverse.square().sum((-2, -1))

    def update(self, x: Tensor, shares: Tensor, loc: Tensor, empty: Tensor, ridge: float) -> None:
        counts = shares.sum(0)
        scatter = torch.stack([_scatter(x - m, r) for m, r in zip(loc, shares.T, strict=True)])
        if len(self.raw) == 1:
            covariance, empty = scatter.sum(0, keepdim=True) / counts.sum(), empty[:1] & False
        else:
            covariance = scatter / counts.clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
        eye = torch.eye(x.shape[-1]).to(x)
        covariance = torch.where(empty[:, None, None], eye, covariance + ridge * eye)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed.any()):
            raise _singular(failed, counts, ridge)
        raw = factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        self.raw.copy_(torch.where(empty[:, None, None], self.raw, raw))


class _Diagonal(_Spread):
    """A variance a class and feature, or one for all features of a class (spherical)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(rows, width))  # log standard deviation

    def factor(self, features: int) -> Tensor:
        return self.raw.exp().expand(-1, features).diag_embed()

    def around(self, loc: Tensor, z: Tensor) -> Any:
        return Normal(loc, self.raw[z].exp()).to_event(1)

    def inverse_trace(self, features: int) -> Tensor:
        return (-2 * self.raw).exp().sum(-1) * (features / self.raw.shape[-1])

    def update(self, x: Tensor, shares: Tensor, loc: Tensor, empty: Tensor, ridge: float) -> None:
        counts = shares.sum(0)
        squares = [r @ (x - m).square() for m, r in zip(loc, shares.T, strict=True)]
        variance = torch.stack(squares) / counts.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
        if self.raw.shape[-1] == 1:
            variance = variance.mean(-1, keepdim=True)
        variance = torch.where(empty[:, None], 1.0, variance + ridge)
        failed = (variance <= 0).any(-1)
        if bool(failed.any()):
            raise _singular(failed, counts, ridge)
        self.raw.copy_(torch.where(empty[:, None], self.raw, variance.log() / 2))


def _scatter(centred: Tensor, shares: Tensor) -> Tensor:
    """Return the weighted sum of outer products, `[D, D]`."""
    return (shares[:, None] * centred).T @ centred


def _singular(failed: Tensor, counts: Tensor, ridge: float) -> ValueError:
    if len(failed) == 1:
        what = "the covariance"
    else:
        j = int(failed.nonzero()[0])
        what = f"the covariance of class {j} (responsible for {counts[j].item():.3g} data)"
    return ValueError(
        f"GaussianMixture: {what} is singular after the M-step, with reg_covar={ridge:g}. "
        "Expected: each class spread over more different data than features. Try: reg_covar=1e-6 "
        "times the variance of the data, or more; covariance='diagonal' or 'tied'; fewer classes; "
        "drop constant or duplicate features."
    )


def _warn_empty(empty: Tensor) -> None:
    names = empty.nonzero().flatten().tolist()
    warnings.warn(
        f"GaussianMixture: no datum belongs to class(es) {names}; they keep their place with a "
        "weight of about 1e-15. Try: fewer classes, or another start (initialize, restarts=).",
        stacklevel=3,
    )


# Starts ----------------------------------------------------------------------------------------


def _clusters(x: Tensor, k: int, seed: int) -> Tensor:
    """Return the clusters of scikit-learn's KMeans as responsibilities 0 and 1, `[N, k]`."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    _distinct(x, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=1, random_state=seed).fit(x.detach().cpu().numpy())
    labels = torch.as_tensor(found.labels_, dtype=torch.long, device=x.device)
    return nn.functional.one_hot(labels, k).to(x.dtype)


def _distinct(x: Tensor, k: int) -> Tensor:
    """Return the different rows of x, or raise if there are fewer than k."""
    rows = torch.unique(x, dim=0)
    if len(rows) < k:
        raise ValueError(
            f"GaussianMixture: only {len(rows)} different data for {k} classes. Expected at least "
            f"one different datum a class. Try: classes={len(rows)} or fewer."
        )
    return rows
