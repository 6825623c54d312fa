"""Supports as sets: which guide reaches what of which prior."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints, transforms

from pyrovae.traces.support import check_data, compare, contains, support_of

one = torch.ones(3)
unit = dist.Uniform(0 * one, 1)
Exp = transforms.ExpTransform


def moved(base, *steps):
    return dist.TransformedDistribution(base, list(steps))


CASES = [
    (dist.Normal(0 * one, 1), dist.Normal(0.0, 1.0), "equal"),
    (dist.Normal(0 * one, 1).to_event(1), dist.MultivariateNormal(0 * one, torch.eye(3)), "equal"),
    (dist.Laplace(0 * one, 1).mask(True), dist.Cauchy(0.0, 1.0), "equal"),
    (dist.Uniform(-one, one), dist.Normal(0.0, 1.0), "narrower"),
    (dist.Gamma(one, one), dist.Normal(0.0, 1.0), "narrower"),
    (dist.Normal(0 * one, 1), dist.Gamma(one, one), "wider"),
    (dist.LogNormal(0 * one, 1), dist.Gamma(one, one), "equal"),
    (dist.HalfNormal(one), dist.Exponential(one), "equal"),
    (dist.Weibull(one, one), dist.Exponential(one), "equal"),
    (dist.Gumbel(0 * one, 1), dist.Normal(0.0, 1.0), "equal"),
    (dist.Beta(one, one), dist.Uniform(0 * one, 1.0), "equal"),
    (dist.Beta(one, one), dist.Exponential(one), "narrower"),
    (dist.Kumaraswamy(one, one), dist.Beta(one, one), "equal"),
    (dist.Uniform(0 * one, 2.0), dist.Uniform(1.0, 3 * one), "crossing"),
    (dist.Uniform(0 * one, 1.0), dist.Uniform(0.0, torch.tensor([1.0, 2, 1])), "narrower"),
    (dist.Pareto(2 * one, 1.0), dist.Exponential(one), "narrower"),
    (dist.VonMises(0 * one, 1.0), dist.Uniform(-math.pi, math.pi * one), "equal"),
    (dist.VonMises(0 * one, 1.0), dist.Normal(0.0, 1.0), "narrower"),
    (dist.Normal(0 * one, 1.0), dist.VonMises(0.0, 1.0), "wider"),
    (dist.Dirichlet(one), dist.Dirichlet(2 * one), "equal"),
    (dist.Dirichlet(one), dist.Normal(0 * one, 1).to_event(1), "unknown"),
    (dist.ProjectedNormal(one), dist.ProjectedNormal(-one), "equal"),
    (dist.Categorical(logits=one), dist.Categorical(logits=torch.zeros(5)), "narrower"),
    (dist.Bernoulli(0.5 * one), dist.Categorical(logits=torch.zeros(3, 2)), "equal"),
    (dist.Poisson(one), dist.Geometric(0.5 * one), "equal"),
    (dist.Delta(one), dist.Normal(0.0, 1.0), "point"),
    (dist.Delta(one), dist.Delta(one), "equal"),
    # torch calls the support of an affine image of a Uniform "real": it is not
    (moved(unit, transforms.AffineTransform(-1.0, 2.0)), dist.Normal(0.0, 1.0), "narrower"),
    (moved(unit, transforms.AffineTransform(1.0, -2.0)), dist.Uniform(-1.0, 1.0), "equal"),
    (moved(dist.Normal(0 * one, 1), transforms.SigmoidTransform()), dist.Beta(one, one), "equal"),
    (moved(dist.Normal(0 * one, 1), Exp(), transforms.AffineTransform(1.0, 2.0)),
     dist.Exponential(one), "narrower"),
    (moved(dist.Normal(0 * one, 1), transforms.TanhTransform()), dist.Uniform(-1.0, 1.0), "equal"),
    (moved(dist.Normal(torch.zeros(2), 1).to_event(1), transforms.StickBreakingTransform()),
     dist.Dirichlet(one), "equal"),
    (moved(dist.Normal(0 * one, 1).to_event(1), dist.transforms.planar(3)),
     dist.Normal(0 * one, 1).to_event(1), "equal"),
    (dist.MixtureSameFamily(dist.Categorical(logits=one), dist.Normal(0 * one, 1)),
     dist.Normal(0.0, 1.0), "equal"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("guide", "prior", "label"), CASES, ids=lambda v: getattr(type(v), "__name__", v)
)
def test_supports_are_compared(guide, prior, label):
    relation = compare(guide, prior)
    assert relation.label == label
    assert relation.is_lower_bound == (label in ("narrower", "crossing"))
    assert relation.is_infinite == (label in ("wider", "crossing"))


def test_bounds_that_differ_between_data_are_not_everywhere():
    assert not compare(
        dist.Uniform(0 * one, torch.tensor([1.0, 2, 1])), dist.Uniform(0.0, 1.0)
    ).everywhere
    assert compare(dist.Uniform(0 * one, 2 * one), dist.Uniform(0.0, 1.0)).everywhere


def test_containing_reduces_event_dimensions_and_lets_nan_through():
    value = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [math.nan, 1.0]])
    found = contains(dist.Gamma(torch.ones(2), 1.0).to_event(1), value)
    assert found.tolist() == [True, False, True]
    assert contains(dist.Bernoulli(torch.ones(2)), torch.tensor([1.0, 0.5])).tolist() == [
        True,
        False,
    ]
    assert support_of(dist.Gamma(one, one)).low.item() == 0


def test_data_that_depend_on_the_latents_are_not_checked():
    check_data("x", dist.Uniform(one, 2 * one), 5 * one, 0, -1)
    with pytest.raises(
        ValueError, match=r"site 'x': datum 11 has values in \[-5, -5\], outside .* Exponential"
    ):
        check_data("x", dist.Exponential(one), torch.tensor([1.0, -5.0, 1.0]), 10, -1)
    with pytest.raises(ValueError, match="datum 2 holds inf"):
        check_data(
            "x", dist.Normal(one, one).to_event(0), torch.tensor([1.0, 1.0, math.inf]), 0, -1
        )
    assert constraints.real.check(torch.tensor(math.inf))  # torch finds nothing wrong with it
