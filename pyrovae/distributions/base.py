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
the family can.

Noise comes from two helpers only. Uniforms lie in the **open** interval (0, 1): torch's can be 0,
which would make a quantile infinite once in 2^24 draws. Exponentials are at least the smallest
normal number; they keep both tails of what is built from them in float32, which a uniform (a
multiple of 2^-24) does not.
"""

from __future__ import annotations

import copy
from numbers import Number
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

__all__ = ["EMPTY", "Reparameterized"]

EMPTY = Size()


class Reparameterized(TorchDistribution):
    """Base class of the families: parameters are declared in `arg_constraints`, and nowhere else.

    Args:
        validate_args: check parameters and values; None follows Pyro's setting.
        parameters: one number or tensor for each name in `arg_constraints`.
    """

    has_rsample = True

    def __init__(
        self, *, validate_args: bool | None = None, **parameters: Number | Tensor
    ) -> None:
        tensors = _as_tensors(type(self).__name__, parameters)
        batch_shape = torch.broadcast_shapes(*(self._batch_of(k, v) for k, v in tensors.items()))
        for name, value in tensors.items():
            event = value.shape[value.dim() - self._event_dim_of(name) :]
            setattr(self, name, value.expand(batch_shape + event))
        super().__init__(batch_shape, self._event_shape(), validate_args=validate_args)

    # -- what the author writes -------------------------------------------------------------------

    def _rsample(self, shape: Size) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _rsample(shape)")

    def _log_prob(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _log_prob(z)")

    def _event_shape(self) -> Size:
        """Return the event shape, from the parameters already set; univariate by default."""
        return Size()

    # -- what everybody gets ----------------------------------------------------------------------

    def rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        return self._rsample(self._extended_shape(Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def rsample_and_log_prob(
        self, sample_shape: Size | tuple[int, ...] = EMPTY
    ) -> tuple[Tensor, Tensor]:
        """Draw and score the draw: `[*sample, *batch, *event]` and `[*sample, *batch]`."""
        z = self.rsample(sample_shape)
        return z, self._log_prob(z)

    def expand(
        self, batch_shape: Size | tuple[int, ...], _instance: Any = None
    ) -> Reparameterized:
        """Return the distribution with its parameters expanded to `batch_shape`, as views."""
        new = copy.copy(self) if _instance is None else _instance
        batch_shape = Size(batch_shape)
        for name in self.arg_constraints:
            value = getattr(self, name)
            event = value.shape[value.dim() - self._event_dim_of(name) :]
            setattr(new, name, value.expand(batch_shape + event))
        super(Reparameterized, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, broadcast to the batch shape."""
        return {name: getattr(self, name) for name in self.arg_constraints}

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
        return getattr(self, next(iter(self.arg_constraints)))

    def _uniform(self, shape: Size) -> Tensor:
        """Draw uniforms in the open interval (0, 1); a zero stands for the middle of its cell."""
        like = self._like()
        eps = torch.finfo(like.dtype).eps
        return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(eps / 4, 1 - eps / 2)

    def _exponential(self, shape: Size) -> Tensor:
        """Draw standard exponentials, never zero."""
        like = self._like()
        draw = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
        return draw.clamp_min(torch.finfo(like.dtype).tiny)


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
    return tensors
