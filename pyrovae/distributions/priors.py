r"""Which prior goes with which posterior family, and why.

A posterior family :math:`q` and a prior :math:`p(z)` must fit in two ways, or numbers are silently
wrong:

* **the ELBO needs a finite KL**: :math:`\mathrm{KL}(q \| p) < \infty` requires the support of q
  inside that of p and tails of p not too light under q (a Cauchy posterior has infinite KL to a
  Normal prior);
* **log p(x) needs q to cover p**: the importance weight :math:`p(z) / q(z)` should be bounded, or
  at least have a finite mean that is reached (a Gamma posterior under a Normal prior never
  proposes a negative z, and the estimate is low with a small standard error).

Each row below gives the prior of one unit, the reason, and the domains to which an amortized
posterior has to be narrowed: for the reason to hold (the degrees of freedom of a Student t must
exceed 2, for instance), or for its draws to be finite in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.distributions.composition import Chi2, Erlang, FisherSnedecor
from pyrovae.distributions.directional import (
    PowerSpherical,
    SphericalUniform,
    VonMises,
    VonMisesFisher,
    circle,
)
from pyrovae.distributions.elliptical import Elliptical
from pyrovae.distributions.implicit import Each, Mixture
from pyrovae.distributions.interval import Reciprocal, Triangular, Uniform
from pyrovae.distributions.kumaraswamy import Kumaraswamy
from pyrovae.distributions.lifetimes import Exponential, Gompertz, Pareto, Rayleigh
from pyrovae.distributions.location_scale import Cauchy, Gumbel, Normal

__all__ = [
    "default_prior",
    "posterior_class",
    "posterior_domains",
    "posterior_fixed",
    "prior_reason",
]


@dataclass(frozen=True)
class Row:
    """The prior of a family: how to build it from zeros of the event shape, and why.

    What an amortized posterior cannot learn is `fixed`, and the prior is built with it too.
    """

    build: Callable[..., Any]
    why: str
    domains: dict[str, Constraint] = field(default_factory=dict)  # for the reason to hold
    finite: dict[str, Constraint] = field(default_factory=dict)  # for draws that float32 can hold
    fixed: dict[str, float] = field(default_factory=dict)


def _normal(zero: Tensor) -> Any:
    return Normal(zero, torch.ones_like(zero))


def _multivariate_normal(zero: Tensor) -> Any:
    eye = torch.eye(zero.shape[-1], dtype=zero.dtype, device=zero.device)
    return dist.MultivariateNormal(zero, scale_tril=eye)


def _uniform_on_sphere(zero: Tensor) -> Any:
    uniform = SphericalUniform(zero.shape[-1], dtype=zero.dtype, device=zero.device)
    return uniform.expand(zero.shape[:-1])


_HEAVIER = "tails heavier than Gaussian on both sides: p/q is bounded and the KL finite"

_RECIPROCAL = (0.01, 100.0)

_UNIT = Row(
    lambda zero: Uniform(zero, torch.ones_like(zero)),
    "uniform on the unit interval: same support and a closed KL; p/q is bounded where both "
    "concentrations are at most 1",
)

_ROWS: dict[type, Row] = {
    dist.Normal: Row(
        _normal, "the same family: closed KL; Var[p/q] is finite where scale^2 > 1/2"
    ),
    dist.Laplace: Row(_normal, f"exponential tails, {_HEAVIER}"),
    dist.Logistic: Row(_normal, f"exponential tails, {_HEAVIER}"),
    dist.StudentT: Row(
        _normal,
        f"polynomial tails, {_HEAVIER} where the variance exists (df > 2)",
        {"df": constraints.greater_than(2.0)},
    ),
    dist.MultivariateNormal: Row(
        _multivariate_normal,
        "Normal(0, 1) per unit, spelled as the same family so that the KL is closed",
    ),
    dist.Cauchy: Row(
        lambda zero: Cauchy(zero, torch.ones_like(zero)),
        "z^2 has no mean under a Cauchy, so its KL to a Normal is infinite; to a Cauchy it is "
        "finite, and p/q is bounded",
    ),
    dist.Gumbel: Row(
        lambda zero: Gumbel(zero, torch.ones_like(zero)),
        "the left tail, exp(-exp(-z)), is far lighter than a Gaussian's, so a Normal prior would "
        "not be covered; within the family the KL is closed and finite",
    ),
    dist.Gamma: Row(
        lambda zero: dist.Gamma(torch.ones_like(zero), torch.ones_like(zero)),
        "the exponential law as a Gamma: same support, closed and finite KL; p/q is bounded "
        "where concentration <= 1 and rate <= 1",
    ),
    Erlang: Row(
        lambda zero, concentration: Erlang(
            torch.full_like(zero, concentration), torch.ones_like(zero)
        ),
        "the Erlang law of the same number of terms and rate 1: closed KL; p/q is bounded where "
        "rate <= 1. The number of terms is an integer, which no gradient learns: it is fixed, at "
        "3 unless given, and the network predicts the rate",
        fixed={"concentration": 3.0},
    ),
    dist.Chi2: Row(
        lambda zero: Chi2(torch.full_like(zero, 2.0)),
        "the exponential law of mean 2 as a chi-squared: same support, closed and finite KL; p/q "
        "is bounded where df <= 2",
    ),
    dist.FisherSnedecor: Row(
        lambda zero: FisherSnedecor(torch.full_like(zero, 4.0), torch.full_like(zero, 4.0)),
        "polynomial at both ends, so only a prior that is too has a bounded p/q; F(4, 4), whose "
        "log z is symmetric about 0 and whose mean is 2: the KL is finite, and p/q is bounded "
        "where df1 <= 4 and df2 <= 4",
        finite={"df1": constraints.greater_than(0.5), "df2": constraints.greater_than(0.5)},
    ),
    dist.Exponential: Row(
        lambda zero: Exponential(torch.ones_like(zero)),
        "the same family: closed KL; p/q is bounded where rate <= 1",
    ),
    dist.Weibull: Row(
        lambda zero: Exponential(torch.ones_like(zero)),
        "the Weibull of concentration 1: same support, E[z] is finite and so is the KL; p/q is "
        "bounded where concentration < 1, and at 1 where scale >= 1",
        finite={"concentration": constraints.greater_than(0.3)},
    ),
    dist.LogNormal: Row(
        lambda zero: dist.LogNormal(zero, torch.ones_like(zero)),
        "its density falls to 0 at 0 faster than any power, so a Gamma prior would not be "
        "covered; within the family the KL is the Normal's",
        finite={"loc": constraints.interval(-40.0, 40.0), "scale": constraints.interval(0.0, 8.0)},
    ),
    dist.Beta: Row(
        lambda zero: dist.Beta(torch.ones_like(zero), torch.ones_like(zero)),
        "uniform on the unit interval, spelled Beta(1, 1): closed KL; p/q is bounded where both "
        "concentrations are at most 1",
    ),
    dist.Uniform: Row(
        lambda zero: Uniform(zero, torch.ones_like(zero)),
        "uniform on the unit interval: the KL is finite where the posterior lies inside; an "
        "interval narrower than (0, 1) does not cover the prior, so importance-weighted log p(x) "
        "is a lower bound",
        {"low": constraints.unit_interval, "high": constraints.unit_interval},
    ),
    Rayleigh: Row(
        lambda zero: Rayleigh(torch.ones_like(zero)),
        "its density vanishes at 0, so an exponential prior would not be covered there; within "
        "the family the KL is closed, and p/q is bounded where scale >= 1",
    ),
    Gompertz: Row(
        lambda zero: Exponential(torch.ones_like(zero)),
        "the limit of a Gompertz whose rate goes to 0: same support and a closed KL; the right "
        "tail of a Gompertz is lighter, so importance weights are unbounded far out",
    ),
    Pareto: Row(
        lambda zero: Pareto(torch.ones_like(zero), torch.ones_like(zero)),
        "only a prior with a polynomial tail that starts no later has a finite KL: Pareto(1, 1); "
        "a posterior that starts above 1 does not cover it, so importance-weighted log p(x) is a "
        "lower bound",
        {"scale": constraints.greater_than(1.0)},
        finite={"alpha": constraints.greater_than(0.3)},
    ),
    Kumaraswamy: _UNIT,
    Reciprocal: Row(
        lambda zero: Reciprocal(
            torch.full_like(zero, _RECIPROCAL[0]), torch.full_like(zero, _RECIPROCAL[1])
        ),
        "log-uniform from 0.01 to 100: the KL is finite where the posterior lies inside; a "
        "narrower interval does not cover the prior, so importance-weighted log p(x) is a lower "
        "bound",
        {"low": constraints.interval(*_RECIPROCAL), "high": constraints.interval(*_RECIPROCAL)},
        finite={
            "low": constraints.interval(*_RECIPROCAL),
            "high": constraints.interval(*_RECIPROCAL),
        },
    ),
    Triangular: Row(
        lambda zero: Uniform(zero, torch.ones_like(zero)),
        "uniform on the unit interval: the KL is finite where the posterior lies inside; an "
        "interval narrower than (0, 1) does not cover the prior, so importance-weighted log p(x) "
        "is a lower bound",
        {"low": constraints.unit_interval, "high": constraints.unit_interval},
    ),
    Elliptical: Row(
        _normal,
        "independent Normal(0, 1): the same support and a closed KL where the radial law has a "
        "variance; radial laws with tails of exp(-r) and heavier cover it",
    ),
    VonMises: Row(
        lambda zero: Uniform(zero - math.pi, zero + math.pi),
        "uniform on the circle, the von Mises law of concentration 0: the KL is closed, and p/q "
        "is bounded by exp(2 concentration)",
        finite={"loc": circle},  # an angle from two numbers, so that a network can go around
    ),
    VonMisesFisher: Row(
        _uniform_on_sphere,
        "uniform on the sphere, the law of concentration 0: the KL is closed and free of the "
        "mean direction, and p/q is bounded by exp(2 concentration)",
    ),
    PowerSpherical: Row(
        _uniform_on_sphere,
        "uniform on the sphere, the law of concentration 0: the KL is closed and free of the "
        "mean direction; opposite to it the density vanishes, so Var[p/q] is finite only where "
        "the concentration is below (d - 1)/2",
    ),
    dist.Dirichlet: Row(
        lambda zero: dist.Dirichlet(torch.ones_like(zero)),
        "flat on the simplex: same support, closed KL; p/q is bounded where every concentration "
        "is at most 1",
    ),
}


def default_prior(posterior: Any, event_shape: int | Sequence[int]) -> Any:
    """Return the prior p(z) that fits a posterior family's support and tails.

    Args:
        posterior: a distribution class, a `functools.partial` of one, or a distribution (its
            `to_event` is looked through).
        event_shape: shape of one draw z, `20` or `(4, 5)`.

    Returns:
        a distribution with empty batch shape and this event shape.

    Raises:
        ValueError: no row for this family: a prior must be given.

    >>> default_prior(dist.Laplace, 20).event_shape
    torch.Size([20])
    """
    row = _row(posterior)
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    prior = row.build(torch.zeros(shape), **_fixed_in(posterior, row))
    n = len(shape) - len(prior.event_shape)
    return prior.to_event(n) if n else prior


def prior_reason(posterior: Any) -> str:
    """Return in words why the default prior of a family is what it is."""
    return _row(posterior).why


def posterior_domains(posterior: Any, prior: Any = None) -> dict[str, Constraint]:
    """Return the domains to which a network that predicts the posterior has to be narrowed.

    Args:
        posterior: a distribution class or a distribution.
        prior: the prior, None for the default one. What the default one asks for holds for each
            of its class on the real line (df > 2 under any Normal). With others only what keeps
            draws finite in float32 remains (the log of a LogNormal draw must stay below 88).
    """
    found = _find(posterior)
    if found is None:
        return {}
    return {**found.finite, **(found.domains if _as_by_default(found, prior) else {})}


def _as_by_default(row: Row, prior: Any) -> bool:
    if prior is None:
        return True
    own = row.build(torch.zeros(2), **row.fixed)
    return own.support is constraints.real and isinstance(own, posterior_class(prior))


def posterior_fixed(posterior: Any) -> dict[str, float]:
    """Return the parameters that a network cannot learn, with the values they get unless given."""
    found = _find(posterior)
    return {} if found is None else dict(found.fixed)


def posterior_class(posterior: Any) -> type:
    """Return the family of a distribution or class, through `to_event`, `mask` and `expand`."""
    if isinstance(posterior, partial):
        posterior = posterior.func
    while not isinstance(posterior, type):
        if not hasattr(posterior, "base_dist") or _known(type(posterior)) is not None:
            return type(posterior)
        posterior = posterior.base_dist
    return posterior


def _fixed_in(posterior: Any, row: Row) -> dict[str, float]:
    """Return the row's fixed parameters, as large as the posterior's where it has them."""
    if isinstance(posterior, partial):
        given = posterior.keywords
    elif isinstance(posterior, type):
        given = {}
    else:
        while row.fixed and hasattr(posterior, "base_dist"):
            posterior = posterior.base_dist
        part = _parts(posterior)[0]
        given = {name: getattr(part, name) for name in row.fixed}
    return {
        name: torch.as_tensor(given.get(name, usual)).max().item()
        for name, usual in row.fixed.items()
    }


def _find(posterior: Any) -> Row | None:
    families = {posterior_class(d) for d in _parts(posterior)}
    return _known(families.pop()) if len(families) == 1 else None


def _parts(posterior: Any) -> list[Any]:
    """Return the components of a mixture, through `to_event`; other distributions alone."""
    inner = posterior
    while not isinstance(inner, type) and hasattr(inner, "base_dist"):
        inner = inner.base_dist
    if not isinstance(inner, Mixture):
        return [posterior]
    return [inner.components] if hasattr(inner.components, "log_prob") else list(inner.components)


def _known(family: type) -> Row | None:
    found = next((_ROWS[cls] for cls in family.__mro__ if cls in _ROWS), None)
    part = getattr(family, "component", None)  # of a class made by mixture_of: what fits it fits
    row = None if part is None else _known(part)
    if row is None:
        return found

    def each(domains: dict[str, Constraint]) -> dict[str, Constraint]:
        vectors = {
            n: constraints.independent(c, 1) if family.joint else c for n, c in domains.items()
        }
        return {n: Each(c, family.count) for n, c in vectors.items()}

    return replace(row, domains=each(row.domains), finite=each(row.finite))


def _row(posterior: Any) -> Row:
    row = _find(posterior)
    if row is None:
        known = ", ".join(sorted({cls.__name__ for cls in _ROWS}))
        raise ValueError(
            "no default prior is known for the posterior family "
            f"{posterior_class(posterior).__name__}: give one (prior=...) whose support and tails "
            f"its draws cover; known: {known}"
        )
    return row
