r"""Many particles for one batch of data: the guide once, the model in pieces.

For an estimate with thousands of particles the programs are run differently than for a gradient.
The posterior q(z|x) of a datum is the same for every particle, so the guide is *recorded once* and
its draws are taken from the recorded distributions, unless a latent's posterior depends on another
draw: then its recorded batch shape has the particle dimension, and the guide is run again for each
block. The model is replayed on slices of a block, whose size is a matter of memory and cannot
change the answer, since all noise has been drawn before.

Two things are guarded against here:

* a network that cannot carry particles on the left, or that silently mixes them up (a softmax
  over dimension 1, a batch norm over a batch as large as its features): on the first batch two
  particles are also run one by one, and the results compared;
* draws outside the prior's support: they get weight 0, and the model sees a draw from the prior.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.traces.dependencies import is_top_down
from pyrovae.traces.errors import check_per_datum
from pyrovae.traces.recorder import Recorder, draw, nesting, record, replayed
from pyrovae.traces.support import Relation, check_data, compare, contains
from pyrovae.traces.terms import Terms, assemble, stack

__all__ = ["Blocks", "Draws", "Guard", "Scored"]

AnyProgram = Callable[..., Any]


class Guard(Recorder):
    """Replay draws in the model; one outside its prior's support is marked and replaced."""

    def __init__(self, values: Mapping[str, Any], names: set[str] | None) -> None:
        super().__init__(values)
        self.names = names  # None: every latent site
        self.outside: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fresh = not msg["done"] and not msg["is_observed"]
        super()._pyro_sample(msg)
        name, fn = msg["name"], msg["fn"]
        if not fresh or name not in self._written or name not in self.values:
            return
        if self.names is not None and name not in self.names:
            return
        inside = contains(fn, msg["value"])
        if inside is None or bool(inside.all()):
            return
        self.outside[name] = ~inside
        event = (1,) * len(fn.event_shape)
        msg["value"] = torch.where(inside.reshape(inside.shape + event), msg["value"], fn.sample())


@dataclass
class Draws:
    """One block of draws `[K, ...]` per latent site, and the guide's record if vectorized."""

    values: dict[str, Tensor]
    particles: int
    guided: Recorder | None = None


@dataclass
class Scored:
    """Terms of some draws, and which of them lie outside a prior's support, per site `[K, B]`."""

    terms: Terms
    outside: dict[str, Tensor]

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x) `[K, B]`, nats; -inf for a draw outside the prior's support."""
        log_weights = self.terms.log_weights
        for mask in self.outside.values():
            log_weights = log_weights.masked_fill(mask, -torch.inf)
        return log_weights

    def log_ratio(self, name: str) -> Tensor:
        """Log q - log p of one site `[K, B]`, whose mean is the KL; +inf outside the support."""
        ratio = self.terms.latents[name].sampled_kl
        return ratio.masked_fill(self.outside[name], torch.inf) if name in self.outside else ratio


class Blocks:
    """Draws from the guide and their terms, one batch of data at a time.

    Call :meth:`start` with a batch, then :meth:`draws` and :meth:`score` as often as needed.

    Args:
        model: A Pyro program p(x, z).
        guide: A Pyro program q(z|x).
        data_plate: Name of the plate over data.
        who: The caller's name, for messages.

    What is learnt from the first batch (rank of the plates, whether networks can carry particles)
    holds for the rest.
    """

    def __init__(
        self, model: AnyProgram, guide: AnyProgram, data_plate: str | None, who: str
    ) -> None:
        self.model, self.guide, self.data_plate, self.who = model, guide, data_plate, who
        self.nesting = -1
        self.model_loops = self.guide_loops = False
        self.relations: dict[str, Relation] = {}
        # no posterior depends on another draw: one record of the guide serves all
        self.is_frozen = False
        self.guided = Recorder()
        self._top_down: dict[str, bool] = {}

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], first_row: int = 0) -> Terms:
        """Take the next batch; returns the terms of one particle, run as the programs stand."""
        self.args, self.kwargs = args, kwargs
        is_first = self.nesting < 0
        self._guarded: set[str] | None = None
        single = self.guided = record(self.guide, args, kwargs)
        scored, modelled = self._score(single, 1, -1)
        check_per_datum(scored.terms, self.who)
        latents = scored.terms.latents
        has_auxiliary = any(latent.prior is None for latent in latents.values())
        for name, latent in latents.items():
            if latent.prior is not None:
                relation = compare(latent.posterior, latent.prior)
                if relation.label == "point" and has_auxiliary:  # a function of the auxiliary draw
                    relation = Relation("unknown")
                self._relate(name, relation)
        self._guarded = {
            n for n, r in self.relations.items() if r.label not in ("equal", "narrower")
        }
        for site in scored.terms.observed.values():
            is_masked = isinstance(site._site.mask, Tensor)  # missing values may be anything
            if not site.is_global and isinstance(site.value, Tensor) and not is_masked:
                check_data(
                    site.name, site.distribution, site.value, first_row, scored.terms.plate.dim
                )
        if is_first:
            self.nesting = nesting(single, modelled)
        self.is_frozen = False
        # Pyro's validation has seen the programs by now; it would refuse densities that are
        # meant to give a weight of 0
        with pyro.validation_enabled(False):
            if not self.guide_loops:
                self._freeze(single)
            if is_first and not (self.guide_loops or self.model_loops):
                self._compare_with_singles()
        return scored.terms

    def guard_all(self) -> None:
        """Until the next batch, check draws of every site: they need not be the guide's."""
        self._guarded = None

    def _relate(self, name: str, relation: Relation) -> None:
        if relation.label == "point":
            raise ValueError(
                f"{self.who}: the guide puts site '{name}' at a single point (Delta), "
                f"under which log p(x) cannot be weighted. Expected: a posterior with a density. "
                f"Try: a Normal around the point with a small scale."
            )
        if self.relations.get(name, relation) != relation:  # differs between batches
            relation = replace(
                max(relation, self.relations[name], key=_severity), everywhere=False
            )
        self.relations[name] = relation

    def _freeze(self, single: Recorder) -> None:
        try:
            guided = record(
                self.guide,
                self.args,
                self.kwargs,
                values=single.subsamples,
                particles=2,
                plates=self.nesting,
            )
        except (RuntimeError, ValueError, IndexError) as error:
            self.guide_loops = self.model_loops = True
            self._warn(f"the guide: {_first_line(error)}")
            return
        sites = [s for s in guided.sites.values() if not s.is_observed]
        self.is_frozen = all(
            len(s.fn.batch_shape) <= self.nesting
            and not (isinstance(s.mask, Tensor) and s.mask.dim() > self.nesting)
            for s in sites
        )
        guided.subsamples = single.subsamples
        self.guided = guided

    def _compare_with_singles(self) -> None:
        """Run two particles both ways; on an error or a difference, loop from now on."""
        draws = self.draws(2)
        try:
            together: Tensor | None = self.score(draws, 0, 2).log_weights
            error = "two particles at once do not give what they give one by one"
        except (RuntimeError, ValueError, IndexError) as caught:
            together, error = None, _first_line(caught)
        singly = self._score_singly(draws, 0, 2).log_weights
        if together is None or not torch.allclose(together, singly, 1e-3, 1e-3, equal_nan=True):
            self.model_loops = True
            self._warn(error)

    def _warn(self, error: str) -> None:
        warnings.warn(
            f"{self.who}: the programs cannot run with a particle dimension on the left "
            f"({error}); each of the particles is run by itself, which is slower. "
            f"To mend it, let the networks fold leading dimensions (z.flatten(0, -2) before, "
            f"unflatten after), as those of pyrovae.nn do.",
            stacklevel=5,
        )

    def draws(self, particles: int) -> Draws:
        """A block of draws from the guide, with the random numbers now in force."""
        if self.is_frozen:
            sites = {n: s for n, s in self.guided.sites.items() if not s.is_observed}
            return Draws(
                {n: draw(s, particles, self.nesting) for n, s in sites.items()}, particles
            )
        if not self.guide_loops:
            many = max(particles, 2)
            subsamples = self.guided.subsamples
            guided = record(
                self.guide,
                self.args,
                self.kwargs,
                values=subsamples,
                particles=many,
                plates=self.nesting,
            )
            guided.subsamples = subsamples
            values = {n: s.value[:particles] for n, s in guided.sites.items() if not s.is_observed}
            return Draws(values, particles, guided if many == particles else None)
        singles = [
            record(self.guide, self.args, self.kwargs, values=self.guided.subsamples)
            for _ in range(particles)
        ]
        names = [n for n, s in singles[0].sites.items() if not s.is_observed]
        return Draws(
            {n: torch.stack([r.sites[n].value for r in singles]) for n in names}, particles
        )

    def score(self, draws: Draws, start: int, stop: int) -> Scored:
        """Terms of the draws `start` to `stop` of a block; the model sees no more than these."""
        if self.model_loops:
            return self._score_singly(draws, start, stop)
        if self.is_frozen:
            guided = self._with_values({n: v[start:stop] for n, v in draws.values.items()})
        elif draws.guided is not None and (start, stop) == (0, draws.particles):
            guided = draws.guided
        else:
            guided = self._replay({n: v[start:stop] for n, v in draws.values.items()})
        return self._score(guided, stop - start, self.nesting)[0]

    def _score_singly(self, draws: Draws, start: int, stop: int) -> Scored:
        parts = []
        for k in range(start, stop):
            values = {}
            for name, value in draws.values.items():
                fn = self.guided.sites[name].fn
                shape = fn.batch_shape[-self.nesting :] if self.nesting else ()
                values[name] = value[k].reshape(tuple(shape) + tuple(fn.event_shape))
            guided = self._with_values(values) if self.is_frozen else self._replay(values)
            parts.append(self._score(guided, 1, -1)[0])
        outside = {}
        for name in {n for part in parts for n in part.outside}:
            empty = torch.zeros_like(next(p.outside[name] for p in parts if name in p.outside))
            outside[name] = torch.cat([p.outside.get(name, empty) for p in parts])
        return Scored(stack([p.terms for p in parts]), outside)

    def _with_values(self, values: dict[str, Tensor]) -> Recorder:
        guided = Recorder()
        guided.subsamples = self.guided.subsamples
        guided.sites = {n: replace(self.guided.sites[n], value=v) for n, v in values.items()}
        return guided

    def _replay(self, values: dict[str, Tensor]) -> Recorder:
        subsamples = self.guided.subsamples
        guided = record(self.guide, self.args, self.kwargs, values={**subsamples, **values})
        guided.subsamples = subsamples
        return guided

    def _score(self, guided: Recorder, particles: int, plates: int) -> tuple[Scored, Recorder]:
        modelled = Guard(replayed(guided), self._guarded)
        with modelled:
            self.model(*self.args, **self.kwargs)
        if plates < 0:
            plates = nesting(guided, modelled)
        for name in modelled.outside:  # densities of what the model saw; the weights are 0 anyway
            value = modelled.sites[name].value
            guided.sites[name] = replace(guided.sites[name], value=value)

        def top_down(name: str) -> bool:
            if name not in self._top_down:
                programs = (self.model, self.guide, guided, modelled)
                self._top_down[name] = is_top_down(name, *programs, self.args, self.kwargs)
            return self._top_down[name]

        terms = assemble(guided, modelled, particles, plates, self.data_plate, top_down)
        outside = {}
        for name, mask in modelled.outside.items():
            latent, site = terms.latents[name], modelled.sites[name]
            marks = mask.to(torch.get_default_dtype())  # an element of an inner plate is enough
            filled = latent._layout.fill(marks, replace(site, mask=None), not latent.is_global)
            outside[name] = filled > 0
        return Scored(terms, outside), modelled


def _severity(relation: Relation) -> int:
    return ["equal", "wider", "unknown", "narrower", "crossing"].index(relation.label)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
