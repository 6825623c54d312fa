"""What every family refuses, by name: parameters outside their domain, values outside the support.

With validation off, and under `torch.vmap`, a value outside has log-density minus infinity.
"""

import math
import re

import pytest
import torch
from pyro.distributions.constraints import sphere
from torch.distributions import constraints

from pyrovae import distributions as D
from tests.distributions.table import ROWS

ENDS = {"low": 99.0, "peak": -9.0, "high": -9.0}  # each past another end


def rebuilt(row, validate_args=True, **changes):
    """The row's distribution, some parameters changed."""
    d = row.build()
    given = {name: getattr(d, name) for name in row.arguments}
    return row.family(**(given | changes), validate_args=validate_args)


def numbers_in(text):
    """All numbers that a message has."""
    return [float(t) for t in re.findall(r"nan|-?inf|-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def says(text, number):
    """Whether a message has this number, as far as it is printed."""
    return any(found == pytest.approx(number, rel=1e-3, nan_ok=True) for found in numbers_in(text))


def bad_numbers(name, domain):
    """Numbers outside a parameter's domain."""
    yield math.nan
    if name in ENDS:
        yield ENDS[name]
    elif isinstance(domain, constraints.greater_than):
        yield from (-1.5, 0.0)
    elif isinstance(domain, type(constraints.positive_integer)):
        yield from (-2.0, 0.0, 2.5)
    elif isinstance(domain, constraints.independent):
        yield from list(bad_numbers(name, domain.base_constraint))[1:]
    elif isinstance(domain, type(constraints.lower_cholesky)):
        yield -1.5


PARAMETERS = [
    pytest.param(row, name, number, id=f"{row.name}-{name}-{number}")
    for row in ROWS
    for name, value in row.arguments.items()
    if isinstance(value, list)
    for number in [
        *bad_numbers(name, row.family.arg_constraints[name]),
        *([] if row.family is D.MultivariateNormal else [math.inf]),  # it is Pyro's
    ]
]


def test_every_parameter_of_every_family_is_here():
    """Of the table's, which test_table.py keeps complete."""
    rows = {row.family for row in ROWS} - {D.SphericalUniform}  # it has none
    assert {case.values[0].family for case in PARAMETERS} == rows


@pytest.mark.parametrize(("row", "name", "number"), PARAMETERS)
def test_a_bad_parameter_is_named_with_its_value_and_its_constraint(row, name, number):
    value = getattr(row.build(), name).clone()
    value.view(-1)[0] = number
    with pytest.raises(ValueError, match=name) as raised:
        rebuilt(row, **{name: value})
    said = str(raised.value)
    assert row.family.__name__ in said
    assert says(said, number) or number == ENDS.get(name), said
    assert re.search("constraint|less than|lie within|be positive|be finite", said), said


def outside(d):
    """Values, each of which has one element outside of the support."""
    z = d.sample()
    support = d.support
    if isinstance(support, type(sphere)):
        return [z * 1.5, z * 0.0]
    if isinstance(support, type(constraints.simplex)):
        return [z * 1.5, torch.cat([-z[:1], z[1:2] + 2 * z[:1], z[2:]])]
    values = []
    for end, sign in (("lower_bound", -1.0), ("upper_bound", 1.0)):
        bound = getattr(support, end, None)
        if bound is None:
            continue
        for step in (1e-3, 1.0, 1e30):
            values.append(z.clone())
            values[-1][0] = torch.as_tensor(bound).flatten()[0] + sign * step
    return values


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_values_outside_the_support_are_refused_and_have_no_density(row):
    d, unchecked = rebuilt(row), rebuilt(row, validate_args=False)
    batch = d.batch_shape
    for value in outside(d):
        with pytest.raises(ValueError, match=r"within the support") as raised:
            d.log_prob(value)
        assert row.family.__name__ in str(raised.value)
        assert says(str(raised.value), value.flatten()[0].item()), str(raised.value)
        found = unchecked.log_prob(value)
        assert (found[0] if batch else found) == -math.inf
        assert not batch or found[1:].isfinite().all()
    nan = torch.full_like(d.sample(), math.nan)
    with pytest.raises(ValueError, match=r"(?s)within the support.*nan"):
        d.log_prob(nan)
    assert not unchecked.log_prob(nan).isfinite().any()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_inside_a_transform_values_outside_have_no_density(row):
    d = rebuilt(row, validate_args=False)
    for value in outside(d):
        if d.event_shape:
            found = torch.vmap(d.log_prob)(value[None])[0]
        else:
            found = torch.vmap(lambda z: d.log_prob(z))(value[None])[0, 0]
        assert found == -math.inf
