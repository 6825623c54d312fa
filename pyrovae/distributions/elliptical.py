r"""Elliptical families: :math:`z = \mu + A\,\epsilon`, the location-scale families of vectors.

The noise is spherical, :math:`\epsilon = r\,s`: a radial law from
:mod:`pyrovae.distributions.radial` says how long it is, its direction s is uniform. The density is
constant on ellipsoids,

.. math::

    \log q(z) = \log p_0(\sqrt{m}) - \log|\det A|, \qquad
    m = (z - \mu)^\top (A A^\top)^{-1} (z - \mu),

and :math:`E[z] = \mu` (where it exists), :math:`\mathrm{Cov}[z] = \tfrac{E[r^2]}{d} A A^\top`. The
shape :math:`A A^\top` has one of three spellings: lower-triangular :math:`A` (`scale_tril`),
diagonal :math:`A` (`scale_diag`), or low rank plus diagonal, :math:`W W^\top + D` (`cov_factor`
:math:`W`, `cov_diag` the diagonal of D), which costs :math:`O(d k^2)`.

The root of a low-rank shape, :math:`D^{1/2}(I + V C V^\top)` with :math:`V = D^{-1/2} W` and a
small matrix C, is symmetric apart from :math:`D^{1/2}`; one d-vector of noise is enough, so the
sphere stays a sphere (a sum of two independent noises would be elliptical for the Gaussian only).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrovae.distributions.base import EMPTY, Reparameterized
from pyrovae.distributions.radial import Normal, Radial

__all__ = ["Elliptical"]


class Elliptical(Reparameterized):
    r"""Elliptical law of vectors: a location, a radial law and a shape.

    Args:
        loc: :math:`\mu`, `[..., d]`.
        radial: a law of :mod:`pyrovae.distributions.radial`; the Gaussian by default.
        scale_tril: lower-triangular A with positive diagonal, `[..., d, d]`.
        scale_diag: diagonal of A, positive, `[..., d]`.
        cov_factor: W, `[..., d, k]`.
        cov_diag: diagonal of D, positive, `[..., d]`.

    Raises:
        ValueError: not exactly one spelling of the shape, or sizes that do not fit.

    Source: Fang, Kotz and Ng (1990), Symmetric Multivariate and Related Distributions.

    >>> d = Elliptical(torch.zeros(3), Normal(), scale_diag=torch.ones(3))
    >>> d.log_prob(torch.zeros(3))
    tensor(-2.7568)
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "scale_diag": constraints.independent(constraints.positive, 1),
        "cov_factor": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector

    def __init__(
        self,
        loc: Tensor,
        radial: Radial | None = None,
        *,
        scale_tril: Tensor | None = None,
        scale_diag: Tensor | None = None,
        cov_factor: Tensor | None = None,
        cov_diag: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        given = {
            "scale_tril": scale_tril,
            "scale_diag": scale_diag,
            "cov_factor": cov_factor,
            "cov_diag": cov_diag,
        }
        shape = {name: value for name, value in given.items() if value is not None}
        if tuple(shape) not in (("scale_tril",), ("scale_diag",), ("cov_factor", "cov_diag")):
            raise ValueError(
                "Elliptical: give scale_tril, or scale_diag, or cov_factor and cov_diag; got "
                f"{sorted(shape) or 'none of them'}"
            )
        self.radial = Normal() if radial is None else radial
        if not isinstance(self.radial, Radial):
            raise ValueError(
                f"Elliptical: radial must be a law of pyrovae.distributions.radial, such as "
                f"radial.StudentT(5.0), got {radial!r}"
            )
        d = loc.shape[-1] if loc.dim() else 0
        for name, value in shape.items():
            if value.dim() < self._event_dim_of(name) or d not in (
                value.shape[-1],
                *((value.shape[-2],) if name == "cov_factor" else ()),
            ):
                raise ValueError(
                    f"Elliptical: loc of shape {tuple(loc.shape)} and {name} of shape "
                    f"{tuple(value.shape)} do not fit; the last dimension of loc is d"
                )
        self._names = ("loc", *shape)
        super().__init__(loc=loc, validate_args=validate_args, **shape)
        self.radial = self.radial.like(self.loc)
        if self.radial.batch_shape:
            wide = torch.broadcast_shapes(self.batch_shape, self.radial.batch_shape)
            self.__dict__.update(self.expand(wide).__dict__)

    _names: tuple[str, ...] = ("loc",)

    def _event_shape(self) -> Size:
        return self.loc.shape[-1:]

    def expand(self, batch_shape: Size | Sequence[int], _instance: Any = None) -> Elliptical:
        new = super().expand(batch_shape, copy.copy(self) if _instance is None else _instance)
        new.radial = self.radial.expand(batch_shape) if self.radial.batch_shape else self.radial
        return new

    @property
    def dim(self) -> int:
        """The dimension d of a draw."""
        return self.event_shape[0]

    # -- the linear map ---------------------------------------------------------------------------

    def _stretch(self, eps: Tensor) -> Tensor:
        """Return A eps."""
        if "scale_diag" in self._names:
            return self.scale_diag * eps
        if "scale_tril" in self._names:
            return (self.scale_tril @ eps.unsqueeze(-1)).squeeze(-1)
        v, gram = self._low_rank()
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # (I + V V')^(1/2) = I + V (I + M)^-1 V' with M = (I + V'V)^(1/2)
        inner = torch.linalg.solve(eye + _root(eye + gram), v.mT @ eps.unsqueeze(-1))
        return self.cov_diag.sqrt() * (eps + (v @ inner).squeeze(-1))

    def _low_rank(self) -> tuple[Tensor, Tensor]:
        """Return V = D^-1/2 W and V'V."""
        v = self.cov_factor / self.cov_diag.sqrt().unsqueeze(-1)
        return v, v.mT @ v

    def _square(self, z: Tensor) -> Tensor:
        """Return the squared length of A^-1 (z - loc), `[*sample, *batch]`."""
        diff = z - self.loc
        if "scale_diag" in self._names:
            return (diff / self.scale_diag).square().sum(-1)
        if "scale_tril" in self._names:
            root = self.scale_tril.expand(diff.shape[:-1] + self.scale_tril.shape[-2:])
            eps = torch.linalg.solve_triangular(root, diff.unsqueeze(-1), upper=False)
            return eps.square().sum((-2, -1))
        v, gram = self._low_rank()
        eps = diff / self.cov_diag.sqrt()
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        chol = torch.linalg.cholesky(eye + gram)
        projected = v.mT @ eps.unsqueeze(-1)
        chol = chol.expand(projected.shape[:-2] + chol.shape[-2:])
        inner = torch.linalg.solve_triangular(chol, projected, upper=False)
        # |eps|^2 - |inner|^2 without the subtraction: the residual and what W explains
        solved = torch.linalg.solve_triangular(chol.mT, inner, upper=True)
        rest = eps - (v @ solved).squeeze(-1)
        return rest.square().sum(-1) + solved.square().sum((-2, -1))

    def _log_det(self) -> Tensor:
        """Return log |det A|, `[*batch]`."""
        if "scale_diag" in self._names:
            return self.scale_diag.log().sum(-1)
        if "scale_tril" in self._names:
            return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        _, gram = self._low_rank()
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        chol = torch.linalg.cholesky(eye + gram)
        return 0.5 * self.cov_diag.log().sum(-1) + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    # -- draw and score ---------------------------------------------------------------------------

    def _noise(self, shape: Size) -> Tensor:
        g = self._normal(shape)
        if type(self.radial) is Normal:
            return g
        length = g.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        return g / length * self.radial.radius(shape, g).unsqueeze(-1)

    def _rsample(self, shape: Size) -> Tensor:
        return self.loc + self._stretch(self._noise(shape))

    def _log_prob(self, z: Tensor) -> Tensor:
        return self.radial.log_density(self._square(z), self.dim) - self._log_det()

    def rsample_and_log_prob(
        self, sample_shape: Size | Sequence[int] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw, and score with the same noise: nothing is solved."""
        eps = self._noise(self._extended_shape(Size(sample_shape)))
        score = self.radial.log_density(eps.square().sum(-1), self.dim) - self._log_det()
        return self.loc + self._stretch(eps), score

    # -- moments ----------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """The location; NaN where it does not exist (Student's t with df <= 1)."""
        df = getattr(self.radial, "df", None)
        if df is None:
            return self.loc
        return torch.where((df > 1).unsqueeze(-1), self.loc, math.nan)

    @property
    def mode(self) -> Tensor:
        return self.loc

    def _spread(self) -> Tensor | float:
        factor = self.radial.variance_in(self.dim)
        return factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor

    @property
    def variance(self) -> Tensor:
        if "scale_diag" in self._names:
            return self._spread() * self.scale_diag.square()
        if "scale_tril" in self._names:
            return self._spread() * self.scale_tril.square().sum(-1)
        return self._spread() * (self.cov_diag + self.cov_factor.square().sum(-1))

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance, `[*batch, d, d]`."""
        if "scale_diag" in self._names:
            shape = torch.diag_embed(self.scale_diag.square())
        elif "scale_tril" in self._names:
            shape = self.scale_tril @ self.scale_tril.mT
        else:
            shape = torch.diag_embed(self.cov_diag) + self.cov_factor @ self.cov_factor.mT
        spread = self._spread()
        return (spread.unsqueeze(-1) if isinstance(spread, Tensor) else spread) * shape

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self._log_det() + self.radial.entropy_in(self.dim)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(getattr(self, name).shape)}" for name in self._names)
        return f"Elliptical({shapes}, radial: {self.radial!r})"


def _root(m: Tensor) -> Tensor:
    """Return the square root of symmetric matrices with eigenvalues of 1 and more.

    By the iteration of Denman and Beavers (1976), not through eigenvectors, whose gradient is NaN
    where two eigenvalues agree (as at a zero factor). 30 steps serve condition numbers to 1e12.
    """
    y, z = m, torch.eye(m.shape[-1], dtype=m.dtype, device=m.device).expand(m.shape)
    for _ in range(30):
        y, z = 0.5 * (y + torch.linalg.inv(z)), 0.5 * (z + torch.linalg.inv(y))
    return y
