r"""The narrow waist: everything above sees a model and a guide only as :class:`Terms`.

For K particles and B data,

.. math:: \log w = \log p(x|z) + \sum_s \log p(z_s|\cdot) - \log q(z_s|\cdot) \qquad [K, B],

with one summand a latent site. Three things are kept apart that Pyro multiplies into one number:

* the *mask* of a site, which is part of its density and is applied here;
* the *data plate's* factor N/B, carried as :attr:`Terms.scale` and applied after a bound by
  whoever sums over data (inside a log-sum-exp the result would not be a bound);
* the remaining scale (``poutine.scale``, subsampled inner plates), one number a site in
  :attr:`Latent.weight` and :attr:`Terms.likelihood_weights`, which only a sum (the ELBO) may use.

The data plate is the outermost plate that holds every observed site. Sites outside of it (global
latents) are separate ``[K]`` terms. No value of a tensor is looked at, so the same code runs under
a tracer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.traces.dependencies import is_top_down
from pyrovae.traces.errors import check_sites, no_data_plate, not_a_plate, unexpected_dims
from pyrovae.traces.params import frozen_buffers
from pyrovae.traces.recorder import Recorder, Site, nesting, record
from pyrovae.traces.stopped import stop_parameters

__all__ = [
    "DataPlate",
    "Latent",
    "Observed",
    "Plan",
    "Terms",
    "assemble",
    "data_plate_of",
    "probe",
    "replayed",
    "terms",
]

AnyProgram = Callable[..., Any]


@dataclass(frozen=True)
class DataPlate:
    """The plate whose elements are data: its name, its dimension, B elements of N."""

    name: str
    dim: int
    size: int
    full_size: int

    @property
    def scale(self) -> float:
        """N/B."""
        return self.full_size / self.size


@dataclass
class Plan:
    """What one run has taught about a pair of programs; the next run need not learn it again."""

    nesting: int
    loop: bool = False  # the programs cannot carry particles on the left
    analytic: dict[str, bool] = field(default_factory=dict)  # site -> analytic KL is valid


@dataclass
class _Layout:
    """Where particles and data stand in the batch shape of a site's log-density."""

    particles: int
    nesting: int
    plate: DataPlate

    def reduce(self, log_prob: Tensor, site: Site) -> Tensor:
        """Sum a site's log-density over inner plates: ``[K, B]``, or ``[K]`` for a global site.

        The particle axis has length 1 where the term does not depend on a draw.
        """
        log_prob = scale_and_mask(log_prob, mask=site.mask)
        plates = {frame.dim for frame in site.plates}
        rank = log_prob.dim()
        has_particles = rank == self.nesting + 1 and log_prob.shape[0] in (1, self.particles)
        own_rank = self.nesting if has_particles else rank
        local = self.plate.dim in plates
        keep = self.plate.dim if local else 0
        drop = []
        for dim in range(-own_rank, 0):
            if dim == keep:
                continue
            if dim not in plates and log_prob.shape[dim] != 1:
                raise unexpected_dims(site, log_prob.shape, dim)
            drop.append(dim)
        if own_rank > self.nesting:
            raise unexpected_dims(site, log_prob.shape, -rank)
        if drop:
            log_prob = log_prob.sum(drop)
        return log_prob if has_particles else log_prob.unsqueeze(0)

    def fill(self, log_prob: Tensor, site: Site, local: bool) -> Tensor:
        """:meth:`reduce`, repeated along axes that the term does not depend on."""
        reduced = self.reduce(log_prob, site)
        shape = (self.particles, self.plate.size) if local else (self.particles,)
        return reduced if reduced.shape == shape else reduced.expand(shape)

    def weight(self, site: Site) -> float | Tensor:
        """The site's scale without the data plate's N/B."""
        scale = site.scale
        if self.plate.dim in {frame.dim for frame in site.plates}:
            scale = scale / self.plate.scale
        if not isinstance(scale, Tensor) and math.isclose(scale, 1.0, rel_tol=1e-9):
            return 1.0
        return scale

    def subsampled(self, site: Site) -> str | None:
        """The name of a subsampled plate other than the data plate, if the site is in one."""
        for frame in site.plates:
            size = frame.full_size or frame.size
            if frame.name != self.plate.name and size != frame.size:
                return frame.name
        return None


class Observed:
    """One observed site: its distribution, its data, its log-density `[K, B]`."""

    def __init__(self, site: Site, layout: _Layout) -> None:
        self._site, self._layout = site, layout
        self.name = site.name
        self.value = site.value
        self.distribution = site.fn
        self.is_global = layout.plate.name not in {frame.name for frame in site.plates}
        self.weight = layout.weight(site)

    @cached_property
    def log_prob(self) -> Tensor:
        """The site's log-density of the data, `[K, B]` (`[K]` outside the data plate), nats."""
        return self._layout.fill(
            self.distribution.log_prob(self.value), self._site, not self.is_global
        )


class Latent:
    """One latent site of the guide, with its prior in the model (absent for an auxiliary site)."""

    def __init__(
        self, guide: Site, model: Site | None, layout: _Layout, top_down: Callable[[str], bool]
    ) -> None:
        self._guide, self._model, self._layout, self._top_down = guide, model, layout, top_down
        self.name = guide.name
        self.posterior = guide.fn
        self.prior = None if model is None else model.fn
        self.is_global = layout.plate.name not in {frame.name for frame in guide.plates}
        self.weight = layout.weight(guide)
        self.prior_weight = 1.0 if model is None else layout.weight(model)

    @cached_property
    def value(self) -> Tensor:
        """The draws, `[K, B, *event]` (inner plates stand between K and B)."""
        value, layout = self._guide.value, self._layout
        batch = value.dim() - len(self.posterior.event_shape)
        padding = layout.nesting + 1 - batch
        return value.reshape((1,) * padding + tuple(value.shape)) if padding > 0 else value

    def _reduced(self, log_prob: Tensor, site: Site) -> Tensor:
        return self._layout.fill(log_prob, site, not self.is_global)

    @cached_property
    def log_prior(self) -> Tensor:
        """The prior's log p(z|.) of the draws, `[K, B]`, nats; zero for an auxiliary site."""
        if self._model is None:
            return torch.zeros_like(self.log_posterior)
        return self._reduced(self._model.fn.log_prob(self._guide.value), self._model)

    @cached_property
    def log_posterior(self) -> Tensor:
        """The posterior's log q(z|.) of the draws, `[K, B]`, nats."""
        return self._reduced(self._guide.fn.log_prob(self._guide.value), self._guide)

    @cached_property
    def log_posterior_stopped(self) -> Tensor:
        """The same number, differentiable through the draw but not through q's own parameters.

        Raises:
            NotImplementedError: The parameters of q depend on other draws, whose path may not be
                cut, or sit in a network.
        """
        if len(self.posterior.batch_shape) > self._layout.nesting:
            raise NotImplementedError(
                f"site '{self.name}': its posterior depends on other draws; "
                f"holding its parameters constant would cut the path through them. "
                f'Expected: independent posteriors. Try: estimator="iwae".'
            )
        fn = stop_parameters(self._guide.fn, self.name)
        return self._reduced(fn.log_prob(self._guide.value), self._guide)

    def scale_gradient(self, weights: Tensor) -> None:
        """Multiply what flows back into the draws by `weights` `[K, B]`."""
        value, plate = self._guide.value, self._layout.plate
        shape = [1] * value.dim()
        shape[0], shape[plate.dim - len(self.posterior.event_shape)] = weights.shape
        if value.requires_grad and self._layout.particles > 1:
            value.register_hook(lambda grad: grad * weights.reshape(shape))

    @cached_property
    def kl(self) -> Tensor | None:
        r"""Analytic KL(q || p), `[B]` (`[K, B]` where either side depends on a draw), nats.

        None where it is not registered with torch, or where it would be wrong: the prior depends
        on something that the guide draws from this site (a bottom-up guide), or one side alone is
        masked or scaled.
        """
        model = self._model
        if model is None or (model.mask is None) != (self._guide.mask is None):
            return None
        if self.weight is not self.prior_weight and not _same(self.weight, self.prior_weight):
            return None
        if not self._top_down(self.name):
            return None
        try:
            kl = kl_divergence(self.posterior, self.prior)
        except NotImplementedError:
            return None
        kl = self._layout.reduce(kl, self._guide)
        return kl.squeeze(0) if kl.shape[0] == 1 else kl

    @property
    def sampled_kl(self) -> Tensor:
        """The log-ratio log q - log p of the draws, `[K, B]`, nats: its mean is the KL."""
        return self.log_posterior - self.log_prior


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and math.isclose(a, b)


@dataclass
class Terms:
    """The log-density terms of one run of a model and a guide; see the module's docstring."""

    latents: dict[str, Latent]
    observed: dict[str, Observed]
    plate: DataPlate
    particles: int
    subsampled: str | None = None  # a subsampled plate inside the data plate

    @property
    def scale(self) -> float:
        """N/B of the data plate, to be applied after the bound."""
        return self.plate.scale

    @property
    def local_latents(self) -> list[Latent]:
        """The latents with one value a datum."""
        return [latent for latent in self.latents.values() if not latent.is_global]

    @property
    def global_latents(self) -> list[Latent]:
        """The latents shared by all data."""
        return [latent for latent in self.latents.values() if latent.is_global]

    @cached_property
    def log_likelihood(self) -> Tensor:
        """The log-likelihood log p(x|z) `[K, B]`, nats, without any scale."""
        local = [site.log_prob for site in self.observed.values() if not site.is_global]
        return sum(local[1:], local[0])

    @cached_property
    def log_weights(self) -> Tensor:
        """The log-weights log p(x, z) - log q(z|x) `[K, B]`, nats, without any scale."""
        total = self.log_likelihood
        for latent in self.local_latents:
            total = total + latent.log_prior - latent.log_posterior
        return total


def probe(
    model: AnyProgram, guide: AnyProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Plan, Recorder, Recorder]:
    """Run both programs once, without gradients, moved buffers or used random numbers."""
    with torch.no_grad(), torch.random.fork_rng(), frozen_buffers(model, guide):
        guided = record(guide, args, kwargs)
        modelled = record(model, args, kwargs, values=replayed(guided))
    return Plan(nesting(guided, modelled)), guided, modelled


def replayed(guided: Recorder) -> dict[str, Any]:
    """What a guide's run hands to the model: the draws and the indices of subsampled plates."""
    return guided.subsamples | {
        name: site.value for name, site in guided.sites.items() if not site.is_observed
    }


def terms(
    model: AnyProgram,
    guide: AnyProgram,
    *args: Any,
    particles: int = 1,
    data_plate: str | None = None,
    plan: Plan | None = None,
    **kwargs: Any,
) -> Terms:
    r"""Run `guide`, replay it in `model`, and return the terms of the ELBO and of its relatives.

    Args:
        model: A Pyro program p(x, z) whose observed sites stand in a plate over data.
        guide: A Pyro program q(z|x) with a site for each latent site of the model.
        *args: Arguments of both programs.
        particles: K, the number of draws a datum.
        data_plate: The name of the plate over data; by default the outermost that holds every
            observed site.
        plan: What an earlier run has taught (used inside; leave it out).
        **kwargs: Keyword arguments of both programs.

    Returns:
        `Terms` with ``log_weights`` and ``log_likelihood`` `[K, B]` in nats, ``latents[site]``,
        ``scale`` = N/B.

    Raises:
        ValueError: No data plate; a latent site missing from or foreign to either program;
            shapes that do not fit.

    Example:
        >>> import torch, pyro, pyrovae as pv, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> pv.terms(model, guide, torch.zeros(3), particles=2).log_weights.shape
        torch.Size([2, 3])
    """
    if particles < 1:
        raise ValueError(f"terms: particles must be at least 1, got {particles}.")
    if particles == 1:
        return _run(model, guide, args, kwargs, 1, data_plate, plan or Plan(nesting=-1))
    if plan is None:
        plan = probe(model, guide, args, kwargs)[0]
    if not plan.loop:
        try:
            return _run(model, guide, args, kwargs, particles, data_plate, plan)
        except (RuntimeError, ValueError, IndexError) as error:
            # a net that cannot broadcast on the left; if one particle fails too, the error that
            # it raises is the user's
            _run(model, guide, args, kwargs, 1, data_plate, Plan(nesting=-1))
            plan.loop = True
            first = str(error).strip().splitlines()[0]
            warnings.warn(
                f"the programs cannot run with a particle dimension on the left ({first}); "
                f"each of the particles is run by itself, which is slower. "
                f"To mend it, let the networks fold leading dimensions (z.flatten(0, -2) before, "
                f"unflatten after), as those of pyrovae.nn do.",
                stacklevel=2,
            )
    one = Plan(nesting=-1, analytic=plan.analytic)
    return _stack([_run(model, guide, args, kwargs, 1, data_plate, one) for _ in range(particles)])


def _run(
    model: AnyProgram,
    guide: AnyProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    particles: int,
    data_plate: str | None,
    plan: Plan,
) -> Terms:
    guided = record(guide, args, kwargs, particles=particles, plates=plan.nesting)
    modelled = record(model, args, kwargs, values=replayed(guided))

    def top_down(name: str) -> bool:
        if name not in plan.analytic:
            plan.analytic[name] = is_top_down(name, model, guide, guided, modelled, args, kwargs)
        return plan.analytic[name]

    plates = nesting(guided, modelled) if particles == 1 else plan.nesting
    return assemble(guided, modelled, particles, plates, data_plate, top_down)


def assemble(
    guided: Recorder,
    modelled: Recorder,
    particles: int,
    plates: int,
    data_plate: str | None = None,
    top_down: Callable[[str], bool] = lambda name: True,
) -> Terms:
    """Match the sites of the two programs and lay out their log-densities."""
    check_sites(guided, modelled)
    plate = data_plate_of(modelled, data_plate)
    layout = _Layout(particles, plates, plate)
    subsampled = None
    latents, observed = {}, {}
    for name, site in guided.sites.items():
        if site.is_observed:
            continue
        latents[name] = Latent(site, modelled.sites.get(name), layout, top_down)
        subsampled = subsampled or layout.subsampled(site)
    for name, site in modelled.sites.items():
        if site.is_observed:
            observed[name] = Observed(site, layout)
            subsampled = subsampled or layout.subsampled(site)
    return Terms(latents, observed, plate, particles, subsampled)


def data_plate_of(modelled: Recorder, wanted: str | None = None) -> DataPlate:
    """The outermost plate around every observed site of a recorded model, or the `wanted` one."""
    sites = [s for s in modelled.sites.values() if s.is_observed]
    data = [s for s in sites if not isinstance(s.fn, Unit)]  # pyro.factor is not data
    if wanted is not None:
        data = [s for s in data if wanted in {frame.name for frame in s.plates}]
        if not data:
            raise not_a_plate(wanted, sites)
    common = [
        frame
        for frame in (data[0].plates if data else ())
        if all(frame.name in {f.name for f in s.plates} for s in data)
        and wanted in (None, frame.name)
    ]
    if not common:
        raise no_data_plate(sites)
    frame = common[0]
    return DataPlate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)


class _StackedLatent(Latent):
    """K latents of one particle each, side by side."""

    def __init__(self, parts: list[Latent]) -> None:
        last = parts[-1]
        layout = replace(last._layout, particles=len(parts))
        super().__init__(last._guide, last._model, layout, last._top_down)
        self._parts = parts

    value = cached_property(lambda self: torch.cat([p.value for p in self._parts]))
    log_prior = cached_property(lambda self: torch.cat([p.log_prior for p in self._parts]))
    log_posterior = cached_property(lambda self: torch.cat([p.log_posterior for p in self._parts]))
    log_posterior_stopped = cached_property(
        lambda self: torch.cat([p.log_posterior_stopped for p in self._parts])
    )

    def scale_gradient(self, weights: Tensor) -> None:
        for part, row in zip(self._parts, weights, strict=True):
            if part._guide.value.requires_grad:
                event = (1,) * len(self.posterior.event_shape)
                shape = (weights.shape[1],) + (1,) * (-self._layout.plate.dim - 1) + event
                factor = row.reshape(shape)
                part._guide.value.register_hook(lambda grad, factor=factor: grad * factor)

    @cached_property
    def kl(self) -> Tensor | None:
        parts = [p.kl for p in self._parts]
        return None if parts[0] is None else torch.stack(parts)


class _StackedObserved(Observed):
    def __init__(self, parts: list[Observed]) -> None:
        last = parts[-1]
        super().__init__(last._site, replace(last._layout, particles=len(parts)))
        self._parts = parts

    log_prob = cached_property(lambda self: torch.cat([p.log_prob for p in self._parts]))


def _stack(parts: list[Terms]) -> Terms:
    last = parts[-1]
    latents = {n: _StackedLatent([p.latents[n] for p in parts]) for n in last.latents}
    observed = {n: _StackedObserved([p.observed[n] for p in parts]) for n in last.observed}
    return Terms(latents, observed, last.plate, len(parts), last.subsampled)
