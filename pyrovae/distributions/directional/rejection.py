"""Draws by rejection, with a loop where values may be looked at and without one in a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.distributions.base import can_look

__all__ = ["first_accepted"]

_PROPOSALS = 24


def first_accepted(
    propose: Callable[[Tensor], tuple[Tensor, Tensor]], parameter: Tensor
) -> Tensor:
    """Return the first proposal that is accepted, for each element of the parameter.

    In a graph 24 are made, and the last one stands where none is accepted: with the samplers of
    this package, which accept two of three, that has probability 1e-11.

    Args:
        propose: parameters to proposals and whether each is accepted, elementwise.
        parameter: any shape.
    """
    draw, done = propose(parameter)
    if not can_look():
        for _ in range(_PROPOSALS - 1):
            other, accepted = propose(parameter)
            draw, done = torch.where(done, draw, other), done | accepted
        return draw
    shape, draw, parameter = draw.shape, draw.flatten(), parameter.flatten()
    left = (~done).flatten().nonzero().squeeze(-1)
    while left.numel():
        draw[left], accepted = propose(parameter[left])
        left = left[~accepted]
    return draw.view(shape)
