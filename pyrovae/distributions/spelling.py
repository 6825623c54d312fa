r"""Families as text: `laplace`, `gamma(0.3, 0.3)`, `student-t(df=5)`, `mixture(normal, 3)`.

A command line and a saved run have text only. The grammar is a name and numbers::

    family  :=  name  |  name "(" [item {"," item}] ")"
            |  "mixture" "(" family "," count ["," "joint"] ")"
    item    :=  number  |  parameter "=" number

with the numbers in the order of the constructor's arguments. Nothing is evaluated. A number for a
vector parameter means that number everywhere, for a matrix that multiple of the identity. On a
sphere the usual direction is the one in which all coordinates are equal. A mixture is the class
that `mixture_of` makes; the numbers of its family are those of every component.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.distributions.implicit import Each, Mixture
from pyrovae.distributions.priors import default_prior

__all__ = [
    "bind",
    "build",
    "full",
    "spell",
    "spell_values",
    "split",
    "split_list",
    "split_mixture",
]

#: what a prior's parameter is where neither the text nor the family's default prior says it
_STANDARD = {
    "loc": 0.0, "scale": 1.0, "rate": 1.0, "alpha": 1.0,
    "concentration": 1.0, "concentration1": 1.0, "concentration0": 1.0,
    "low": 0.0, "peak": 0.5, "high": 1.0, "scale_tril": 1.0,
}  # fmt: skip
_SHAPES = ("scale_tril", "scale_diag", "covariance_matrix", "precision_matrix", "cov_factor")
_SPHERE = type(pyro_constraints.sphere)
_SQUARE = (type(constraints.lower_cholesky), type(constraints.positive_definite))


def split_list(text: str) -> list[str]:
    """Split at the commas outside of parentheses.

    >>> split_list("normal, mixture(gamma(1, 2), 3)")
    ['normal', 'mixture(gamma(1, 2), 3)']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def split_mixture(text: str) -> tuple[str, int, bool] | None:
    """Return the components' text, their number and whether they are joint; None of no mixture.

    Raises:
        ValueError: a mixture that does not follow the grammar.

    >>> split_mixture("mixture(student-t(df=5), 3)")
    ('student-t(df=5)', 3, False)
    """
    found = re.fullmatch(r"\s*mixture\s*(?:\((.*)\))?\s*", text, re.IGNORECASE)
    if found is None:
        return None
    family, count, *joint = [*split_list(found[1] or ""), "", ""][:4]
    joint = [word.lower() for word in joint if word]
    if not family or not count.isdecimal() or int(count) < 1 or joint not in ([], ["joint"]):
        raise ValueError(
            f"{text!r}: expected a family and a number of components, such as mixture(normal, 3), "
            "or mixture(normal, 3, joint) for one choice among vectors"
        )
    return family, int(count), bool(joint)


def split(text: str) -> tuple[str, list[float], dict[str, float]]:
    """Return name, numbers and named numbers of a text.

    Raises:
        ValueError: text that does not follow the grammar; the message shows how to write it.

    >>> split("student-t(5, scale=2)")
    ('student-t', [5.0], {'scale': 2.0})
    """
    found = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*", text)
    if found is None:
        raise ValueError(
            f"{text!r}: expected a family, such as laplace, gamma(0.3, 0.3) or student-t(df=5)"
        )
    numbers: list[float] = []
    named: dict[str, float] = {}
    for item in split_list(found[2] or ""):
        name, equals, value = (part.strip() for part in item.rpartition("="))
        if not equals and named:
            raise ValueError(f"{text!r}: the number {value!r} comes after named ones; name it too")
        if name in named:
            raise ValueError(f"{text!r}: the parameter {name!r} is given twice")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{text!r}: expected a number, found {value!r}") from None
        if equals:
            named[name] = number
        else:
            numbers.append(number)
    return found[1], numbers, named


def bind(
    family: type, numbers: Sequence[float], named: Mapping[str, float], text: str
) -> dict[str, float]:
    """Return the numbers by the names of the family's parameters, checked one by one.

    Raises:
        ValueError: too many numbers, an unknown parameter, or a number outside its domain.
    """
    domains = _parameters(family)
    if len(numbers) > len(domains):
        raise ValueError(
            f"{text!r}: {family.__name__} takes at most {len(domains)} numbers "
            f"({', '.join(domains)}), got {len(numbers)}"
        )
    values = dict(zip(domains, numbers, strict=False))
    for name, number in named.items():
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{text!r}: {family.__name__} has no parameter {name!r}; did you mean {near!r}? "
                f"It has {', '.join(domains)}"
            )
        if name in values:
            raise ValueError(f"{text!r}: the parameter {name!r} is given twice")
        values[name] = number
    for name, number in values.items():
        domain = _scalar(domains[name])
        inside = domain is None or bool(domain.check(torch.tensor(number, dtype=torch.float64)))
        if not inside or not math.isfinite(number):
            raise ValueError(
                f"{text!r}: expected the parameter {name!r} of {family.__name__} to satisfy the "
                f"constraint {domains[name]} and be finite, but found {number:g}"
            )
    return values


def build(family: type, values: Mapping[str, float], event_shape: int | Sequence[int]) -> Any:
    """Return the distribution over one latent whose units all have these parameters.

    What is left out is as in the family's default prior where that is of the same family, else
    location 0, scale, rate and concentrations 1, the interval (0, 1).

    Raises:
        ValueError: a parameter without such a value is missing, or the parameters do not fit.
    """
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    zero, text = torch.zeros(shape), spell_values(family, values)
    if issubclass(family, Mixture):
        raise ValueError(
            f"{text!r}: as a prior its components would all be the same; build one whose "
            "components differ, prior=Mixture(logits, components)"
        )
    usual = default_prior(family, shape)
    usual = usual.base_dist if isinstance(usual, Independent) else usual
    own = issubclass(family, type(usual))
    arguments = {}
    for name, value in {**dict.fromkeys(_required(family, values)), **values}.items():
        number = _usual(family, name, shape) if value is None else value
        if value is None and own:
            arguments[name] = getattr(usual, name)
        elif number is None:
            raise ValueError(
                f"{text!r}: the parameter {name!r} of {family.__name__} has no usual value; give "
                f"it, for example {family.__name__}({name}=5)"
            )
        else:
            arguments[name] = full(family, name, number, zero)
    try:
        family(**arguments, validate_args=True)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    prior = family(**arguments)
    n = len(shape) - len(prior.event_shape)
    return prior.to_event(n) if n else prior


def full(family: type, name: str, value: float, zero: Tensor) -> Tensor:
    """Return a parameter that is one number for every unit, in the shape its domain asks for.

    Args:
        family: the distribution class.
        name: the parameter.
        value: its number; of a square matrix the diagonal.
        zero: zeros of the shape of a latent.
    """
    domain = _parameters(family)[name]
    if isinstance(domain, Each):  # the components of a mixture, all alike
        if domain.event_dim == 1 or family.joint:
            return torch.tensor(value).to(zero)
        domain = domain.base_constraint
    if isinstance(domain, _SQUARE):
        n = zero.shape[-1]
        return (value * torch.eye(n).to(zero)).expand(zero.shape + (n,))
    if isinstance(getattr(family, "support", None), _SPHERE) and domain.event_dim == 0:
        zero = zero[..., 0]  # one concentration a vector
    if not constraints.is_dependent(domain) and domain.event_dim > 1:
        raise ValueError(f"the matrix {name!r} of {family.__name__} cannot be given as one number")
    return torch.full_like(zero, value)


def _usual(family: type, name: str, shape: tuple[int, ...]) -> float | None:
    if isinstance(_parameters(family)[name], _SPHERE):
        return shape[-1] ** -0.5
    return _STANDARD.get(name)


def spell(family: type, d: Any) -> str | None:
    """Return the text of a distribution of this family; None where its units differ."""
    domains = _parameters(family)
    if _arguments(family) - {*domains, "validate_args"}:
        return None  # it was built of more than numbers
    held = [name for name in domains if d.__dict__.get(name) is not None]
    values = {}
    for name in _required(family, held):
        values[name] = _one_number(getattr(d, name), domains[name])
        if values[name] is None:
            return None
    return spell_values(family, values)


def spell_values(family: type, values: Mapping[str, float]) -> str:
    """Return the text of a family with these numbers.

    >>> from pyrovae.distributions import StudentT
    >>> spell_values(StudentT, {"df": 5.0})
    'StudentT(df=5)'
    """
    if issubclass(family, Mixture):
        inside = [spell_values(family.component, values), str(family.count)]
        return f"Mixture({', '.join(inside + ['joint'] * family.joint)})"
    inside = ", ".join(f"{name}={_number(value)}" for name, value in values.items())
    return f"{family.__name__}({inside})" if inside else family.__name__


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _parameters(family: type) -> dict[str, Constraint]:
    """Return the parameters that a number can give, in the constructor's order."""
    known = family.arg_constraints
    return {name: known[name] for name in signature(family).parameters if name in known}


def _arguments(family: type) -> set[str]:
    parameters = signature(family).parameters.values()
    return {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD}


def _required(family: type, given: Iterable[str]) -> list[str]:
    """Return the parameters it takes to construct one, among them one spelling of a matrix."""
    parameters = signature(family).parameters
    known = _parameters(family)
    names = [name for name in known if parameters[name].default is Parameter.empty]
    shapes = [name for name in _SHAPES if name in known]
    if shapes:
        names.append(next((name for name in shapes if name in given), shapes[0]))
    return names


def _scalar(domain: Constraint) -> Constraint | None:
    """Return the domain of one element of a parameter, None where it has no fixed one."""
    if constraints.is_dependent(domain):
        return None
    while isinstance(domain, constraints.independent):
        domain = domain.base_constraint
    if isinstance(domain, _SQUARE):
        return constraints.positive
    return domain if domain.event_dim == 0 else None


def _one_number(value: Tensor, domain: Constraint) -> float | None:
    if value.numel() == 0:
        return None
    first = value.flatten()[0]
    if isinstance(domain, _SQUARE):
        same = (value == first * torch.eye(value.shape[-1]).to(value)).all()
    else:
        same = (value == first).all()
    return float(str(first.detach().cpu().numpy())) if bool(same) else None  # 0.3 of a float32
