r"""Losses for ``pyro.infer.SVI`` and for ``fit``, a few lines each.

All of them are functions of :class:`~pyrovae.traces.Terms`.

The two SGVB estimators of the ELBO (Kingma & Welling 2014, arXiv:1312.6114, eq. 6 and 7),

.. math::
    \text{A:}\quad & \tfrac1K \sum_k \log p(x|z_k) + \log p(z_k) - \log q(z_k|x) \\
    \text{B:}\quad & \tfrac1K \sum_k \log p(x|z_k) - \mathrm{KL}(q(z|x) \,\|\, p(z)),

and the importance-weighted bound :math:`\log \tfrac1K \sum_k w_k` (Burda et al. 2016,
arXiv:1509.00519).

An objective offers three views of itself:

* ``per_datum(model, guide, *args) -> [B]``: the true bound in nats, higher is better, free of KL
  weights, free bits, ``poutine.scale`` and N/B;
* ``surrogate(model, guide, *args)``: the scalar that is *maximized*, a sum over the data plate
  times N/B;
* Pyro's interface (``loss``, ``differentiable_loss``, ``loss_and_grads``): minus the surrogate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyro.infer
import torch
from torch import Tensor

from pyrovae import bounds
from pyrovae.kl_control import FreeBits, Schedule
from pyrovae.traces import Latent, Plan, Terms, plan_particles, same, terms
from pyrovae.traces.errors import check_per_datum, no_units, not_reparameterized

__all__ = ["ELBO", "IWAE", "Objective", "Renyi"]

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
        return _times(scale, self.unscaled_of(terms, scale))

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
        return all(_is_one(weight) for weight in _weights(terms))

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
                mean = (latent.inner_scale * self._mean_kl(latent)).mean()
                kl = kl + (mean / share if latent.is_global else mean)
        return {"kl": kl}

    def _mean_kl(self, latent: Latent) -> Tensor:
        return _mean(latent.sampled_kl)

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


class ELBO(Objective):
    r"""Evidence lower bound, sampled (estimator A) or with analytic KL where right (estimator B).

    .. math:: \mathcal L(x) = E_q[\log p(x|z)] - \lambda \, \mathrm{KL}(q(z|x) \,\|\, p(z)),
        \qquad \lambda = \texttt{kl\_weight}

    With ``analytic_kl=True`` a site's KL is closed-form if torch knows it *and* the site's prior
    depends on nothing drawn from the site in the guide; otherwise that site is sampled. The
    surrogate has the KL weight, free bits, capacity and every ``poutine.scale``; :meth:`per_datum`
    has none of them.

    Args:
        analytic_kl: Estimator B where valid; False is estimator A throughout.
        kl_weight: lambda; a number or a 0-d tensor, may be 0, may be changed between steps; or
            one of :mod:`pyrovae.kl_control`, which changes by itself.
        free_bits: Nats a latent site may use at no cost: its KL, averaged over the batch, is
            replaced by ``free_bits`` where smaller (Kingma et al. 2016, arXiv:1606.04934). Per
            unit or group of units: :class:`pyrovae.kl_control.FreeBits`.
        particles: K, draws a datum.
        data_plate: Name of the plate over data.
        capacity: C, a number or one of :mod:`pyrovae.kl_control`: instead of
            :math:`\lambda \, \mathrm{KL}` the penalty is
            :math:`\lambda \, |\overline{\mathrm{KL}} - C|`, the bar being the mean over the batch
            of the KL of all latents of a datum (Burgess et al. 2018, arXiv:1804.03599, who write
            gamma for lambda, 100 to 1000). Global latents keep their KL as it is.

    Source: Kingma & Welling (2014), arXiv:1312.6114.

    Example:
        >>> import pyro, pyrovae as pv
        >>> from pyro.infer import SVI
        >>> vae = pv.models.VAE(data_shape=64, latent=2, hidden=16)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pv.ELBO())
        >>> annealed = pv.ELBO(kl_weight=pv.kl_control.Linear(epochs=10))
    """

    def __init__(
        self,
        analytic_kl: bool = True,
        kl_weight: float | Tensor | Schedule = 1.0,
        free_bits: float | FreeBits = 0.0,
        particles: int = 1,
        data_plate: str | None = None,
        *,
        capacity: float | Tensor | Schedule | None = None,
    ) -> None:
        super().__init__(particles, data_plate)
        _check_number("kl_weight", kl_weight)
        if not isinstance(free_bits, FreeBits):
            _check_number("free_bits", free_bits)
        if capacity is not None:
            _check_number("capacity", capacity)
            if free_bits != 0:
                raise ValueError(
                    "ELBO: free_bits and capacity both say how large the KL is to be. "
                    "Expected: one of them."
                )
        if capacity is kl_weight:
            raise ValueError("ELBO: kl_weight and capacity need a schedule each.")
        self.analytic_kl = analytic_kl
        self.kl_weight = kl_weight
        self.free_bits = free_bits
        self.capacity = capacity

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Those of ``kl_weight`` and ``capacity`` that move by themselves."""
        named = {"kl_weight": self.kl_weight, "capacity": self.capacity}
        return {name: value for name, value in named.items() if isinstance(value, Schedule)}

    def is_bound(self, terms: Terms) -> bool:
        """Whether nothing is annealed, freed, held to a capacity or scaled."""
        plain = _is_one(self.kl_weight) and self.free_bits == 0 and self.capacity is None
        return plain and super().is_bound(terms)

    def figures(self, terms: Terms, total: float | None = None) -> dict[str, Tensor]:
        """The mean ``kl``, nats a datum, and the ``kl_weight`` and ``capacity`` in force."""
        found = super().figures(terms, total)
        found["kl_weight"] = _now(self.kl_weight, found["kl"])
        if self.capacity is not None:
            found["capacity"] = _now(self.capacity, found["kl"])
        return {name: torch.as_tensor(v).to(found["kl"]) for name, v in found.items()}

    def _mean_kl(self, latent: Latent) -> Tensor:
        return self._kl(latent, weighted=False)

    def _kl(self, latent: Latent, weighted: bool) -> Tensor:
        """KL of one site, averaged over particles: `[B]`, or a scalar for a global site."""
        kl = latent.kl if self.analytic_kl else None
        if kl is not None:
            kl = _mean(kl) if kl.dim() > (0 if latent.is_global else 1) else kl
            return _times(latent.weight, kl) if weighted else kl
        if not weighted:
            return _mean(latent.sampled_kl)
        log_q, log_p = latent.log_posterior, latent.log_prior
        return _mean(_times(latent.weight, log_q) - _times(latent.prior_weight, log_p))

    def bound(self, terms: Terms) -> Tensor:
        """E_q[log p(x|z)] - KL, `[B]`, nats."""
        sites = [site for site in terms.observed.values() if not site.is_global]
        bound = _times(sites[0].inner_scale, _mean(sites[0].log_prob))
        for site in sites[1:]:
            bound = bound + _times(site.inner_scale, _mean(site.log_prob))
        for latent in terms.local_latents:
            bound = bound - _times(latent.inner_scale, self._kl(latent, weighted=False))
        return bound

    def objective(self, terms: Terms) -> Tensor:
        """The bound with the control of its KL and the programs' own scales, `[B]`."""
        sites = [site for site in terms.observed.values() if not site.is_global]
        total = _times(sites[0].weight, _mean(sites[0].log_prob))
        for site in sites[1:]:
            total = total + _times(site.weight, _mean(site.log_prob))
        if self.capacity is not None:
            return total - self._missed(terms)
        for latent in terms.local_latents:
            kl = self._freed(latent)
            total = total - _times(_now(self.kl_weight, kl), kl)
        return total

    def _missed(self, terms: Terms) -> Tensor | float:
        """How far the mean KL is from the capacity, weighted: a scalar."""
        each = [self._kl(latent, weighted=True) for latent in terms.local_latents]
        if not each:
            return 0.0
        kl = sum(each[1:], each[0]).mean()
        return _times(_now(self.kl_weight, kl), (kl - _now(self.capacity, kl)).abs())

    def global_objective(self, terms: Terms) -> Tensor | float:
        """Global terms, their KL weighted and freed like the others."""
        total: Tensor | float = 0.0
        for site in terms.observed.values():
            if site.is_global:
                total = total + (site.weight * site.log_prob).mean()
        for latent in terms.global_latents:
            if self.capacity is not None:
                total = total - self._kl(latent, weighted=True)
                continue
            kl = self._freed(latent)
            total = total - _times(_now(self.kl_weight, kl), kl)
        return total

    def global_bound(self, terms: Terms) -> Tensor | float:
        total: Tensor | float = 0.0
        for site in terms.observed.values():
            if site.is_global:
                total = total + site.inner_scale * site.log_prob.mean()
        for latent in terms.global_latents:
            total = total - latent.inner_scale * self._kl(latent, weighted=False)
        return total

    def _freed(self, latent: Latent) -> Tensor:
        """The KL of a site with what is free: `[B]`, or a scalar for a global site."""
        free = self.free_bits
        if isinstance(free, FreeBits) and free.per != "site":
            kl = free.of(self._unit_kl(latent))
            return kl.squeeze(0) if latent.is_global else kl
        kl = self._kl(latent, weighted=True)
        if free == 0:
            return kl
        nats = free.nats if isinstance(free, FreeBits) else free
        return torch.where(kl.mean() > nats, kl, torch.full_like(kl, nats))

    def _unit_kl(self, latent: Latent) -> Tensor:
        """KL of each unit of a site, averaged over particles and weighted: `[B or 1, D]`."""
        kl = latent.unit_kl if self.analytic_kl else None
        if kl is not None:
            return _times(_by_datum(latent.weight), _mean(kl))
        densities = latent.unit_log_densities
        if densities is None:
            raise no_units(latent.name, latent.posterior, latent.prior)
        log_q, log_p = densities
        weight, prior_weight = _by_datum(latent.weight), _by_datum(latent.prior_weight)
        return _mean(_times(weight, log_q) - _times(prior_weight, log_p))


class _MultiSample(Objective):
    """What bounds with a log-sum-exp share.

    No global latents, no scale inside the logarithm, and only the weights of one datum.
    """

    def bound_of(self, terms: Terms, total: float | None = None) -> Tensor:
        self._check(terms)
        return self.bound(terms)

    def unscaled_of(self, terms: Terms, scale: float) -> Tensor:
        self._check(terms)
        return _times(self._common_weight(terms), super().unscaled_of(terms, scale))

    def global_objective(self, terms: Terms) -> float:
        return 0.0

    def _check(self, terms: Terms) -> None:
        check_per_datum(terms, type(self).__name__)

    def _common_weight(self, terms: Terms) -> float | Tensor:
        """A ``poutine.scale`` around the whole of both programs, applied after the bound."""
        named = [(s.name, s.weight) for s in terms.observed.values()]
        for latent in terms.latents.values():
            named += [(latent.name, latent.weight), (latent.name, latent.prior_weight)]
        weight = named[0][1]
        for name, other in named[1:]:
            if not same(weight, other):
                raise ValueError(
                    f"{type(self).__name__}: poutine.scale differs between sites '{named[0][0]}' "
                    f"({weight}) and '{name}' ({other}); inside the log-sum-exp it would not "
                    f"give a bound. Expected: one scale for all of model and guide. "
                    f"Try: pv.ELBO(kl_weight=...) for annealing, or scale both programs whole."
                )
        return weight


class IWAE(_MultiSample):
    r"""Importance-weighted bound :math:`\log \frac1K \sum_k p(x, z_k) / q(z_k|x)` of each datum.

    At least the ELBO and at most log p(x) in expectation, tighter as K grows. N/B of a subsampled
    plate and a ``poutine.scale`` around both programs are applied after the logarithm.

    Args:
        particles: K, draws a datum.
        estimator: What is differentiated. ``"iwae"``: the bound. ``"stl"``: the bound with log q's
            own parameters stopped (Roeder et al. 2017, arXiv:1703.09194; biased for K > 1).
            ``"dreg"``: the model's gradient with weights w, the guide's with squared weights
            (Tucker et al. 2019, arXiv:1810.04152; unbiased).
        data_plate: Name of the plate over data.

    Raises:
        ValueError: On use, for a global latent, a subsampled inner plate, or a scale on some
            sites only.

    Source: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.

    Example:
        >>> import pyrovae as pv
        >>> pv.IWAE(particles=5).particles
        5
    """

    def __init__(
        self,
        particles: int,
        estimator: Literal["iwae", "stl", "dreg"] = "iwae",
        data_plate: str | None = None,
    ) -> None:
        super().__init__(particles, data_plate)
        if estimator not in ("iwae", "stl", "dreg"):
            raise ValueError(
                f'IWAE: estimator must be "iwae", "stl" or "dreg", got {estimator!r}.'
            )
        self.estimator = estimator

    def bound(self, terms: Terms) -> Tensor:
        """The importance-weighted bound, `[B]`, nats."""
        return bounds.iwae(terms.log_weights)

    def objective(self, terms: Terms) -> Tensor:
        """The bound, with the gradient of the chosen estimator, `[B]`."""
        if self.estimator == "iwae" or not torch.is_grad_enabled():
            return self.bound(terms)
        log_weights = terms.log_likelihood
        for latent in terms.local_latents:
            log_weights = log_weights + latent.log_prior - latent.log_posterior_stopped
        if self.estimator == "stl":
            return bounds.iwae(log_weights)
        return _doubly_reparameterized(terms, log_weights)


def _doubly_reparameterized(terms: Terms, log_weights: Tensor) -> Tensor:
    r"""The bound, with the doubly reparameterized gradient.

    .. math:: \sum_k \tilde w_k \nabla_\theta \log w_k + \tilde w_k^2 \nabla_\phi \log w_k

    Both enter through log w: phi only through the draws once log q's own parameters are stopped.
    So the gradient that arrives at a draw is multiplied by one more weight, by a hook, and the
    model's own stays as it is.
    """
    weights = bounds.normalized_weights(log_weights)  # [K, B]
    for latent in terms.local_latents:
        latent.scale_gradient(weights)
    return bounds.iwae(log_weights)


class Renyi(_MultiSample):
    r"""Renyi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}` of each datum.

    Args:
        alpha: Order, at least 0; 0 is :class:`IWAE`, 1 the ELBO.
        particles: K, draws a datum.
        data_plate: Name of the plate over data.

    Source: Li & Turner (2016), arXiv:1602.02311.
    """

    def __init__(self, alpha: float, particles: int, data_plate: str | None = None) -> None:
        super().__init__(particles, data_plate)
        if not 0 <= alpha < float("inf"):
            raise ValueError(
                f"Renyi: alpha must be finite and at least 0, got {alpha}: "
                f"it is no lower bound otherwise."
            )
        self.alpha = alpha

    def bound(self, terms: Terms) -> Tensor:
        """The Renyi bound, `[B]`, nats."""
        return bounds.renyi(terms.log_weights, self.alpha)


# Each node of the autograd graph costs as much as a small product: none is made for nothing.


def _mean(over_particles: Tensor) -> Tensor:
    return over_particles[0] if over_particles.shape[0] == 1 else over_particles.mean(0)


def _times(weight: float | Tensor, value: Tensor) -> Tensor:
    return value if _is_one(weight) else weight * value


def _is_one(weight: float | Tensor | Schedule) -> bool:
    return not isinstance(weight, Tensor | Schedule) and weight == 1


def _now(value: float | Tensor | Schedule, like: Tensor) -> float | Tensor:
    """A number, or what a schedule says it is at this step."""
    return value.like(like) if isinstance(value, Schedule) else value


def _by_datum(weight: float | Tensor) -> float | Tensor:
    """A weight in front of `[B, D]`."""
    return weight.unsqueeze(-1) if isinstance(weight, Tensor) and weight.dim() else weight


def _check_number(name: str, value: float | Tensor | Schedule) -> None:
    if not isinstance(value, Tensor | Schedule) and not 0 <= value < float("inf"):
        raise ValueError(f"ELBO: {name} must be finite and at least 0, got {value}.")


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
