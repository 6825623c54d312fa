r"""The contract: what every family of this package has, written once.

A reparameterizable distribution is a map and a density. The map :math:`z = g_\lambda(\epsilon)`
sends parameter-free noise to a draw, so that

.. math:: \nabla_\lambda E[f(z)] = E[\nabla_\lambda f(g_\lambda(\epsilon))];

the density :math:`q_\lambda(z)` scores any value. The author of a family declares the parameters
and their domains in `arg_constraints`, declares the `support`, and writes two methods with an
underscore:

* `_rsample(shape)`: draws of shape `shape` (sample, batch and event dimensions together),
  differentiable in :math:`\lambda`;
* `_log_prob(z)`: :math:`\log q_\lambda(z)` in nats, `[*sample, *batch]`, finite far into the
  tails.

This base gives the rest, as Pyro and torch know it: broadcasting of the parameters (numbers or
tensors, with `constraint.event_dim` trailing dimensions each), `batch_shape`, `expand`, validation
of arguments and values, `rsample`, `sample`, `log_prob`, `to_event`, and
:meth:`Reparameterized.rsample_and_log_prob`, which scores its own draw, through the noise where
the family can. Values outside the support are refused by name; with validation off, or inside a
graph or `torch.vmap` where no value may be looked at, their log-density is minus infinity.

A family that torch or Pyro has too inherits from both, `class Normal(LocationScale, dist.Normal)`:
it is then theirs for `isinstance` and `kl_divergence`, with our numerics.

Noise comes from :mod:`~pyrovae.distributions.noise` only. Uniforms lie in the **open** interval
(0, 1): torch's can be 0, which would make a quantile infinite once in 2^24 draws. Exponentials
come from uniforms of 53 bits, at least 2^-54; they keep both tails of what is built from them in
float32, which a float32 uniform (a multiple of 2^-24) does not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import pyro.distributions
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import Transform

from pyrovae.distributions import noise
from pyrovae.distributions.fused import can_look

__all__ = ["EMPTY", "Composition", "Reparameterized", "all_within", "can_look"]

EMPTY = Size()


class Reparameterized(TorchDistribution):
    """Base class of the families: parameters are declared in `arg_constraints`, and nowhere else.

    Args:
        validate_args: check parameters and values; None follows Pyro's setting.
        parameters: one number or tensor for each name in `arg_constraints`.

    Raises:
        TypeError: a parameter that is no number, or in float16 or bfloat16.
        ValueError: a parameter outside its domain, or not finite; the message names it.
    """

    has_rsample = True

    def __init__(
        self, *, validate_args: bool | None = None, **parameters: Number | Tensor
    ) -> None:
        shape = self._common_shape(parameters)
        if shape is not None:
            self.__dict__.update(parameters)
            self._finish(shape, self._event_shape(), validate_args)
            if self._validate_args and can_look():
                self._check_parameters()
            return
        tensors = _as_tensors(type(self).__name__, parameters)
        batch_shape = torch.broadcast_shapes(*(self._batch_of(k, v) for k, v in tensors.items()))
        for name, value in tensors.items():
            event = value.shape[value.dim() - self._event_dim_of(name) :]
            setattr(self, name, value.expand(batch_shape + event))
        self._finish(batch_shape, self._event_shape(), validate_args)
        if self._validate_args and can_look():
            self._check_parameters()

    def _common_shape(self, parameters: dict[str, Number | Tensor]) -> Size | None:
        """Return the shape of the parameters where there is nothing to convert or to broadcast."""
        first = next(iter(parameters.values()), None)
        if not isinstance(first, Tensor) or torch.jit.is_tracing():  # takes shapes for data
            return None
        shape, dtype, device = first.shape, first.dtype, first.device
        if dtype is not torch.float32 and dtype is not torch.float64:
            return None
        for name, value in parameters.items():
            if (
                not isinstance(value, Tensor)
                or value.dtype is not dtype
                or value.shape != shape
                or value.device != device
                or self.arg_constraints[name].event_dim
            ):
                return None
        return shape

    def _finish(self, batch_shape: Size, event_shape: Size, validate_args: bool | None) -> None:
        """Set what torch's base sets; bases between this one and torch's are not asked."""
        Distribution.__init__(self, batch_shape, event_shape, validate_args=False)
        if validate_args is None:
            del self._validate_args  # the class's, which Pyro's settings change
        else:
            self._validate_args = validate_args

    # -- what the author writes -------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _rsample(shape)")

    def _log_prob(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _log_prob(z)")

    def _event_shape(self) -> Size:
        """Return the event shape, from the parameters already set; univariate by default."""
        return Size()

    def _check_parameters(self) -> None:
        """Raise where a parameter is not finite or not in its domain; extended by families."""
        for name, constraint in self.arg_constraints.items():
            if name not in self.__dict__ or constraints.is_dependent(constraint):
                continue
            value = getattr(self, name)
            if not value.numel() or all_within(constraint, value, finite=True):
                continue
            good, finite = constraint.check(value), value.isfinite()
            good = good & finite.reshape(*good.shape, -1).all(-1)
            self._demand(name, good, f"satisfy the constraint {constraint} and be finite")

    def _demand(self, name: str, good: Tensor, what: str) -> None:
        """Raise unless `good` everywhere: parameter, value and constraint are in the message."""
        if bool(good.all()):
            return
        bad = getattr(self, name)[~good]
        first = bad.flatten()[0].item() if bad.dim() < 2 else bad[0].tolist()
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"{type(self).__name__}: expected the parameter {name!r} to {what}, but found {first}"
            f"{more} (shape {tuple(good.shape)}); check what computes it, map raw numbers into "
            "the domain (pyrovae.nn.Head does), or pass validate_args=False"
        )

    # -- what everybody gets ----------------------------------------------------------------------

    def rsample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        return self._rsample(self._extended_shape(Size(sample_shape)))

    def sample(self, sample_shape: Size | Sequence[int] = EMPTY) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and can_look():
            self._validate_sample(value)
            return self._log_prob(value)
        support = self.support
        if support is constraints.real or support is constraints.real_vector:
            return self._log_prob(value)
        inside = support.check(value)
        shape = inside.shape + (1,) * (value.dim() - inside.dim())
        z = torch.where(inside.reshape(shape), value, self._inner_point(support))
        return torch.where(inside, self._log_prob(z), -torch.inf)

    def rsample_and_log_prob(
        self, sample_shape: Size | Sequence[int] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw and score the draw: `[*sample, *batch, *event]` and `[*sample, *batch]`."""
        z = self.rsample(sample_shape)
        return z, self._log_prob(z)

    def log_cdf(self, value: Tensor) -> Tensor:
        """Return log P(Z <= value)."""
        raise NotImplementedError(self._lacks("log_cdf"))

    def sf(self, value: Tensor) -> Tensor:
        """Return P(Z > value), accurate where the cdf has rounded to 1."""
        raise NotImplementedError(self._lacks("sf"))

    def log_sf(self, value: Tensor) -> Tensor:
        """Return log P(Z > value)."""
        raise NotImplementedError(self._lacks("log_sf"))

    def isf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z > z) = value."""
        raise NotImplementedError(self._lacks("isf"))

    def expand(self, batch_shape: Size | Sequence[int], _instance: Any = None) -> Reparameterized:
        """Return the distribution with its parameters expanded to `batch_shape`, as views."""
        new = copy.copy(self) if _instance is None else _instance
        batch_shape = Size(batch_shape)
        for name in self._names:
            value = getattr(self, name)
            event = value.shape[value.dim() - self._event_dim_of(name) :]
            setattr(new, name, value.expand(batch_shape + event))
        new._finish(batch_shape, self.event_shape, self.__dict__.get("_validate_args"))
        return new

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, broadcast to the batch shape."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.arg_constraints)

    def _validate_sample(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(self).__name__}: the value must be a tensor, got {type(value).__name__}"
            )
        shape = value.shape[: value.dim() - len(self.event_shape)]
        try:
            torch.broadcast_shapes(shape, self.batch_shape)
        except RuntimeError:
            fits = False
        else:
            fits = value.shape[len(shape) :] == self.event_shape
        if not fits:
            raise ValueError(
                f"{type(self).__name__}: a value of shape {tuple(value.shape)} does not fit batch "
                f"shape {tuple(self.batch_shape)} and event shape {tuple(self.event_shape)}"
            )
        support = self.support
        if all_within(support, value, finite=False):
            return
        good = support.check(value)
        if not bool(good.all()):
            bad = value[~good]
            first = bad.flatten()[0].item() if not self.event_shape else bad[0].tolist()
            raise ValueError(
                f"{type(self).__name__}: expected values within the support {support}, but found "
                f"{first} ({len(bad)} of {good.numel()})"
            )

    def _inner_point(self, support: Any) -> Tensor | float:
        """Return some point of the support, where a value outside is replaced by it."""
        low = getattr(support, "lower_bound", None)
        high = getattr(support, "upper_bound", None)
        if low is not None and high is not None:
            return low + (high - low) / 2
        if low is not None:
            return low + abs(low) + 1
        if high is not None:
            return high - abs(high) - 1
        return 1 / max(self.event_shape.numel(), 2)

    def _lacks(self, name: str) -> str:
        return f"{type(self).__name__} does not define {name}, which this needs"

    def _event_dim_of(self, name: str) -> int:
        return self.arg_constraints[name].event_dim

    def _batch_of(self, name: str, value: Tensor) -> Size:
        n = self._event_dim_of(name)
        if value.dim() < n:
            raise ValueError(
                f"{type(self).__name__}: the parameter {name!r} needs at least {n} dimensions, "
                f"got shape {tuple(value.shape)}"
            )
        return value.shape[: value.dim() - n]

    # -- noise ------------------------------------------------------------------------------------

    def _like(self) -> Tensor:
        """Return a parameter: the noise takes its dtype and device."""
        return getattr(self, self._names[0])

    def _uniform(self, shape: Size) -> Tensor:
        """Draw uniforms in the open interval (0, 1)."""
        return noise.uniform(shape, self._like())

    def _wide_uniform(self, shape: Size) -> Tensor:
        """Draw uniforms in (0, 1) in float64: 53 bits, which reach far into both tails."""
        return noise.wide_uniform(shape, self._like())

    def _exponential(self, shape: Size) -> Tensor:
        """Draw standard exponentials, never zero."""
        return noise.exponential(shape, self._like())

    def _normal(self, shape: Size) -> Tensor:
        """Draw standard normals."""
        like = self._like()
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def _either_sign(self, x: Tensor) -> Tensor:
        """Return x >= 0 with a random sign, each with probability one half."""
        return torch.copysign(x, noise.uniform(x.shape, x) - 0.5)

    @staticmethod
    def _as_pyro(d: Distribution) -> Any:
        """Return a base distribution of torch's as Pyro's class of its name."""
        family = getattr(pyro.distributions, type(d).__name__)
        names = [name for name in d.arg_constraints if name in d.__dict__]
        return family(**{name: getattr(d, name) for name in names}, validate_args=False)


class Composition(Reparameterized):
    r"""Base of :math:`z = g(y_1, y_2, \ldots)`: draws of other distributions, put together.

    The author writes `_parts()`, the distributions of :math:`y_i` (each with `rsample` and with
    batch shape that of the parameters), and one of

    * `transform`, a bijection of `torch.distributions.transforms`, for one part: the density
      follows, :math:`\log q(z) = \log p(y) - \log|\partial z / \partial y|`, and so do `cdf`,
      `icdf` and the other tails where the part has them and the transform is monotone;
    * `_compose(*draws)` and `_log_prob(z)`, for several parts, where the density cannot follow.

    >>> import pyro.distributions as dist
    >>> class LogitNormal(Composition):
    ...     arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    ...     support = constraints.unit_interval
    ...     transform = torch.distributions.SigmoidTransform()
    ...     def __init__(self, loc, scale, *, validate_args=None):
    ...         super().__init__(loc=loc, scale=scale, validate_args=validate_args)
    ...     def _parts(self):
    ...         return (dist.Normal(self.loc, self.scale),)
    >>> LogitNormal(0.0, 1.0).log_prob(torch.tensor(0.5)).exp()
    tensor(1.5958)
    """

    transform: Transform | None = None

    def _parts(self) -> tuple[Any, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define _parts()")

    def _compose(self, *draws: Tensor) -> Tensor:
        if self.transform is None:
            raise NotImplementedError(
                f"{type(self).__name__} must define a transform, or _compose(*draws) and "
                "_log_prob(z)"
            )
        return self.transform(draws[0])

    def _rsample(self, shape: Size) -> Tensor:
        sample_shape = shape[: len(shape) - len(self.batch_shape) - len(self.event_shape)]
        z = self._compose(*(part.rsample(sample_shape) for part in self._parts()))
        return self._hold(z)

    def _hold(self, z: Tensor) -> Tensor:
        """Return z with draws that rounded onto or over an open end put next to it."""
        low = getattr(self.support, "lower_bound", None)
        high = getattr(self.support, "upper_bound", None)
        if self.event_shape or isinstance(low, Tensor) or isinstance(high, Tensor):
            return z
        info = torch.finfo(z.dtype)
        least = None if low is None else max(low + abs(low) * info.eps, low + info.tiny)
        most = info.max if high is None else high - max(abs(high) * info.eps / 2, info.tiny)
        return z.clamp(least, most)

    def _log_prob(self, z: Tensor) -> Tensor:
        if self.transform is None:
            raise NotImplementedError(f"{type(self).__name__} must define _log_prob(z)")
        (part,) = self._parts()
        y = self.transform.inv(z)
        jacobian = self.transform.log_abs_det_jacobian(y, z)
        extra = jacobian.dim() - (y.dim() - len(part.event_shape))
        return part.log_prob(y) - (jacobian.flatten(-extra).sum(-1) if extra > 0 else jacobian)

    def _through(self, rising: str, falling: str, value: Tensor) -> Tensor:
        """Ask the part for a tail at the value that the transform maps to `value`."""
        if self.transform is None:
            raise NotImplementedError(self._lacks(rising))
        if self._validate_args and can_look():
            self._validate_sample(value)
        return self._ask_part(rising, falling)(self.transform.inv(value))

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(Z <= value)."""
        return self._through("cdf", "sf", value)

    def sf(self, value: Tensor) -> Tensor:
        return self._through("sf", "cdf", value)

    def log_cdf(self, value: Tensor) -> Tensor:
        return self._through("log_cdf", "log_sf", value)

    def log_sf(self, value: Tensor) -> Tensor:
        return self._through("log_sf", "log_cdf", value)

    def _quantile(self, rising: str, falling: str, value: Tensor) -> Tensor:
        if self.transform is None:
            raise NotImplementedError(self._lacks(rising))
        return self.transform(self._ask_part(rising, falling)(value))

    def _ask_part(self, rising: str, falling: str) -> Callable[[Tensor], Tensor]:
        (part,) = self._parts()
        name = rising if _rises(self.transform) else falling
        method = getattr(part, name, None)
        if method is None:
            raise NotImplementedError(
                f"{type(self).__name__}: its part, {type(part).__name__}, has no {name}; build it "
                "from a family of pyrovae.distributions"
            )
        return method

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with P(Z <= z) = value."""
        return self._quantile("icdf", "isf", value)

    def isf(self, value: Tensor) -> Tensor:
        return self._quantile("isf", "icdf", value)


_SETS = {  # the same sets, whichever class torch writes them with
    constraints.real: (-math.inf, math.inf, True, True),
    constraints.positive: (0.0, math.inf, False, True),
    constraints.nonnegative: (0.0, math.inf, True, True),
    constraints.unit_interval: (0.0, 1.0, True, True),
}


def all_within(constraint: Any, value: Tensor, *, finite: bool) -> bool:
    """Whether all values lie in one of the common sets, in one pass; False if that is unknown."""
    if not value.numel():
        return False
    known = _SETS.get(constraint)
    if known is None:
        return not finite and _between(constraint, value)
    low, high, with_low, with_high = known
    ends = torch.aminmax(value.detach())
    least, most = ends.min.item(), ends.max.item()  # NaN if there is one
    if finite and not -math.inf < least <= most < math.inf:
        return False
    return (least >= low if with_low else least > low) and (
        most <= high if with_high else most < high
    )


def _between(constraint: Any, value: Tensor) -> bool:
    """Whether all values lie within closed ends that are tensors, each end in one pass."""
    if type(constraint) not in (constraints.interval, constraints.greater_than_eq):
        return False
    low, high = constraint.lower_bound, getattr(constraint, "upper_bound", None)
    value = value.detach()
    # an infinity minus itself is NaN, which is not >= 0
    return (value - low).amin().item() >= 0 and (high is None or (high - value).amin().item() >= 0)


def _rises(transform: Transform) -> bool:
    """Whether a monotone transform is increasing."""
    sign = transform.sign
    if isinstance(sign, int | float):
        return sign > 0
    if bool((sign > 0).all()):
        return True
    if bool((sign < 0).all()):
        return False
    raise NotImplementedError(f"{transform} rises for some parameters and falls for others")


def _as_tensors(family: str, parameters: dict[str, Number | Tensor]) -> dict[str, Tensor]:
    """Turn numbers into tensors of the dtype and device of the tensors beside them."""
    given = [v for v in parameters.values() if isinstance(v, Tensor) and v.is_floating_point()]
    dtype = given[0].dtype if given else torch.get_default_dtype()
    device = given[0].device if given else None
    tensors = {}
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            tensors[name] = value
        elif isinstance(value, Tensor | Number):
            tensors[name] = torch.as_tensor(value, dtype=dtype, device=device)
        else:
            raise TypeError(
                f"{family}: the parameter {name!r} must be a number or a tensor, got "
                f"{type(value).__name__}; wrap it in torch.as_tensor"
            )
        if tensors[name].dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{family}: the parameter {name!r} is {tensors[name].dtype}, which holds too few "
                "digits for densities and quantiles; give float32 or float64, for example "
                f"{name}.float()"
            )
    return tensors
