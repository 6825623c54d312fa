"""The evidence lower bound, and what may be done to its KL."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from pyrovae.kl_control import FreeBits, Schedule
from pyrovae.objectives.base import Objective, is_one, mean, times
from pyrovae.traces import Latent, Terms
from pyrovae.traces.errors import no_units

__all__ = ["ELBO"]

TRIES = {
    "kl_weight": "0.5, or pv.kl_control.Linear(epochs=10)",
    "free_bits": '0.5, or pv.kl_control.FreeBits(0.1, per="unit")',
    "capacity": "5.0, or pv.kl_control.Linear(0, 5, epochs=10)",
}


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
        if isinstance(free_bits, Schedule):
            raise TypeError(
                f"ELBO: free_bits do not move, got {free_bits!r}. Expected: a number or FreeBits. "
                f"Try: free_bits={TRIES['free_bits']}; kl_weight= or capacity= with this schedule."
            )
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
        plain = is_one(self.kl_weight) and self.free_bits == 0 and self.capacity is None
        return plain and super().is_bound(terms)

    def figures(self, terms: Terms, total: float | None = None) -> dict[str, Tensor]:
        """The mean ``kl``, nats a datum, and the ``kl_weight`` and ``capacity`` in force."""
        found = super().figures(terms, total)
        found["kl_weight"] = _now(self.kl_weight, found["kl"])
        if self.capacity is not None:
            found["capacity"] = _now(self.capacity, found["kl"])
        return {name: torch.as_tensor(v).to(found["kl"], copy=True) for name, v in found.items()}

    def _mean_kl(self, latent: Latent) -> Tensor:
        return self._kl(latent, weighted=False)

    def _kl(self, latent: Latent, weighted: bool) -> Tensor:
        """KL of one site, averaged over particles: `[B]`, or a scalar for a global site."""
        kl = latent.kl if self.analytic_kl else None
        if kl is not None:
            kl = mean(kl) if kl.dim() > (0 if latent.is_global else 1) else kl
            return times(latent.weight, kl) if weighted else kl
        if not weighted:
            return mean(latent.sampled_kl)
        log_q, log_p = latent.log_posterior, latent.log_prior
        return mean(times(latent.weight, log_q) - times(latent.prior_weight, log_p))

    def bound(self, terms: Terms) -> Tensor:
        """E_q[log p(x|z)] - KL, `[B]`, nats."""
        sites = [site for site in terms.observed.values() if not site.is_global]
        bound = times(sites[0].inner_scale, mean(sites[0].log_prob))
        for site in sites[1:]:
            bound = bound + times(site.inner_scale, mean(site.log_prob))
        for latent in terms.local_latents:
            bound = bound - times(latent.inner_scale, self._kl(latent, weighted=False))
        return bound

    def objective(self, terms: Terms) -> Tensor:
        """The bound with the control of its KL and the programs' own scales, `[B]`."""
        sites = [site for site in terms.observed.values() if not site.is_global]
        total = times(sites[0].weight, mean(sites[0].log_prob))
        for site in sites[1:]:
            total = total + times(site.weight, mean(site.log_prob))
        if self.capacity is not None:
            return total - self._missed(terms)
        for latent in terms.local_latents:
            kl = self._freed(latent)
            total = total - times(_now(self.kl_weight, kl), kl)
        return total

    def _missed(self, terms: Terms) -> Tensor | float:
        """How far the mean KL is from the capacity, weighted: a scalar."""
        each = [self._kl(latent, weighted=True) for latent in terms.local_latents]
        if not each:
            return 0.0
        kl = sum(each[1:], each[0]).mean()
        return times(_now(self.kl_weight, kl), (kl - _now(self.capacity, kl)).abs())

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
            total = total - times(_now(self.kl_weight, kl), kl)
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
            return times(_by_datum(latent.weight), mean(kl))
        densities = latent.unit_log_densities
        if densities is None:
            raise no_units(latent.name, latent.posterior, latent.prior)
        log_q, log_p = densities
        weight, prior_weight = _by_datum(latent.weight), _by_datum(latent.prior_weight)
        return mean(times(weight, log_q) - times(prior_weight, log_p))


def _now(value: float | Tensor | Schedule, like: Tensor) -> float | Tensor:
    """A number, or what a schedule says it is at this step."""
    return value.like(like) if isinstance(value, Schedule) else value


def _by_datum(weight: float | Tensor) -> float | Tensor:
    """A weight in front of `[B, D]`."""
    return weight.unsqueeze(-1) if isinstance(weight, Tensor) and weight.dim() else weight


def _check_number(name: str, value: float | Tensor | Schedule) -> None:
    if isinstance(value, Tensor | Schedule):
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"ELBO: {name} must be a number, a tensor or one of pyrovae.kl_control, "
            f"got {value!r}. Try: {name}={TRIES[name]}."
        )
    if not 0 <= value < float("inf"):
        raise ValueError(f"ELBO: {name} must be finite and at least 0, got {value}.")
