r"""Two tools for whole distributions: another event shape, and another device or dtype.

:class:`Reshaped` reads the event of a distribution in another shape: a multivariate Normal over 64
numbers becomes a distribution of 8 x 8 images, with the same density (reshaping has unit
Jacobian). :func:`map_tensors` applies a function to every tensor a distribution holds, as
`torch.nn.Module.to` does for a module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from pyrovae.distributions.base import EMPTY

__all__ = ["Reshaped", "map_tensors"]


class Reshaped(TorchDistribution):
    """A distribution over vectors read as a distribution over arrays of `event_shape`.

    Args:
        base: a distribution with one event dimension of size D.
        event_shape: the new event shape, of D elements.

    Raises:
        ValueError: the sizes differ.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: Any, event_shape: Sequence[int]) -> None:
        self.base_dist = base
        shape = Size(event_shape)
        if len(base.event_shape) != 1 or base.event_shape[0] != math.prod(shape):
            raise ValueError(
                f"Reshaped: a distribution of event shape {tuple(base.event_shape)} cannot be "
                f"read as {tuple(shape)} ({math.prod(shape)} elements); give a vector of that size"
            )
        super().__init__(base.batch_shape, shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Reshaped:
        return Reshaped(self.base_dist.expand(Size(batch_shape)), self.event_shape)

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def _out(self, value: Tensor) -> Tensor:
        return value.reshape(value.shape[:-1] + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return self.base_dist.log_prob(value.reshape(*lead, -1))

    def sample(self, sample_shape: Size = EMPTY) -> Tensor:
        return self._out(self.base_dist.sample(sample_shape))

    def rsample(self, sample_shape: Size = EMPTY) -> Tensor:
        return self._out(self.base_dist.rsample(sample_shape))

    @property
    def mean(self) -> Tensor:
        return self._out(self.base_dist.mean)

    @property
    def mode(self) -> Tensor:
        return self._out(self.base_dist.mode)

    @property
    def variance(self) -> Tensor:
        return self._out(self.base_dist.variance)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy()


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a distribution with `fn` applied to all its tensors, of all its parts.

    >>> import torch
    >>> from pyro.distributions import Normal
    >>> map_tensors(Normal(torch.zeros(2), torch.ones(2)), torch.Tensor.double).loc.dtype
    torch.float64
    """
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map_tensors(v, fn) for v in value)
    if isinstance(value, _InverseTransform):
        return map_tensors(value.inv, fn).inv
    if not isinstance(value, Distribution | Transform):
        return value
    new = copy.copy(value)
    for name, part in vars(value).items():
        if isinstance(value, Transform) and name in ("_inv", "_cached_x_y"):
            new.__dict__[name] = None if name == "_inv" else (None, None)  # caches
        else:
            new.__dict__[name] = map_tensors(part, fn)
    return new
