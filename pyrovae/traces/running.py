"""Running a guide and, on its draws, a model: once for one particle, vectorized for many.

Where the programs cannot carry particles on the left (a convolution, a fixed reshape), the
particles are run one by one, on the same data, and stacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

from pyrovae.traces.dependencies import is_top_down
from pyrovae.traces.params import evaluating, frozen_buffers, modules_of
from pyrovae.traces.plates import data_plate_of
from pyrovae.traces.recorder import Recorder, nesting, record, replayed
from pyrovae.traces.terms import Terms, assemble, stack

__all__ = ["Plan", "plan_particles", "probe", "terms"]

AnyProgram = Callable[..., Any]


@dataclass
class Plan:
    """What one run has taught about a pair of programs; the next run need not learn it again."""

    nesting: int = -1  # dimensions of the programs' own plates; unknown where never needed
    loop: bool = False  # the programs cannot carry particles on the left
    analytic: dict[str, bool] = field(default_factory=dict)  # site -> analytic KL is valid


def probe(
    model: AnyProgram, guide: AnyProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Plan, Recorder, Recorder]:
    """Run both programs once, without gradients, moved buffers or used random numbers."""
    with torch.no_grad(), torch.random.fork_rng(), frozen_buffers(model, guide):
        guided = record(guide, args, kwargs)
        modelled = record(model, args, kwargs, values=replayed(guided))
    return Plan(nesting(guided, modelled)), guided, modelled


def plan_particles(
    model: AnyProgram,
    guide: AnyProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data_plate: str | None = None,
) -> Plan:
    """Find out how many particles can be run: all at once, or one by one.

    Two particles are run both ways and compared, since a network may fail on a dimension to the
    left, or, worse, mix particles up in silence (a softmax over dimension 1, a reshape that takes
    particles for data).
    """
    plan, single, modelled = probe(model, guide, args, kwargs)
    if _normalizes_over(data_plate_of(modelled, data_plate).size, model, guide):
        _warn_of_loop("a BatchNorm of as many features as there are data would mix them up")
        plan.loop = True
        return plan
    subsamples = single.subsamples | modelled.subsamples
    with evaluating(model, guide), torch.random.fork_rng(), pyro.validation_enabled(False):
        options = {"particles": 2, "plates": plan.nesting}
        try:
            guided = record(guide, args, kwargs, values=subsamples, **options)
            guided.subsamples = subsamples
            modelled = record(model, args, kwargs, values=replayed(guided))
            together = assemble(guided, modelled, 2, plan.nesting, data_plate).log_weights
        except (RuntimeError, ValueError, IndexError) as error:
            _warn_of_loop(str(error).strip().splitlines()[0])
            plan.loop = True
            return plan
        for k in range(2):
            values = dict(subsamples)
            for name, site in guided.sites.items():
                if not site.is_observed:
                    values[name] = site.value[k].reshape(single.sites[name].value.shape)
            one = record(guide, args, kwargs, values=values)
            one.subsamples = subsamples
            modelled = record(model, args, kwargs, values=replayed(one))
            alone = assemble(one, modelled, 1, plan.nesting, data_plate).log_weights[0]
            if not torch.allclose(together[k], alone, 1e-3, 1e-3, equal_nan=True):
                _warn_of_loop("two particles at once do not give what they give one by one")
                plan.loop = True
                break
    return plan


def _normalizes_over(size: int, *programs: AnyProgram) -> bool:
    """Whether a batch norm in training cannot tell data `[K, B, C]` from features, C = B."""
    return any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        and m.training
        and m.num_features == size
        for module in modules_of(*programs)
        for m in module.modules()
    )


def _warn_of_loop(reason: str) -> None:
    warnings.warn(
        f"the programs cannot run with a particle dimension on the left ({reason}); "
        f"each of the particles is run by itself, which is slower. "
        f"To mend it, let the networks fold leading dimensions (z.flatten(0, -2) before, "
        f"unflatten after), as those of pyrovae.nn do.",
        stacklevel=4,
    )


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
        return _run(model, guide, args, kwargs, 1, data_plate, plan or Plan())[0]
    if plan is None:
        plan = plan_particles(model, guide, args, kwargs, data_plate)
    if not plan.loop:
        return _run(model, guide, args, kwargs, particles, data_plate, plan)[0]
    return _loop(model, guide, args, kwargs, particles, data_plate, plan)


def _run(
    model: AnyProgram,
    guide: AnyProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    particles: int,
    data_plate: str | None,
    plan: Plan,
    subsamples: Mapping[str, Any] | None = None,
) -> tuple[Terms, dict[str, Any]]:
    """One joint run: its terms, and the indices of subsampled plates."""
    plates = plan.nesting if particles > 1 else 0
    guided = record(guide, args, kwargs, values=subsamples, particles=particles, plates=plates)
    guided.subsamples |= subsamples or {}
    modelled = record(model, args, kwargs, values=replayed(guided))

    def top_down(name: str) -> bool:
        if name not in plan.analytic:
            plan.analytic[name] = is_top_down(name, model, guide, guided, modelled, args, kwargs)
        return plan.analytic[name]

    plates = nesting(guided, modelled) if particles == 1 else plan.nesting
    terms = assemble(guided, modelled, particles, plates, data_plate, top_down)
    return terms, guided.subsamples | modelled.subsamples


def _loop(
    model: AnyProgram,
    guide: AnyProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    particles: int,
    data_plate: str | None,
    plan: Plan,
) -> Terms:
    """Particles one by one, all on the same subsample of every plate."""
    subsamples: dict[str, Any] | None = None
    parts = []
    for _ in range(particles):
        part, drawn = _run(model, guide, args, kwargs, 1, data_plate, plan, subsamples)
        subsamples = subsamples or drawn
        parts.append(part)
    return stack(parts)
