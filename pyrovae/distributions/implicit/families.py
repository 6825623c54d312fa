"""Mixtures as families with parameters of their own, which an encoder's head can predict.

A :class:`~pyrovae.distributions.implicit.Mixture` is given components; a head gives numbers.
:func:`mixture_of` makes the class in between: it declares the logits and every parameter of its
components, each M times.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from functools import lru_cache
from inspect import Parameter, Signature, signature
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae.distributions.implicit.mixture import Mixture

__all__ = ["Each", "mixture_of"]

_PLAIN = Parameter.POSITIONAL_OR_KEYWORD


class Each(constraints.independent):
    """`count` values along a last dimension, each in a domain of its own.

    Attributes:
        sizes: the shape of those dimensions, which a head needs to know.
    """

    def __init__(self, domain: constraints.Constraint, count: int) -> None:
        super().__init__(domain, 1)
        self.sizes = (count,)


class _Made(type(Mixture)):
    """Metaclass of what `mixture_of` makes: calling such a class gives a `Mixture`."""

    def __call__(cls, logits: Tensor, *, validate_args: bool | None = None, **given: Any) -> Any:
        parts = cls.component(**given, validate_args=validate_args)
        if cls.joint:
            parts = parts.to_event(1)
        return Mixture(logits, parts, validate_args=validate_args)


copyreg.pickle(_Made, lambda cls: (mixture_of, (cls.component, cls.count, cls.joint)))


def mixture_of(family: type, count: int, joint: bool = False) -> type:
    """Return the class of mixtures of `count` components of a family.

    Its parameters are `logits` and those of the family, each with a last dimension (for vectors: a
    last batch dimension) of `count`. It goes where a class goes that a network predicts:
    `VAE(784, 10, posterior=mixture_of(Normal, 3))`; parameters are fixed by
    `partial(mixture_of(StudentT, 3), df=5.0)`.

    Args:
        family: a class of distributions, univariate or Gaussian vectors.
        count: number of components M.
        joint: for a univariate family, one choice among M vectors of independent units, whose
            parameters are `[..., M, D]`; else every unit is a mixture of its own, `[..., D, M]`.

    Returns:
        a class; the same one for the same arguments. Calling it gives a :class:`Mixture`.

    Raises:
        ValueError: no family with declared parameters, or one whose parameters bound each other.

    >>> import torch
    >>> from pyrovae.distributions import Laplace
    >>> zero = torch.zeros(5, 2)
    >>> mixture_of(Laplace, 2)(zero, loc=zero, scale=zero + 1).batch_shape
    torch.Size([5])
    """
    known = getattr(family, "arg_constraints", None)
    if not (isinstance(family, type) and issubclass(family, Distribution)) or not isinstance(
        known, Mapping
    ):
        raise ValueError(
            f"mixture_of: expected a distribution class with arg_constraints, got {family!r}"
        )
    if issubclass(family, Mixture):
        raise ValueError(
            f"mixture_of: the components of {family.__name__} are mixtures already; mixtures of "
            "mixtures are no more than mixtures of more, so take a greater count"
        )
    if count < 1:
        raise ValueError(f"mixture_of: the number of components must be positive, got {count}")
    bound = [n for n, c in known.items() if constraints.is_dependent(c) or n in ("low", "high")]
    if bound:
        raise ValueError(
            f"mixture_of: the parameters {bound} of {family.__name__} bound each other, a head "
            "cannot predict several of them; build Mixture(logits, components) yourself"
        )
    return _make(family, int(count), bool(joint))


@lru_cache(maxsize=64)
def _make(family: type, count: int, joint: bool) -> type:
    known = family.arg_constraints
    support = constraints.independent(family.support, 1) if joint else family.support
    own = {n: constraints.independent(c, 1) if joint else c for n, c in known.items()}
    names = [n for n in signature(family).parameters if n in known]
    keyword = [Parameter(n, Parameter.KEYWORD_ONLY) for n in (*names, "validate_args")]
    made = _Made(
        f"Mixture{count}{family.__name__}",
        (Mixture,),
        {
            "__doc__": f"Mixtures of {count} {family.__name__}, made by `mixture_of`.",
            "__module__": __name__,
            "arg_constraints": {
                "logits": Each(constraints.real, count),
                **{n: Each(c, count) for n, c in own.items()},
            },
            "support": support,
            "component": family,
            "count": count,
            "joint": joint,
        },
    )
    made.__signature__ = Signature([Parameter("logits", _PLAIN), *keyword])
    return made
