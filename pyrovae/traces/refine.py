r"""Improve q for given data, starting from the guide.

An amortized guide predicts the parameters of q(z|x) for each datum by a network. What the network
misses can be made up for by a few gradient steps on the parameters themselves, datum by datum
(Hjelm et al. 2016; Kim et al. 2018, arXiv:1802.02550):

.. math:: \lambda_0 = g_\phi(x), \qquad
    \lambda_{k+1} = \lambda_k + \eta\, \nabla_\lambda \mathcal L(\lambda_k, \theta; x).

A :class:`Refinement` takes the distribution of each latent site of the guide apart into its
parameters (:func:`take_apart`), adds to each an *offset* with one entry a datum and unit, and puts
it together again. Offsets live where no parameter can leave its domain: a scale moves by its
logarithm, weights on a simplex by their logits; a location moves in units of its scale, which
makes steps of one size fit narrow and wide posteriors alike. At offset zero q is the guide's.

Where the posterior of one site depends on the draw of another (hierarchies, autoguides) the guide
is run again for each draw, and the offsets move what it predicts; otherwise it is run once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions
import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions import constraints as pyro_constraints
from torch import Size, Tensor
from torch.distributions import Independent, TransformedDistribution, constraints, transform_to

from pyrovae.traces.dependencies import is_top_down
from pyrovae.traces.errors import not_reparameterized
from pyrovae.traces.plates import DataPlate, data_plate_of
from pyrovae.traces.recorder import Recorder, draw, nesting, record, replayed
from pyrovae.traces.terms import Terms, assemble

__all__ = ["Refinement", "take_apart"]

AnyProgram = Callable[..., Any]
Offsets = dict[tuple[str, str], Tensor]  # (site, parameter) -> offset
_SPHERE = type(pyro_constraints.sphere)


class Refinement:
    """Posteriors of given data with parameters of their own, starting from the guide's.

    Args:
        model: A Pyro program p(x, z).
        guide: A Pyro program q(z|x), reparameterized at every site of the data plate.
        args: The data: arguments of both programs.
        kwargs: Keyword arguments of both.
        particles: K, draws a datum; more than one needs programs that carry particles on the left.
        data_plate: Name of the plate over data.

    Attributes:
        offsets: What has been added to each parameter of each site, zeros at first.

    Raises:
        ValueError: No site of the data plate has a parameter.
        NotImplementedError: A site that is not reparameterized, or a parameter of an unknown
            domain; the message names it.
    """

    def __init__(
        self,
        model: AnyProgram,
        guide: AnyProgram,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        particles: int = 1,
        data_plate: str | None = None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.particles, self.data_plate = particles, data_plate
        with torch.enable_grad():
            self._guided = record(guide, args, kwargs)
            modelled = record(model, args, kwargs, values=replayed(self._guided))
        self.plate: DataPlate = data_plate_of(modelled, data_plate)
        self._subsamples = self._guided.subsamples | modelled.subsamples
        self._nesting = nesting(self._guided, modelled)
        self._pieces: dict[str, Pieces] = {}
        for name, site in self._guided.sites.items():
            local = any(frame.name == self.plate.name for frame in site.plates)
            if site.is_observed or not local or isinstance(_root(site.fn), Delta):
                continue
            if not site.fn.has_rsample:
                raise not_reparameterized(name, site.fn, "refinement")
            self._pieces[name] = take_apart(site.fn, name)
        self.offsets: Offsets = {
            (site, key): torch.zeros(pieces.shapes[key], dtype=u.dtype, device=u.device)
            for site, pieces in self._pieces.items()
            for key, u in pieces.free.items()
        }
        if not self.offsets:
            raise ValueError(
                f"refinement: no latent site in the data plate '{self.plate.name}' has a "
                f"parameter to refine; the guide draws {sorted(self._guided.sites)}. "
                f"Expected: a guide whose posteriors have parameters that are tensors."
            )
        self._depends = self._has_dependent_sites()
        self._analytic: dict[str, bool] = {}

    def _has_dependent_sites(self) -> bool:
        """Whether what the guide says of one site depends on its draw of another."""
        sites = [s for s in self._guided.sites.values() if not s.is_observed]
        values = [s.value for s in sites if isinstance(s.value, Tensor) and s.value.requires_grad]
        said = [u.sum() for p in self._pieces.values() for u in p.free.values() if u.requires_grad]
        said += [s.value.sum() for s in sites if isinstance(_root(s.fn), Delta)]
        said = [total for total in said if total.requires_grad]
        if len(sites) < 2 or not values or not said:
            return False
        total = sum(said[1:], said[0])
        found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
        deltas = {id(s.value) for s in sites if isinstance(_root(s.fn), Delta)}
        pairs = zip(values, found, strict=True)
        return any(g is not None and id(v) not in deltas for v, g in pairs)

    def terms(self, offsets: Offsets | None = None) -> Terms:
        """The terms of fresh draws from q at these offsets (by default those reached)."""
        offsets = self.offsets if offsets is None else offsets
        guided = self._redrawn(offsets) if not self._depends else self._rerun(offsets)
        guided.subsamples = dict(self._subsamples)
        modelled = record(self.model, self.args, self.kwargs, values=replayed(guided))
        return assemble(
            guided,
            modelled,
            self.particles,
            self._nesting,
            self.data_plate,
            lambda name: self._top_down(name, guided, modelled),
        )

    def _top_down(self, name: str, guided: Recorder, modelled: Recorder) -> bool:
        """Whether an analytic KL is right; always where no posterior depends on another draw."""
        if self._depends and name not in self._analytic:
            programs = self.model, self.guide
            self._analytic[name] = is_top_down(
                name, *programs, guided, modelled, self.args, self.kwargs
            )
        return self._analytic.get(name, True)

    def posterior(self, site: str, offsets: Offsets | None = None) -> Any:
        """The distribution q of a site at these offsets; where it depends on no other draw."""
        own = _of_site(self.offsets if offsets is None else offsets, site)
        return self._pieces[site].build(own)

    def _redrawn(self, offsets: Offsets) -> Recorder:
        guided = Recorder()
        for name, site in self._guided.sites.items():
            if site.is_observed:
                continue
            if name in self._pieces:
                site = replace(site, fn=self._pieces[name].build(_of_site(offsets, name)))
            if self.particles > 1:
                value = draw(site, self.particles, self._nesting)
            else:
                value = site.fn()
            guided.sites[name] = replace(site, value=value)
        return guided

    def _rerun(self, offsets: Offsets) -> Recorder:
        plates = self._nesting if self.particles > 1 else 0
        recorder = _Shifting(offsets, set(self._pieces), self._subsamples, self.particles, plates)
        with recorder:
            self.guide(*self.args, **self.kwargs)
        return recorder

    def climb(
        self,
        bound: Callable[[Terms], Tensor],
        steps: int,
        lr: float,
        *,
        momentum: float = 0.0,
        clip_norm: float | None = None,
        create_graph: bool = False,
    ) -> None:
        """Move the offsets by gradient steps, each datum by its own bound.

        Args:
            bound: What climbs, `[B]` of terms.
            steps: How many.
            lr: Step size.
            momentum: Of the steps.
            clip_norm: Clip each datum's gradient at this Euclidean norm.
            create_graph: Keep the steps differentiable, in the parameters of both programs.
        """
        velocity: Offsets = {}
        names = list(self.offsets)
        for _ in range(steps):
            at = {n: o if o.requires_grad else o.requires_grad_() for n, o in self.offsets.items()}
            with torch.enable_grad():
                total = bound(self.terms(at)).sum()
                found = torch.autograd.grad(
                    total, [at[n] for n in names], create_graph=create_graph, allow_unused=True
                )
            gradients = {
                n: torch.zeros_like(at[n]) if g is None else g
                for n, g in zip(names, found, strict=True)
            }
            if clip_norm is not None:
                gradients = self._clipped(gradients, clip_norm)
            velocity = {n: momentum * velocity.get(n, 0.0) + g for n, g in gradients.items()}
            self.offsets = {n: at[n] + lr * velocity[n] for n in names}
            if not create_graph:
                self.offsets = {n: o.detach() for n, o in self.offsets.items()}

    def _clipped(self, gradients: Offsets, clip_norm: float) -> Offsets:
        """Each datum's gradient, over all sites, at most `clip_norm` long."""
        rows = {n: g.movedim(self._axis(n[0]), 0) for n, g in gradients.items()}
        squares = [row.reshape(row.shape[0], -1).square().sum(1) for row in rows.values()]
        norm = (sum(squares[1:], squares[0]) + 1e-30).sqrt()  # [B]
        factor = (clip_norm / norm).clamp(max=1.0)
        return {
            n: (row * factor.reshape(-1, *(1,) * (row.dim() - 1))).movedim(0, self._axis(n[0]))
            for n, row in rows.items()
        }

    def _axis(self, site: str) -> int:
        """Where the data stand in a site's offsets."""
        return len(self._guided.sites[site].fn.batch_shape) + self.plate.dim


class _Shifting(Recorder):
    """Run a guide with offsets added to the parameters of its posteriors."""

    def __init__(
        self,
        offsets: Offsets,
        names: set[str],
        values: Mapping[str, Any],
        particles: int,
        plates: int,
    ) -> None:
        super().__init__(values, particles, plates)
        self.offsets, self.names = offsets, names

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.names and not msg["is_observed"]:
            msg["fn"] = take_apart(msg["fn"], name).build(_of_site(self.offsets, name))
        super()._pyro_sample(msg)


def _of_site(offsets: Offsets, name: str) -> dict[str, Tensor]:
    return {key: offset for (site, key), offset in offsets.items() if site == name}


# A distribution taken apart ----------------------------------------------------------------------


class Pieces:
    """The free parameters of a distribution, and how to build it again.

    Attributes:
        free: Parameter -> its value where it is free to move (a logarithm, a logit, ...).
        shapes: Parameter -> the shape of an offset with one entry a datum and unit.
        build: Offsets -> the distribution with its parameters moved by them.
    """

    def __init__(
        self,
        free: dict[str, Tensor],
        shapes: dict[str, Size],
        build: Callable[[Mapping[str, Tensor]], Any],
    ) -> None:
        self.free, self.shapes, self.build = free, shapes, build


def take_apart(fn: Any, site: str, batch_shape: Size | None = None) -> Pieces:
    """Take a distribution apart into free parameters.

    Only parameters that carry a gradient move (a fixed number of degrees of freedom stays as it
    is); where none does, all of them.

    Args:
        fn: The distribution; masks, plates and ``to_event`` around it stay.
        site: Its name, for messages.
        batch_shape: The batch shape to build, by default its own.

    Raises:
        NotImplementedError: A parameter whose domain has no map from the reals.
    """
    batch_shape = fn.batch_shape if batch_shape is None else batch_shape
    if isinstance(fn, Independent):
        inner = take_apart(fn.base_dist, site, batch_shape + fn.event_shape[: _moved(fn)])
        return _around(inner, lambda base: type(fn)(base, _moved(fn), validate_args=False))
    if isinstance(fn, MaskedDistribution):
        inner = take_apart(fn.base_dist, site, batch_shape)
        return _around(inner, lambda base: type(fn)(base, fn._mask))
    if isinstance(fn, ExpandedDistribution):
        return take_apart(fn.base_dist, site, batch_shape)
    if type(fn) in (TransformedDistribution, pyro.distributions.TransformedDistribution):
        inner = take_apart(fn.base_dist, site)
        return _around(inner, lambda base: type(fn)(base, fn.transforms, validate_args=False))
    return _parameters(fn, site, batch_shape)


def _moved(fn: Any) -> int:
    return fn.reinterpreted_batch_ndims


def _root(fn: Any) -> Any:
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _around(inner: Pieces, wrap: Callable[[Any], Any]) -> Pieces:
    return Pieces(inner.free, inner.shapes, lambda offsets: wrap(inner.build(offsets)))


def _parameters(fn: Any, site: str, batch_shape: Size) -> Pieces:
    values = _held(fn)
    moving = {k: v for k, v in values.items() if v.requires_grad} or values
    domains = fn.arg_constraints
    in_scales = {"loc", "scale"} <= values.keys() and values["loc"].shape == values["scale"].shape

    def maps(name: str) -> Maps:
        return _free(domains[name], type(fn).__name__, name, site)

    free = {k: maps(k)[0](v) for k, v in moving.items()}
    shapes = {
        k: batch_shape + u.shape[u.dim() - _event_dims(domains[k]) :] for k, u in free.items()
    }

    def build(offsets: Mapping[str, Tensor]) -> Any:
        made = dict(values)
        for key, offset in offsets.items():
            to_free, back = maps(key)
            u = free[key] if key in free else to_free(values[key])
            if key == "loc" and in_scales:
                offset = offset * values["scale"]
            made[key] = back(u + offset)
        return type(fn)(**made, validate_args=False)

    return Pieces(free, shapes, build)


def _held(fn: Any) -> dict[str, Tensor]:
    """The tensors that a distribution was built of, by the names of its constructor."""
    arguments = inspect.signature(type(fn).__init__).parameters
    held = {}
    for name in fn.arg_constraints:
        if name not in arguments:
            continue
        is_given = name in fn.__dict__ or arguments[name].default is inspect.Parameter.empty
        value = getattr(fn, name, None) if is_given else None
        if isinstance(value, Tensor) and value.is_floating_point():
            held[name] = value
    return held


def _event_dims(domain: Any) -> int:
    return domain.event_dim or 0


Maps = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _free(domain: Any, family: str, name: str, site: str) -> Maps:
    """From the domain of a parameter to where it may move freely, and back."""
    if isinstance(domain, _SPHERE):
        return _same, lambda u: u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    if constraints.is_dependent(domain):  # the ends of an interval
        return _same, _same
    try:
        transform = transform_to(domain)
    except NotImplementedError:
        raise NotImplementedError(
            f"refinement: site '{site}': the parameter {name!r} of {family} lies in {domain}, "
            f"to which no map from the reals is known. Expected: a domain of "
            f"torch.distributions.constraints. Try: another family for the guide."
        ) from None
    return transform.inv, transform


def _same(value: Tensor) -> Tensor:
    return value
