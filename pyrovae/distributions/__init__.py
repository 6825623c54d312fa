r"""Distributions: reparameterizable families for posteriors, and fast ones for pixels.

* location-scale: `Normal`, `Laplace`, `Logistic`, `Cauchy`, `Gumbel`, `StudentT`, and for vectors
  `Elliptical` with the laws of :mod:`pyrovae.distributions.radial`, `MultivariateNormal`;
* inverse cdf: `Exponential`, `Weibull`, `Rayleigh`, `Pareto`, `Gompertz`, `Kumaraswamy`, and on an
  interval `Uniform`, `Reciprocal`, `Triangular`;
* compositions: `Gamma`, `Erlang`, `Chi2`, `LogNormal`, `Beta`, `Dirichlet`, `FisherSnedecor`;
* directions: `VonMises` for angles; `VonMisesFisher`, `PowerSpherical` and, as their prior,
  `SphericalUniform` for unit vectors;
* implicit: `Mixture` of any of them, `mixture_of` for an encoder's head, `Truncated`, and a family
  of your own from a density and a cdf (`InverseCDF`);
* likelihoods: `Bernoulli`, `Binomial` (summed over the event), `ContinuousBernoulli`;
* for authors of families: `Reparameterized`, `LocationScale`, `InverseCDF`, `Composition`;
* for whole distributions: `Reshaped`, `map_tensors`;
* which prior fits which posterior: `default_prior`, `prior_reason`, `posterior_domains`;
* families by name, for the command line: `names`, `lookup`; with numbers, `gamma(0.3, 0.3)`:
  `parse`, `prior_by_name`, `spelled`.

A family that torch or Pyro has is a subclass of theirs, so that `isinstance` and `kl_divergence`
keep dispatching; what they do right is theirs and exported as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pyro.distributions import Independent, MultivariateNormal

from pyrovae.distributions import kl, kl_directional, kl_gamma, radial, spelling
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
from pyrovae.distributions.directional import (
    PowerSpherical,
    SphericalUniform,
    VonMises,
    VonMisesFisher,
)
from pyrovae.distributions.elliptical import Elliptical
from pyrovae.distributions.implicit import Mixture, Truncated, mixture_of
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
    posterior_fixed,
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
    Erlang,
    Chi2,
    FisherSnedecor,
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
    VonMisesFisher,
    PowerSpherical,
)
_SHORT = {"vmf": VonMisesFisher}

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
    "Mixture",
    "MultivariateNormal",
    "Normal",
    "Pareto",
    "PowerSpherical",
    "Rayleigh",
    "Reciprocal",
    "Reparameterized",
    "Reshaped",
    "SphericalUniform",
    "StudentT",
    "Triangular",
    "Truncated",
    "Uniform",
    "VonMises",
    "VonMisesFisher",
    "Weibull",
    "default_prior",
    "kl",
    "kl_directional",
    "kl_gamma",
    "lookup",
    "map_tensors",
    "mixture_of",
    "names",
    "parse",
    "posterior_class",
    "posterior_domains",
    "posterior_fixed",
    "prior_by_name",
    "prior_reason",
    "radial",
    "spelled",
    "spelling",
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
    if plain in known or plain in _SHORT:
        return (known | _SHORT)[plain]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.0)
    raise ValueError(
        f"unknown distribution {name!r}; did you mean {known[near[0]].__name__!r}? "
        f"Known: {', '.join(names())}"
    )


def parse(text: str) -> tuple[type, dict[str, float]]:
    """Return family and numbers of a text: a name, or a name with numbers in parentheses.

    `mixture(normal, 3)` is the class `mixture_of(Normal, 3)`; the grammar is in
    :mod:`pyrovae.distributions.spelling`.

    Raises:
        ValueError: the text is not of this form, or an unknown family or parameter, or a number
            outside the parameter's domain; the message names it.

    >>> family, parameters = parse("student-t(df=5)")
    >>> family.__name__, parameters
    ('StudentT', {'df': 5.0})
    """
    mixture = spelling.split_mixture(text)
    if mixture is not None:
        component, count, joint = mixture
        family, values = parse(component)
        return mixture_of(family, count, joint), values
    name, numbers, named = spelling.split(text)
    family = lookup(name)
    return family, spelling.bind(family, numbers, named, text)


def prior_by_name(text: str, event_shape: int | Sequence[int]) -> Any:
    """Return the prior of this text, `gamma(0.3, 0.3)`, the same for every unit of one latent.

    Numbers that are left out are those of the family's default prior where that is of the same
    family, else location 0, scale, rate and concentrations 1, the interval (0, 1).

    Args:
        text: as for :func:`parse`.
        event_shape: shape of one draw z, `20` or `(4, 5)`.

    Raises:
        ValueError: as :func:`parse`; also where a number is missing that has no usual value.

    >>> prior_by_name("laplace", 20).event_shape
    torch.Size([20])
    """
    return spelling.build(*parse(text), event_shape)


def spelled(d: Any) -> str | None:
    """Return the text from which `prior_by_name` builds d; None where there is none.

    >>> spelled(Gamma(0.5, 2.0).expand([20]).to_event(1))
    'Gamma(concentration=0.5, rate=2)'
    """
    while isinstance(d, Independent):
        d = d.base_dist
    family = next((cls for cls in _FAMILIES if cls.__name__ == type(d).__name__), None)
    if family is None or not issubclass(family, type(d)):
        return None
    return spelling.spell(family, d)
