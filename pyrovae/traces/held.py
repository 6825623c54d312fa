"""Programs that a step may hold still, and which parameters a program uses.

An E-step moves the guide, an M-step the model. The program that does not move is held still: its
networks' buffers (BatchNorm's statistics) are put back after each call, and if it is the guide its
draws carry no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.traces.params import frozen_buffers, modules_of
from pyrovae.traces.recorder import Recorder, record, replayed

__all__ = ["Held", "uses"]

AnyProgram = Callable[..., Any]


class Held:
    """A program that can be held still for a while; otherwise exactly that program."""

    def __init__(self, program: AnyProgram) -> None:
        functools.update_wrapper(self, program, updated=())
        self.program = program
        self._keeps_buffers = self._stops_gradient = False
        self._buffers = [
            (module, name)
            for outer in modules_of(program)
            for module in outer.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @contextmanager
    def held(self, buffers: bool = True, gradient: bool = False) -> Iterator[None]:
        """Put buffers back after each call, and stop the gradient, inside the block."""
        before = self._keeps_buffers, self._stops_gradient
        self._keeps_buffers, self._stops_gradient = buffers, gradient
        try:
            yield
        finally:
            self._keeps_buffers, self._stops_gradient = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        if not (self._keeps_buffers and self._buffers):
            return self._run(args, kwargs)
        own = [(module, name, module._buffers[name]) for module, name in self._buffers]
        try:
            for module, name, buffer in own:  # the graph may keep what the call has moved
                module._buffers[name] = buffer.detach().clone()
            return self._run(args, kwargs)
        finally:
            for module, name, buffer in own:
                module._buffers[name] = buffer

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._stops_gradient:
            return self.program(*args, **kwargs)
        with torch.no_grad():
            return self.program(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Held({self.program!r})"


def uses(
    model: AnyProgram,
    guide: AnyProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    leaves: Sequence[Tensor],
) -> tuple[set[int], set[int]]:
    """Which leaves the model's densities depend on, and which the guide's draws or densities.

    Found by one run of each and the gradient of everything in it; what a program declares but does
    not use is in neither. The model sees the guide's draws as constants.

    Returns:
        The ids of the leaves used by the model, and of those used by the guide.
    """
    frozen = frozen_buffers(model, guide)
    with torch.enable_grad(), torch.random.fork_rng(), frozen, pyro.validation_enabled(False):
        guided = record(guide, args, kwargs)
        values = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in replayed(guided).items()
        }
        modelled = record(model, args, kwargs, values=values)
        return _reached(modelled, leaves), _reached(guided, leaves)


def _reached(recorder: Recorder, leaves: Sequence[Tensor]) -> set[int]:
    parts = [
        part.sum()
        for site in recorder.sites.values()
        for part in (site.fn.log_prob(site.value), site.value)
        if isinstance(part, Tensor) and part.requires_grad
    ]
    if not parts or not leaves:
        return set()
    gradients = torch.autograd.grad(sum(parts[1:], parts[0]), leaves, allow_unused=True)
    return {id(leaf) for leaf, g in zip(leaves, gradients, strict=True) if g is not None}
