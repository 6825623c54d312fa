r"""Distributions: reparameterizable families for posteriors, and fast ones for pixels.

* location-scale: `Normal`, `Laplace`, `Logistic`, `Cauchy`, `Gumbel`, `StudentT`, and for vectors
  `Elliptical` with the laws of :mod:`pyrovae.distributions.radial`, `MultivariateNormal`;
* inverse cdf: `Exponential`, `Weibull`, `Rayleigh`, `Pareto`, `Gompertz`, `Kumaraswamy`, and on an
  interval `Uniform`, `Reciprocal`, `Triangular`;
* compositions: `Gamma`, `Erlang`, `Chi2`, `LogNormal`, `Beta`, `Dirichlet`, `FisherSnedecor`;
* directions: `VonMises` for angles;
* likelihoods: `Bernoulli`, `Binomial` (summed over the event), `ContinuousBernoulli`;
* for authors of families: `Reparameterized`, `LocationScale`, `InverseCDF`, `Composition`;
* for whole distributions: `Reshaped`, `map_tensors`;
* which prior fits which posterior: `default_prior`, `prior_reason`, `posterior_domains`;
* families by name, for the command line: `names`, `lookup`.

A family that torch or Pyro has is a subclass of theirs, so that `isinstance` and `kl_divergence`
keep dispatching; what they do right is theirs and exported as it is.
"""

from __future__ import annotations

import difflib

from pyro.distributions import MultivariateNormal

from pyrovae.distributions import kl, kl_directional, kl_gamma, radial
from pyrovae.distributions.base import Composition, Reparameterized
from pyrovae.distributions.composition import (
    Beta,
    Chi2,
    Dirichlet,
    Erlang,
    FisherSnedecor,
    Gamma,
    LogNormal,
    StudentT,
)
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.counts import Bernoulli, Binomial
from pyrovae.distributions.directional import VonMises
from pyrovae.distributions.elliptical import Elliptical
from pyrovae.distributions.interval import Reciprocal, Triangular, Uniform
from pyrovae.distributions.inverse_cdf import Hazard, InverseCDF
from pyrovae.distributions.kumaraswamy import Kumaraswamy
from pyrovae.distributions.lifetimes import Exponential, Gompertz, Pareto, Rayleigh, Weibull
from pyrovae.distributions.location_scale import (
    Cauchy,
    Gumbel,
    Laplace,
    LocationScale,
    Logistic,
    Normal,
)
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
    Rayleigh,
    Pareto,
    Gompertz,
    LogNormal,
    Beta,
    Kumaraswamy,
    Uniform,
    Reciprocal,
    Triangular,
    Dirichlet,
    MultivariateNormal,
    Elliptical,
    VonMises,
)

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Cauchy",
    "Chi2",
    "Composition",
    "ContinuousBernoulli",
    "Dirichlet",
    "Elliptical",
    "Erlang",
    "Exponential",
    "FisherSnedecor",
    "Gamma",
    "Gompertz",
    "Gumbel",
    "Hazard",
    "InverseCDF",
    "Kumaraswamy",
    "Laplace",
    "LocationScale",
    "LogNormal",
    "Logistic",
    "MultivariateNormal",
    "Normal",
    "Pareto",
    "Rayleigh",
    "Reciprocal",
    "Reparameterized",
    "Reshaped",
    "StudentT",
    "Triangular",
    "Uniform",
    "VonMises",
    "Weibull",
    "default_prior",
    "kl",
    "kl_directional",
    "kl_gamma",
    "lookup",
    "map_tensors",
    "names",
    "posterior_class",
    "posterior_domains",
    "prior_reason",
    "radial",
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
