"""What every objective shares: running the programs, N/B after the bound, Pyro's interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from pyrovae.kl_control import Schedule
from pyrovae.traces import Latent, Plan, Terms, plan_particles, terms
from pyrovae.traces.errors import not_reparameterized

__all__ = ["Objective", "is_one", "mean", "times"]

AnyProgram = Callable[..., Any]


class Objective(pyro.infer.ELBO):
    """What every objective shares: running the programs, N/B after the bound, Pyro's interface.

    Subclasses write two functions of :class:`~pyrovae.traces.Terms`: the bound ``[B]`` and what is
    differentiated ``[B]``.

    Args:
        particles: K, draws a datum.
        data_plate: Name of the plate over data; by default the outermost plate that holds every
            observed site.
    """

    def __init__(self, particles: int = 1, data_plate: str | None = None) -> None:
        if particles < 1:
            raise ValueError(
                f"{type(self).__name__}: particles must be at least 1, got {particles}."
            )
        super().__init__(num_particles=particles)
        self.particles = particles
        self.data_plate = data_plate
        self._learnt: tuple[AnyProgram, AnyProgram, Plan] | None = None

    @abstractmethod
    def bound(self, terms: Terms) -> Tensor:
        """The true bound of each datum, `[B]`, nats."""

    def objective(self, terms: Terms) -> Tensor:
        """What is differentiated for each datum, `[B]`; by default the bound itself."""
        return self.bound(terms)

    def global_objective(self, terms: Terms) -> Tensor | float:
        """The part that belongs to no datum: global latents and global observations, a scalar."""
        return _global_terms(terms, weighted=True)

    def global_bound(self, terms: Terms) -> Tensor | float:
        """The same part of the true bound, without scales."""
        return _global_terms(terms, weighted=False)

    def terms(self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any) -> Terms:
        """Run both programs with this objective's particles and return the terms."""
        return terms(
            model,
            guide,
            *args,
            particles=self.particles,
            data_plate=self.data_plate,
            plan=self._plan(model, guide, args, kwargs),
            **kwargs,
        )

    def per_datum(self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The true bound of each datum, `[B]`, nats, higher is better; no gradient.

        Terms of global latents are shared out equally: each datum carries 1/N of them.
        """
        with torch.no_grad():
            return self.bound_of(self.terms(model, guide, *args, **kwargs))

    def bound_of(self, terms: Terms, total: float | None = None) -> Tensor:
        """:meth:`per_datum` of terms at hand; `total`, if given, is N instead of the plate's."""
        share = total or terms.plate.full_size
        return self.bound(terms) + self.global_bound(terms) / share

    def surrogate(self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The scalar to be maximized: N/B times the sum over the data plate, plus global terms."""
        return self.surrogate_of(self.terms(model, guide, *args, **kwargs))

    def surrogate_of(self, terms: Terms, scale: float | None = None) -> Tensor:
        """:meth:`surrogate` of terms at hand; `scale`, if given, replaces the plate's N/B."""
        scale = terms.scale if scale is None else scale
        return times(scale, self.unscaled_of(terms, scale))

    def unscaled_of(self, terms: Terms, scale: float) -> Tensor:
        """The surrogate over N/B: a sum over the plate's B data, and global terms over `scale`."""
        if torch.is_grad_enabled():
            for latent in terms.latents.values():
                if not latent.posterior.has_rsample:
                    raise not_reparameterized(latent.name, latent.posterior, type(self).__name__)
        other = self.global_objective(terms)
        total = self.objective(terms).sum()
        return total + other / scale if isinstance(other, Tensor) else total

    def is_bound(self, terms: Terms) -> bool:
        """Whether the value of what is differentiated is the bound: nothing is scaled."""
        return all(is_one(weight) for weight in _weights(terms))

    # What moves from step to step --------------------------------------------------------------

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The arguments that move by themselves, by name; none here."""
        return {}

    def begin(self, steps_per_epoch: int | None = None) -> None:
        """Put every schedule back to its start, for a new run of so many steps an epoch."""
        for schedule in self.schedules.values():
            schedule.begin(steps_per_epoch)

    def advance(self, kl: Tensor | None = None) -> None:
        """Tell every schedule that a training step was made, with a mean KL of `kl` nats.

        :class:`~pyrovae.VariationalEM`, ``fit`` and ``SVI`` do so; a loop of one's own around
        ``differentiable_loss`` calls it after the optimizer.
        """
        for schedule in self.schedules.values():
            schedule.advance(kl)

    def state_dict(self) -> dict[str, Any]:
        """The state of every schedule, for a checkpoint."""
        return {name: schedule.state_dict() for name, schedule in self.schedules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It is not that of these schedules.
        """
        own = self.schedules
        if own.keys() != state.keys():
            raise ValueError(
                f"{type(self).__name__}: the saved state has schedules for {sorted(state)}, this "
                f"objective for {sorted(own)}. Expected: the objective that was trained with."
            )
        for name, schedule in own.items():
            schedule.load_state_dict(state[name])

    def figures(self, terms: Terms, total: float | None = None) -> dict[str, Tensor]:
        """What a history keeps of a step beside the bound, scalars: the mean ``kl``, nats a datum.

        A global latent's KL is shared out as in :meth:`bound_of`.
        """
        share = total or terms.plate.full_size
        with torch.no_grad():
            kl = terms.log_likelihood.new_zeros(())
            for latent in terms.latents.values():
                found = (latent.inner_scale * self._mean_kl(latent)).mean()
                kl = kl + (found / share if latent.is_global else found)
        return {"kl": kl}

    def _mean_kl(self, latent: Latent) -> Tensor:
        return mean(latent.sampled_kl)

    def _plan(self, model: AnyProgram, guide: AnyProgram, args: Any, kwargs: Any) -> Plan:
        learnt = self._learnt
        if learnt is None or learnt[0] != model or learnt[1] != guide:
            plan = Plan()
            if self.particles > 1:
                plan = plan_particles(model, guide, args, kwargs, self.data_plate)
            self._learnt = learnt = (model, guide, plan)
        return learnt[2]

    # Pyro's interface --------------------------------------------------------------------------

    def loss(self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any) -> float:
        """Minus the surrogate, as a number; no gradient."""
        with torch.no_grad():
            return -self.surrogate(model, guide, *args, **kwargs).item()

    def differentiable_loss(
        self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the surrogate, as a differentiable tensor."""
        return -self.surrogate(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: AnyProgram, guide: AnyProgram, *args: Any, **kwargs: Any
    ) -> float:
        """Minus the surrogate, as a number; adds its gradients to every parameter's ``.grad``.

        It is a training step: schedules move.
        """
        with torch.enable_grad():
            terms = self.terms(model, guide, *args, **kwargs)
            loss = -self.surrogate_of(terms)
            if loss.requires_grad:
                loss.backward(retain_graph=self.retain_graph)
        if self.schedules:
            self.advance(self.figures(terms)["kl"])
        return loss.item()

    def _get_trace(self, model: AnyProgram, guide: AnyProgram, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} works on pyrovae.terms, not on Pyro's traces."
        )


# Each node of the autograd graph costs as much as a small product: none is made for nothing.


def mean(over_particles: Tensor) -> Tensor:
    """The mean over the first dimension."""
    return over_particles[0] if over_particles.shape[0] == 1 else over_particles.mean(0)


def times(weight: float | Tensor, value: Tensor) -> Tensor:
    """The product; the value itself where the weight is the number 1."""
    return value if is_one(weight) else weight * value


def is_one(weight: float | Tensor | Schedule) -> bool:
    """Whether it is the number 1 and stays so."""
    return not isinstance(weight, Tensor | Schedule) and weight == 1


def _weights(terms: Terms) -> Iterator[float | Tensor]:
    """What the programs' own ``poutine.scale`` puts on each density."""
    for site in terms.observed.values():
        yield site.weight
    for latent in terms.latents.values():
        yield latent.weight
        yield latent.prior_weight


def _global_terms(terms: Terms, weighted: bool) -> Tensor | float:
    """Log-densities of what stands outside the data plate, averaged over particles: a scalar."""
    total: Tensor | float = 0.0
    for site in terms.observed.values():
        if site.is_global:
            total = total + ((site.weight if weighted else 1.0) * site.log_prob).mean()
    for latent in terms.global_latents:
        p, q = (latent.prior_weight, latent.weight) if weighted else (1.0, 1.0)
        total = total + (p * latent.log_prior - q * latent.log_posterior).mean()
    return total
