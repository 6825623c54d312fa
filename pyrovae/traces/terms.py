r"""The narrow waist: everything above sees a model and a guide only as :class:`Terms`.

For K particles and B data,

.. math:: \log w = \log p(x|z) + \sum_s \log p(z_s|\cdot) - \log q(z_s|\cdot) \qquad [K, B],

with one summand a latent site. Three things are kept apart that Pyro multiplies into one number:

* the *mask* of a site, which is part of its density and is applied here;
* the *data plate's* factor N/B, carried as :attr:`Terms.scale` and applied after a bound by
  whoever sums over data (inside a log-sum-exp the result would not be a bound);
* the remaining scale (``poutine.scale``, subsampled inner plates), one number a site in
  :attr:`Latent.weight` and :attr:`Observed.weight`, which only a sum (the ELBO) may use.

Sites outside the data plate (global latents) are separate ``[K]`` terms. No value of a tensor is
looked at, so the same code runs under a tracer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrovae.traces.errors import check_sites
from pyrovae.traces.plates import DataPlate, Layout, data_plate_of
from pyrovae.traces.recorder import Recorder, Site
from pyrovae.traces.stopped import stop_parameters
from pyrovae.traces.units import factors

__all__ = ["Latent", "Observed", "Terms", "assemble", "same", "stack"]


class Observed:
    """One observed site: its distribution, its data, its log-density `[K, B]`."""

    def __init__(self, site: Site, layout: Layout) -> None:
        self._site, self._layout = site, layout
        self.name = site.name
        self.value = site.value
        self.distribution = site.fn
        self.is_global = not layout.is_local(site)
        self.weight = layout.weight(site)
        self.inner_scale = layout.inner_scale(site)

    @cached_property
    def log_prob(self) -> Tensor:
        """The site's log-density of the data, `[K, B]` (`[K]` outside the data plate), nats."""
        return self._layout.fill(
            self.distribution.log_prob(self.value), self._site, not self.is_global
        )


class Latent:
    """One latent site of the guide, with its prior in the model (absent for an auxiliary site)."""

    def __init__(
        self, guide: Site, model: Site | None, layout: Layout, top_down: Callable[[str], bool]
    ) -> None:
        self._guide, self._model, self._layout, self._top_down = guide, model, layout, top_down
        self.name = guide.name
        self.posterior = guide.fn
        self.prior = None if model is None else model.fn
        self.is_global = not layout.is_local(guide)
        self.weight = layout.weight(guide)
        self.inner_scale = layout.inner_scale(guide)
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
        if model is None or not same(model.mask, self._guide.mask):
            return None
        if not same(self.weight, self.prior_weight):
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

    @cached_property
    def unit_kl(self) -> Tensor | None:
        """:attr:`kl` of each unit, `[K or 1, B, D]`, nats; None where :attr:`kl` is None.

        None also where posterior or prior does not factorize over units.
        """
        q, p = factors(self.posterior), factors(self.prior)
        if self.kl is None or q is None or p is None:
            return None
        return self._layout.by_unit(kl_divergence(q, p), self._guide)

    @cached_property
    def unit_log_densities(self) -> tuple[Tensor, Tensor] | None:
        """Log q and log p of the draws by unit, `[K or 1, B, D]` each, nats; None likewise."""
        q, p = factors(self.posterior), factors(self.prior)
        if q is None or p is None:
            return None
        value, layout = self._guide.value, self._layout
        log_q = layout.by_unit(q.log_prob(value), self._guide)
        return log_q, layout.by_unit(p.log_prob(value), self._model)


def same(a: float | Tensor | None, b: float | Tensor | None) -> bool:
    """Whether two scales or masks are one; of two tensors in a graph being captured, assumed."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and (is_captured() or torch.equal(a, b)))
    if isinstance(a, Tensor) or isinstance(b, Tensor) or a is None or b is None:
        return a is b
    return math.isclose(a, b)


def is_captured() -> bool:
    """Whether a tracer is looking, so that no value of a tensor may be looked at."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


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
    layout = Layout(particles, plates, plate)
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

    @cached_property
    def unit_kl(self) -> Tensor | None:
        parts = [p.unit_kl for p in self._parts]
        return None if parts[0] is None else torch.cat(parts)

    @cached_property
    def unit_log_densities(self) -> tuple[Tensor, Tensor] | None:
        parts = [p.unit_log_densities for p in self._parts]
        if parts[0] is None:
            return None
        return torch.cat([q for q, _ in parts]), torch.cat([p for _, p in parts])


class _StackedObserved(Observed):
    def __init__(self, parts: list[Observed]) -> None:
        last = parts[-1]
        super().__init__(last._site, replace(last._layout, particles=len(parts)))
        self._parts = parts

    log_prob = cached_property(lambda self: torch.cat([p.log_prob for p in self._parts]))


def stack(parts: list[Terms]) -> Terms:
    """Terms of one particle each, side by side: `[K, B]`."""
    last = parts[-1]
    latents = {n: _StackedLatent([p.latents[n] for p in parts]) for n in last.latents}
    observed = {n: _StackedObserved([p.observed[n] for p in parts]) for n in last.observed}
    return Terms(latents, observed, last.plate, len(parts), last.subsampled)
