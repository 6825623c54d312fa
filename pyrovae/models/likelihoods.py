r"""Likelihoods p(x | z) as the last layer of a decoder: features `[..., H]` to a law of x.

With h the features the decoder made of z, and all sums over pixels d in nats:

================== ========================================== =====================================
name               p(x | z)                                   likelihood_args
================== ========================================== =====================================
`bernoulli`        x_d in {0, 1}: Bernoulli(logits l_d(h))    none
`binomial`         x_d in {0..n}: Binomial(n, logits l_d(h))  `total_count`: n
`normal`           N(mu(h), diag sigma(h)^2)                  none
`normal_full`      N(mu(h), L(h) L(h)^T), L lower triangular  none
`normal_learned`   N(mu(h), sigma^2 I), one sigma for all x   `scale`: where sigma starts (1)
`normal_fixed`     N(mu(h), sigma^2 I)                        `scale`: sigma (required)
`made`             x_d in {0, 1}: Bernoulli(l_d(x_<d, h))     `hidden` (500), `layers` (1), `skip`
`window`           x_d in {0, 1}: Bernoulli(l_d(w_d, h))      `radius` (3), `channels` (32), ...
================== ========================================== =====================================

`binomial` is the exact likelihood of integer pixels (the binomial coefficient is included). The
Normal ones are densities, whose logarithm grows without bound as sigma shrinks: sigma stays within
[4.5e-5, 2.2e4]. In `made` and `window` pixels are not independent given z: each
depends on all pixels before it, or on the near ones (:mod:`pyrovae.models.autoregressive`).
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.distributions import Bernoulli, Binomial, MultivariateNormal, Normal, Reshaped
from pyrovae.models.autoregressive import made_head, window_head
from pyrovae.nn import Head, bounded_positive

__all__ = ["likelihood_head", "likelihood_names"]


_BOUND = 10.0  # of the logarithm of a learned scale


class SharedScale(nn.Module):
    """One positive number for all data and pixels, learned: called without arguments."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        start = math.log(_positive("scale", scale)) / _BOUND
        if abs(start) >= 1:
            raise ValueError(f"scale must lie in (4.6e-5, 2.2e4) to be learned, got {scale!r}")
        self.raw = nn.Parameter(torch.tensor(_BOUND * math.atanh(start)))

    def forward(self) -> Tensor:
        return bounded_positive(self.raw, _BOUND)


class FullNormal(nn.Module):
    """A multivariate Normal over all pixels, mean and triangular factor predicted."""

    def __init__(self, features: int, shape: tuple[int, ...], init: str) -> None:
        super().__init__()
        self.shape = shape
        self.head = Head(features, MultivariateNormal, math.prod(shape), init=init)

    def forward(self, features: Tensor) -> Any:
        d = self.head(features)
        return d if len(self.shape) == 1 else Reshaped(d, self.shape)

    def set_bias(self, name: str, value: Tensor) -> None:
        self.head.set_bias(name, value.reshape(-1))


def _bernoulli(features: int, shape: tuple[int, ...], init: str) -> nn.Module:
    return Head(features, Bernoulli, shape, init=init)


def _binomial(features: int, shape: tuple[int, ...], init: str, *, total_count: int) -> nn.Module:
    if int(total_count) != total_count or total_count < 1:
        raise ValueError(f"total_count must be a positive integer, got {total_count!r}")
    return Head(features, Binomial, shape, fixed={"total_count": int(total_count)}, init=init)


def _normal(features: int, shape: tuple[int, ...], init: str) -> nn.Module:
    return Head(features, Normal, shape, init=init)


def _normal_learned(
    features: int, shape: tuple[int, ...], init: str, *, scale: float = 1.0
) -> nn.Module:
    return Head(features, Normal, shape, fixed={"scale": SharedScale(scale)}, init=init)


def _normal_fixed(features: int, shape: tuple[int, ...], init: str, *, scale: float) -> nn.Module:
    return Head(features, Normal, shape, fixed={"scale": _positive("scale", scale)}, init=init)


_LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": _bernoulli,
    "binomial": _binomial,
    "normal": _normal,
    "normal_full": FullNormal,
    "normal_learned": _normal_learned,
    "normal_fixed": _normal_fixed,
    "made": made_head,
    "window": window_head,
}


def likelihood_names() -> list[str]:
    """Return the names of the likelihoods."""
    return list(_LIKELIHOODS)


def likelihood_head(
    name: str,
    features: int,
    shape: tuple[int, ...],
    args: Mapping[str, Any] | None = None,
    *,
    init: str = "glorot",
    data_mean: Tensor | None = None,
) -> nn.Module:
    """Build the last layer of a decoder.

    Args:
        name: one of :func:`likelihood_names`.
        features: width of the decoder's last hidden layer.
        shape: shape of one datum.
        args: the likelihood's own arguments, as the table above has them.
        init: "glorot" or "normal".
        data_mean: mean of the data, of `shape`; the output starts there (for counts at the logit
            of the mean, clipped to [0.001, 0.999], as Burda et al. 2016 do).

    Raises:
        ValueError: an unknown name (with the nearest known one), or missing or unknown arguments.
    """
    if name not in _LIKELIHOODS:
        near = difflib.get_close_matches(str(name).lower(), _LIKELIHOODS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown likelihood {name!r}; did you mean {near!r}? Known: {', '.join(_LIKELIHOODS)}"
        )
    args = dict(args or {})
    _check_arguments(name, args)
    head = _LIKELIHOODS[name](features, shape, init, **args)
    if data_mean is not None:
        mean = torch.as_tensor(data_mean, dtype=torch.get_default_dtype())
        if mean.shape != shape:
            raise ValueError(
                f"data_mean has shape {tuple(mean.shape)}, one datum has {shape}; "
                "give data.mean(0)"
            )
        if name in ("bernoulli", "binomial", "made", "window"):
            rate = (mean / args.get("total_count", 1)).clamp(0.001, 0.999)
            head.set_bias("logits", rate.logit())
        else:
            head.set_bias("loc", mean)
    return head


def _check_arguments(name: str, args: Mapping[str, Any]) -> None:
    own = {
        p.name: p.default is p.empty
        for p in inspect.signature(_LIKELIHOODS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    missing = [k for k, required in own.items() if required and k not in args]
    unknown = [k for k in args if k not in own]
    if missing or unknown:
        raise ValueError(
            f"likelihood {name!r} takes {sorted(own) or 'no arguments'}"
            + (f"; missing {missing}" if missing else "")
            + (f"; unknown {unknown}" if unknown else "")
            + f"; write likelihood_args={{{', '.join(f'{k!r}: ...' for k in own)}}}"
        )


def _positive(name: str, value: float) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)
