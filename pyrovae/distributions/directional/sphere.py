r"""Laws of unit vectors that depend on the angle to one direction alone.

A draw on the unit sphere of :math:`\mathbb R^d` is put together from its polar angle and a uniform
direction v at right angles to the mean direction,

.. math:: z = \cos\theta\,\mu + \sin\theta\,v, \qquad w = \mu^\top z = \cos\theta .

The concentration moves the angle, :math:`d\theta/d\kappa` at a fixed cdf; the mean direction turns
the whole draw, by the rotation that takes the old :math:`\mu` to the new one in their plane. Both
fields are tangent to the sphere and right for every function of z, not for functions of w alone,
and the second has no direction in which it is singular (a Householder reflection has one, and its
gradient an infinite variance there). Every density is relative to the sphere's surface,

.. math:: |S^{d-1}| = 2\pi^{d/2} / \Gamma(d/2) .

HMC and NUTS move on the whole space, and no bijection goes from it to a sphere: Pyro refuses these
priors there ("Cannot transform _Sphere constraints"). What does the same is the direction of a
standard Normal vector, which is uniform, scored by the density::

    v = pyro.sample("v", Normal(torch.zeros(3), 1.0).to_event(1))
    z = v / v.norm(dim=-1, keepdim=True)
    pyro.factor("prior", VonMisesFisher(loc, concentration).log_prob(z))
"""

from __future__ import annotations

import math
from numbers import Number

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Size, Tensor
from torch.distributions import constraints

from pyrovae.distributions.base import Reparameterized
from pyrovae.distributions.directional.rejection import first_accepted
from pyrovae.distributions.special.bessel import (
    bessel_gap,
    bessel_information,
    bessel_ratio,
    bessel_variance,
)
from pyrovae.distributions.special.incomplete_beta import sample_logit_beta
from pyrovae.distributions.special.polar import pathwise_polar
from pyrovae.distributions.special.stirling import digamma_difference, lgamma_difference

__all__ = ["PowerSpherical", "SphericalUniform", "VonMisesFisher", "log_area"]


def log_area(dim: int) -> float:
    """Return the log of the surface of the unit sphere in `dim` dimensions."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


class _Directional(Reparameterized):
    """Base: a unit vector `loc`, a `concentration`, and draws of the polar angle."""

    arg_constraints = {
        "loc": pyro_constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = pyro_constraints.sphere

    def __init__(
        self,
        loc: Tensor,
        concentration: Number | Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(loc, Tensor) or loc.dim() < 1 or loc.shape[-1] < 2:
            shape = tuple(loc.shape) if isinstance(loc, Tensor) else loc
            raise ValueError(
                f"{type(self).__name__}: loc must be unit vectors of d >= 2 numbers, `[..., d]`, "
                f"got {shape}; for angles there is VonMises"
            )
        super().__init__(loc=loc, concentration=concentration, validate_args=validate_args)

    def _event_shape(self) -> Size:
        return self.loc.shape[-1:]

    @property
    def dim(self) -> int:
        """The number d of coordinates of a draw."""
        return self.event_shape[0]

    @property
    def _order(self) -> float:
        return 0.5 * self.dim - 1

    @property
    def mode(self) -> Tensor:
        return self.loc

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of w, its variance, and that of a coordinate across; float64."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """The mean of z, inside the sphere."""
        return self._moments()[0].to(self.loc.dtype).unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance."""
        _, along, across = (m.to(self.loc.dtype).unsqueeze(-1) for m in self._moments())
        return across + (along - across) * self.loc.square()

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance, `[*batch, d, d]`."""
        _, along, across = (m.to(self.loc.dtype)[..., None, None] for m in self._moments())
        eye = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across * eye + (along - across) * self.loc.unsqueeze(-1) * self.loc.unsqueeze(-2)

    # -- draw -------------------------------------------------------------------------------------

    def _polar(self, shape: Size) -> tuple[Tensor, Tensor]:
        """Draw the cosine and the sine of the polar angle."""
        raise NotImplementedError

    def _rsample(self, shape: Size) -> Tensor:
        cos, sin = self._polar(shape[:-1])
        loc = _unit(self.loc)
        centre = loc.detach()
        side = self._normal(shape)
        for _ in range(2):  # once more, for what rounding has left of the centre
            side = _unit(side - (side * centre).sum(-1, keepdim=True) * centre)
        return _turn(cos.unsqueeze(-1) * centre + sin.unsqueeze(-1) * side, centre, loc)

    def _chord(self, z: Tensor) -> Tensor:
        r"""Return :math:`h = (1 - \mu^\top z)/2 = |z - \mu|^2/4`, in float64."""
        return 0.25 * (z.double() - _unit(self.loc.double())).square().sum(-1)

    def _dtype(self, z: Tensor) -> torch.dtype:
        return torch.promote_types(z.dtype, self.loc.dtype)


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _turn(z: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Rotate z as the plane of two unit vectors is rotated that takes `start` to `end`."""
    both = start + end
    along = (both * z).sum(-1, keepdim=True) / (1 + (start * end).sum(-1, keepdim=True))
    return z - along * both + 2 * (start * z).sum(-1, keepdim=True) * end


class VonMisesFisher(_Directional):
    r"""Von Mises-Fisher: :math:`q(z) \propto e^{\kappa\mu^\top z}`, the Gaussian of the sphere.

    .. math:: \log q(z) = -\tfrac\kappa2 |z - \mu|^2 + \kappa - L(\kappa) - \log|S^{d-1}|, \qquad
        L = \log\Gamma(\nu + 1) - \nu\log\tfrac\kappa2 + \log I_\nu(\kappa), \quad
        \nu = \tfrac d2 - 1 .

    In every dimension the gradient in :math:`\kappa` is exact: that of rejection sampling without
    its correction term is biased (at d = 5 and :math:`\kappa = 2` by 13 %). Draws are Ulrich's, in
    half angles: a uniform draw whose :math:`\tan\tfrac\theta2` is multiplied by :math:`\sqrt b`,
    :math:`b = (d - 1) / (2\kappa + \sqrt{4\kappa^2 + (d - 1)^2})`, is accepted with probability
    :math:`e^{-(d - 1)(x - \log(1 + x))}`, :math:`x = \tfrac{2\kappa}{d - 1}(h - \tfrac b{1 + b})`
    and :math:`h = \sin^2\tfrac\theta2`; two of three are. At :math:`\kappa = 0` it is uniform.

    Args:
        loc: :math:`\mu`, unit vectors `[..., d]`, d >= 2.
        concentration: :math:`\kappa \ge 0`, `[...]`.

    Raises:
        ValueError: a loc that is not of unit length, d = 1, or a negative concentration.

    Sources: Mardia and Jupp (2000), Directional Statistics; Ulrich (1984), Applied Statistics 33;
    Davidson et al. (2018), arXiv 1804.00891, for its use in a VAE.

    >>> VonMisesFisher(torch.tensor([1.0, 0.0, 0.0]), 2.0).mean
    tensor([0.5373, 0.0000, 0.0000])
    """

    def _polar(self, shape: Size) -> tuple[Tensor, Tensor]:
        theta = pathwise_polar(self.dim, self._angle, self.concentration.expand(shape))
        return theta.cos(), theta.sin()

    def _angle(self, concentration: Tensor) -> Tensor:
        if self.dim == 3:
            return self._invert(concentration)
        return first_accepted(self._propose, concentration)

    def _invert(self, concentration: Tensor) -> Tensor:
        """Draw the angle in three dimensions, where the cdf of h has a closed inverse."""
        rate = 2 * concentration.double()
        q = torch.expm1(-self._exponential(concentration.shape).double())
        some = rate > 1e-300
        h = -torch.log1p(-q * torch.expm1(-rate)) / torch.where(some, rate, 1.0)
        h = torch.where(some, h, -q)
        return 2 * torch.atan2(h.sqrt(), (1 - h).clamp_min(0.0).sqrt()).to(concentration.dtype)

    def _propose(self, concentration: Tensor) -> tuple[Tensor, Tensor]:
        """Return the angle of a uniform draw, drawn towards the mean, and whether to keep it."""
        m = torch.full_like(concentration, self.dim - 1)
        double = 2 * concentration
        b = m / (double + torch.hypot(double, m))
        along = self._normal(m.shape)
        across = (2 * torch._standard_gamma(0.5 * m)).sqrt().clamp_min(1e-18)
        whole = torch.hypot(along, across)
        ahead = along > 0  # tan(theta/2) is (whole - along) / across, and across / (whole + along)
        top = torch.where(ahead, across, whole - along)
        bottom = torch.where(ahead, whole + along, across)
        near = b * top.square()
        x = double / m * (near / (bottom.square() + near) - b / (1 + b))
        accepted = self._exponential(m.shape) >= m * (x - torch.log1p(x))
        return 2 * torch.atan2(b.sqrt() * top, bottom), accepted

    def _log_prob(self, z: Tensor) -> Tensor:
        k = self.concentration.double()
        score = bessel_gap(self._order, k) - 2 * k * self._chord(z) - log_area(self.dim)
        return score.to(self._dtype(z))

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        k = self.concentration.double()
        mean, along = bessel_ratio(self._order, k), bessel_variance(self._order, k)
        some = k > 1e-9
        across = torch.where(some, mean / torch.where(some, k, 1.0), 1 / self.dim)
        return mean, along, across

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return log_area(self.dim) - bessel_information(self._order, self.concentration)


class PowerSpherical(_Directional):
    r"""Power spherical: :math:`q(z) \propto (1 + \mu^\top z)^\kappa`, drawn without rejection.

    .. math:: h = \tfrac12(1 - \mu^\top z) \sim
        \mathrm{Beta}(\tfrac{d - 1}2, \tfrac{d - 1}2 + \kappa), \qquad
        \log q(z) = \kappa\log(1 - h) + \log\frac{B(a, a)}{B(a, a + \kappa)} - \log|S^{d-1}|, \quad
        a = \tfrac{d - 1}2 .

    The tail is heavier than that of :class:`VonMisesFisher`; the gradient is the Beta's exact one.

    Args:
        loc: :math:`\mu`, unit vectors `[..., d]`, d >= 2.
        concentration: :math:`\kappa \ge 0`, `[...]`.

    Raises:
        ValueError: a loc that is not of unit length, d = 1, or a negative concentration.

    Source: De Cao and Aziz (2020), arXiv 2006.04437.

    >>> PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), 2.0).mean
    tensor([0.5000, 0.0000, 0.0000])
    """

    @property
    def _half(self) -> float:
        return 0.5 * (self.dim - 1)

    def _polar(self, shape: Size) -> tuple[Tensor, Tensor]:
        dtype = self.concentration.dtype
        a = torch.full_like(self.concentration, self._half)
        half = 0.5 * sample_logit_beta((a + self.concentration).expand(shape), a.expand(shape))
        return half.tanh().to(dtype), (1 / half.cosh()).to(dtype)  # logit(1 - h) is -2 log tan

    def _log_ratio(self) -> Tensor:
        """Return log B(a, a) - log B(a, a + kappa); float64."""
        k = self.concentration.double()
        a = torch.full_like(k, self._half)
        return lgamma_difference(a + k, a) - lgamma_difference(a, a)

    def _log_mean(self) -> Tensor:
        """Return -E[log(1 - h)]; float64."""
        k = self.concentration.double()
        a = torch.full_like(k, self._half)
        return digamma_difference(a + k, a)

    def _log_prob(self, z: Tensor) -> Tensor:
        k, h = self.concentration.double(), self._chord(z)
        far = 0.25 * (z.double() + _unit(self.loc.double())).square().sum(-1)  # 1 - h, near h = 1
        near = h < 0.5
        inner = k * torch.log1p(-torch.where(near, h, 0.0))
        outer = torch.xlogy(k, torch.where(near, 1.0, far))
        score = torch.where(near, inner, outer) + self._log_ratio() - log_area(self.dim)
        return score.to(self._dtype(z))

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        k, m = self.concentration.double(), self.dim - 1
        n = m + k
        mean = k / n
        along = m * (m + 2 * k) / (n * n * (n + 1))
        return mean, along, (1 - mean * mean - along) / m

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        entropy = self.concentration * self._log_mean() - self._log_ratio() + log_area(self.dim)
        return entropy.to(self.concentration.dtype)


class SphericalUniform(Reparameterized):
    r"""Uniform on the unit sphere: the prior of unit vectors.

    .. math:: \log p(z) = -\log|S^{d-1}|, \qquad z = n / |n|, \quad n \sim \mathcal N(0, I_d) .

    Args:
        dim: d >= 2, the number of coordinates.
        dtype: of the draws; torch's default otherwise.
        device: of the draws.

    Raises:
        ValueError: d < 2.
        TypeError: another dtype than float32 and float64.

    >>> SphericalUniform(3).entropy()  # log 4 pi
    tensor(2.5310)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = pyro_constraints.sphere

    def __init__(
        self,
        dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(dim, int) or dim < 2:
            raise ValueError(f"SphericalUniform: dim must be an integer of 2 or more, got {dim!r}")
        self.dim = dim
        self._zero = torch.zeros(dim, dtype=dtype, device=device)
        if self._zero.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"SphericalUniform: dtype is {self._zero.dtype}, in which no vector has unit "
                "length to enough digits; give torch.float32 or torch.float64"
            )
        super().__init__(validate_args=validate_args)

    def _event_shape(self) -> Size:
        return Size((self.dim,))

    def _like(self) -> Tensor:
        return self._zero

    def _rsample(self, shape: Size) -> Tensor:
        return _unit(self._normal(shape))

    def _log_prob(self, z: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        return z.new_full(shape, -log_area(self.dim))

    @property
    def mean(self) -> Tensor:
        return self._zero.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.mean, 1 / self.dim)

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance, `[*batch, d, d]`."""
        return torch.diag_embed(self.variance)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, `[*batch]`."""
        return self._zero.new_full(self.batch_shape, log_area(self.dim))

    def __repr__(self) -> str:
        return f"SphericalUniform({self.dim})"
