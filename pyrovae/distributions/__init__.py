r"""Distributions: reparameterizable families for posteriors, and fast ones for pixels.

* posterior families: `Normal`, `Laplace`, `Logistic`, `StudentT`, `Cauchy`, `Gumbel`, `Gamma`,
  `Exponential`, `Weibull`, `LogNormal`, `Beta`, `Uniform`, `Dirichlet`, `MultivariateNormal`;
* likelihoods whose log-density is summed over the event: `Bernoulli`, `Binomial`;
* for authors of families: `Reparameterized`, `LocationScale`;
* for whole distributions: `Reshaped`, `map_tensors`;
* which prior fits which posterior: `default_prior`, `prior_reason`, `posterior_domains`;
* families by name, for the command line: `names`, `lookup`.

What Pyro and torch do right is theirs and exported as it is, so that closed-form KLs keep
dispatching.
"""

from __future__ import annotations

import difflib

from pyro.distributions import (
    Beta,
    Cauchy,
    Dirichlet,
    Exponential,
    Gamma,
    Gumbel,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
    Weibull,
)

from pyrovae.distributions.base import Reparameterized
from pyrovae.distributions.counts import Bernoulli, Binomial
from pyrovae.distributions.location_scale import LocationScale, Logistic
from pyrovae.distributions.priors import (
    default_prior,
    posterior_class,
    posterior_domains,
    prior_reason,
)
from pyrovae.distributions.reshape import Reshaped, map_tensors

_FAMILIES: tuple[type, ...] = (
    Normal,
    Laplace,
    Logistic,
    StudentT,
    Cauchy,
    Gumbel,
    Gamma,
    Exponential,
    Weibull,
    LogNormal,
    Beta,
    Uniform,
    Dirichlet,
    MultivariateNormal,
)

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Cauchy",
    "Dirichlet",
    "Exponential",
    "Gamma",
    "Gumbel",
    "Laplace",
    "LocationScale",
    "LogNormal",
    "Logistic",
    "MultivariateNormal",
    "Normal",
    "Reparameterized",
    "Reshaped",
    "StudentT",
    "Uniform",
    "Weibull",
    "default_prior",
    "lookup",
    "map_tensors",
    "names",
    "posterior_class",
    "posterior_domains",
    "prior_reason",
]


def names() -> list[str]:
    """Return the names of the posterior families."""
    return [cls.__name__ for cls in _FAMILIES]


def lookup(name: str) -> type:
    """Return the posterior family of this name; case, dashes and underscores do not matter.

    Raises:
        ValueError: an unknown name; the message has the nearest known one.

    >>> lookup("student-t").__name__
    'StudentT'
    """
    known = {cls.__name__.lower(): cls for cls in _FAMILIES}
    plain = name.lower().replace("-", "").replace("_", "")
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.0)
    raise ValueError(
        f"unknown distribution {name!r}; did you mean {known[near[0]].__name__!r}? "
        f"Known: {', '.join(names())}"
    )
