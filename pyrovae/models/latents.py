"""What the models here share about z: its family by name, its prior, the centre of a posterior.

`who` is how messages call the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae import distributions
from pyrovae.distributions import (
    default_prior,
    map_tensors,
    posterior_domains,
    posterior_fixed,
    spelled,
)
from pyrovae.nn import Head

__all__ = [
    "as_distribution",
    "centre",
    "family_named",
    "family_of",
    "fit_prior",
    "latent_config",
    "posterior_head",
    "prior_of",
]


def family_of(who: str, posterior: Any) -> tuple[type, dict[str, Any]]:
    """Split a class, a name, or a partial of one, into the class and its fixed parameters."""
    fixed: dict[str, Any] = {}
    if isinstance(posterior, str):
        posterior, fixed = distributions.parse(posterior)
    if isinstance(posterior, partial):
        if posterior.args:
            raise ValueError(
                f"{who}: fix the posterior's parameters by name, partial(StudentT, df=5.0)"
            )
        posterior, fixed = posterior.func, dict(posterior.keywords)
    if not isinstance(posterior, type):
        raise ValueError(
            f"{who}: posterior must be a distribution class such as "
            f"pyrovae.distributions.Laplace, or the name of one, got {posterior!r}"
        )
    return posterior, {**posterior_fixed(posterior), **fixed}


def posterior_head(
    features: int,
    family: type,
    fixed: Mapping[str, Any],
    latent: tuple[int, ...],
    prior: Any,
    init: str = "glorot",
) -> Head:
    """Return the last layer of an encoder: features to q(z | x), in the prior's domain."""
    domains = posterior_domains(family, prior)
    return Head(
        features,
        family,
        latent,
        fixed=_in_shape(family, fixed, latent),
        constraints={k: v for k, v in domains.items() if k not in fixed},
        init=init,
    )


def prior_of(
    who: str, prior: Any, family: type, fixed: Mapping[str, Any], latent: tuple[int, ...]
) -> tuple[nn.Module | None, Any]:
    """Return a learned prior as a module, or a fixed one as a distribution; the other is None."""
    if isinstance(prior, nn.Module):
        return prior, None
    if prior is None:
        prior = default_prior(partial(family, **fixed), latent)
    return None, fit_prior(who, prior, latent)


def fit_prior(who: str, prior: Any, latent: tuple[int, ...], *, trained: bool = False) -> Any:
    """Return the prior with event shape `latent` and empty batch shape, or say why it has not."""
    if not isinstance(prior, Distribution):
        raise ValueError(
            f"{who}: prior must be a distribution, the name of one, or a module that returns one, "
            f"got {prior!r}"
        )
    batch, event = tuple(prior.batch_shape), tuple(prior.event_shape)
    if not trained and _requires_grad(prior):
        raise ValueError(
            f"{who}: this prior has parameters that require a gradient, which only a registered "
            "module can train; give prior=module whose forward() returns the distribution"
        )
    if not batch and event == latent:
        return prior
    n = len(latent) - len(event)
    fits = n > 0 and event == latent[n:] and len(batch) <= n
    if fits and all(b in (1, k) for b, k in zip(batch[::-1], latent[:n][::-1], strict=False)):
        return prior.expand(latent[:n]).to_event(n)
    raise ValueError(
        f'{who}, site "z": the prior has batch shape {batch} and event shape {event}, one latent '
        f"has shape {latent}; build it with event shape {latent}, for example "
        f"Normal(torch.zeros({latent}), 1.0).to_event({len(latent)})"
    )


def latent_config(who: str, posterior: Any, prior: Any) -> dict[str, Any] | None:
    """Return posterior and prior as JSON, or None where one of them has no name there."""
    if not (prior is None or isinstance(prior, str)):
        prior = spelled(prior)
        if prior is None:
            return None
    family, fixed = family_of(who, posterior)
    name = _name_of(family)
    plain = all(isinstance(v, (bool, int, float, str)) for v in fixed.values())
    if family_named(name) is not family or not plain:
        return None
    return {"posterior": name, "posterior_args": fixed, "prior": prior}


def _name_of(family: type) -> str:
    """Return the name of a class: `StudentT`, `Mixture(StudentT, 3)`."""
    mixed = issubclass(family, distributions.Mixture) and hasattr(family, "component")
    return distributions.spelling.spell_values(family, {}) if mixed else family.__name__


def family_named(name: str) -> type | None:
    """Return the class that :func:`latent_config` calls so, None where there is none."""
    if "(" not in name:
        return getattr(distributions, name, None)
    try:
        return distributions.parse(name)[0]
    except ValueError:
        return None


def as_distribution(who: str, part: str, d: Any, shape: tuple[int, ...]) -> Any:
    """Return d if it is a distribution whose event is one whole latent or datum."""
    if not isinstance(d, Distribution):
        raise ValueError(
            f"{who}: the {part} returned {type(d).__name__}, not a distribution; end it with "
            "pyrovae.nn.Head(features, distribution, event_shape)"
        )
    if tuple(d.event_shape) != shape:
        raise ValueError(
            f"{who}: the {part} returned a distribution of batch shape {tuple(d.batch_shape)} and "
            f"event shape {tuple(d.event_shape)}, expected event shape {shape}; call "
            f".to_event({len(shape)}) on it, or change data_shape or latent"
        )
    return d


def centre(posterior: Any) -> Tensor:
    """Return the mean; the mode where there is none inside the support; else a draw."""
    for name in ("mean", "mode"):
        try:
            value = getattr(posterior, name)
        except (NotImplementedError, AttributeError):
            continue
        if bool(value.isfinite().all()) and bool(posterior.support.check(value).all()):
            return value
    return posterior.sample()


def _in_shape(family: type, fixed: Mapping[str, Any], latent: tuple[int, ...]) -> dict[str, Any]:
    """Give fixed numbers of vector and matrix parameters their shape."""
    domains = getattr(family, "arg_constraints", {})
    zero = torch.zeros(latent)
    return {
        name: distributions.spelling.full(family, name, value, zero)
        if isinstance(value, (int, float)) and getattr(domains.get(name), "event_dim", 0)
        else value
        for name, value in fixed.items()
    }


def _requires_grad(prior: Any) -> bool:
    found: list[bool] = []

    def look(t: Tensor) -> Tensor:
        found.append(t.requires_grad)
        return t

    map_tensors(prior, look)
    return any(found)
