"""What a program did: one record per sample site.

A Pyro program is run once under a :class:`Recorder`, which keeps for each site the distribution
*as the program wrote it* (before any particle dimension is added), the value, the plates around
it, its scale and its mask. Everything else in the house is arithmetic on these records.

Particles are a dimension to the left of every plate of the program. Only the guide has to be told:
its draws are expanded to ``[K, ...]`` here, the model receives them by replay, and broadcasting
does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["Recorder", "Site", "draw", "nesting", "record", "replayed"]


@dataclass(slots=True)
class Site:
    """One sample statement: its distribution, value, plates, scale and mask."""

    name: str
    fn: Any  # the distribution, without the particle dimension
    value: Any
    is_observed: bool
    frames: tuple[CondIndepStackFrame, ...]  # outermost first
    scale: float | Tensor
    mask: bool | Tensor | None
    infer: dict[str, Any]
    plates: tuple[CondIndepStackFrame, ...] = field(init=False)  # the vectorized ones of `frames`

    def __post_init__(self) -> None:
        self.plates = tuple(frame for frame in self.frames if frame.vectorized)

    @property
    def is_auxiliary(self) -> bool:
        """Whether a guide site is declared to have no counterpart in the model."""
        return bool(self.infer.get("is_auxiliary"))


class Recorder(Messenger):
    """Record every sample site of a program.

    An unobserved site takes its value from `values` if it is there, else `particles` draws.
    """

    def __init__(
        self, values: Mapping[str, Any] | None = None, particles: int = 1, plates: int = 0
    ) -> None:
        super().__init__()
        self.values = values or {}
        self.particles = particles
        self.nesting = plates
        self.sites: dict[str, Site] = {}
        self.subsamples: dict[str, Any] = {}  # indices of subsampled plates, to be replayed
        self.params: dict[str, Tensor] = {}  # the unconstrained leaf of each parameter statement
        self._written: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            if name in self.values and not msg["done"] and msg["value"] is None:
                msg["value"], msg["done"] = self.values[name], True
            return
        self._written[name] = msg["fn"]
        if msg["is_observed"] or msg["done"]:
            return
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        elif self.particles > 1:
            msg["fn"] = _with_particles(msg["fn"], self.particles, self.nesting)

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.subsamples[name] = msg["value"]
            return
        infer = msg["infer"] or {}
        if infer.get("_deterministic") or infer.get("_do_not_trace"):
            return
        if name in self.sites:
            raise RuntimeError(
                f"site '{name}' occurs twice in one run of a program. "
                f"Expected: one sample statement a name. Try: give the second statement a name "
                f"of its own (in a loop, f'{name}_{{i}}')."
            )
        self.sites[name] = Site(
            name=name,
            fn=self._written.pop(name),
            value=msg["value"],
            is_observed=msg["is_observed"],
            frames=msg["cond_indep_stack"],
            scale=msg["scale"],
            mask=msg["mask"],
            infer=infer,
        )

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        self.params[msg["name"]] = (
            value.unconstrained() if hasattr(value, "unconstrained") else value
        )


def _with_particles(fn: Any, particles: int, plates: int) -> Any:
    # what stands to the left of the plates came from earlier draws
    own = fn.batch_shape[-plates:] if plates else ()
    padding = (1,) * (plates - len(own))
    expanded = fn.expand(torch.Size((particles, *padding, *own)))
    if expanded.has_rsample != fn.has_rsample:  # an instance attribute is not copied by expand
        expanded.has_rsample = fn.has_rsample
    return expanded


def record(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    particles: int = 1,
    plates: int = 0,
) -> Recorder:
    """Run `program` once and return the recorder with its sites."""
    recorder = Recorder(values, particles, plates)
    with recorder:
        program(*args, **kwargs)
    return recorder


def replayed(guided: Recorder) -> dict[str, Any]:
    """What a guide's run hands to the model: the draws and the indices of subsampled plates."""
    return guided.subsamples | {
        name: site.value for name, site in guided.sites.items() if not site.is_observed
    }


def draw(site: Site, particles: int, plates: int) -> Tensor:
    """Fresh draws `[K, ...]` from a recorded site's own distribution, pathwise if it can."""
    return _with_particles(site.fn, particles, plates)()


def nesting(*recorders: Recorder) -> int:
    """How many dimensions to the right belong to the programs' own plates."""
    return max((-f.dim for r in recorders for s in r.sites.values() for f in s.plates), default=0)
