"""The report: how much of each latent is used, over all data given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.collapse.information import Draw, Surgery, operate
from pyrovae.collapse.verdict import in_words, state_of
from pyrovae.traces import Latent, Terms, evaluating, frozen_buffers
from pyrovae.traces.batches import Batches, derived_seed
from pyrovae.traces.blocks import Blocks, Scored
from pyrovae.traces.support import unwrap
from pyrovae.traces.units import centre, marginals

__all__ = ["CollapseReport", "collapse_report"]


@dataclass
class CollapseReport:
    """How much each latent site and unit is used; all in nats, keyed by site.

    Attributes:
        kl: Mean over data of KL(q(z|x) || p(z)); inf where the guide reaches beyond the support
            of the prior.
        kl_per_unit: The same for each unit `[D]`; None where the posterior does not factorize.
        unit_variance: Variance over data of each unit's posterior mean (median) `[D]`; None where
            there is no such thing.
        active_units: How many units have a variance of at least `threshold`; None as above.
        units: D.
        mutual_information: I_q(x; z), at most :attr:`cap`; None where it is not computed.
        marginal_kl: KL(q(z) || p(z)); None likewise.
        verdict: "healthy", "partly collapsed", "collapsed", "unknown" or "no latents", then
            ", MI saturated at log N" where it is; see :func:`collapse_report`.
        data: N.
        reference: Size of the reference set of q(z).
        threshold: Of active units.
        notes: Why a number is missing, and other remarks.
        kl_std_error: Standard error of `kl`, the data as a sample of what they come from.
        mutual_information_std_error: The same of `mutual_information`, draws included.
        marginal_kl_std_error: The same of `marginal_kl`.
        surgery_gap: KL - I_q(x; z) - KL(q(z) || p(z)) on the reference set: 0 but for the draws,
            if the posterior's densities, draws and KL agree.
        surgery_gap_std_error: Its standard error.
        mutual_information_upper: An estimate that is high on average, as `mutual_information` is
            low on average.
        saturated: Whether the mutual information has come to its cap and says "at least".
    """

    kl: dict[str, float]
    kl_per_unit: dict[str, Tensor | None]
    unit_variance: dict[str, Tensor | None]
    active_units: dict[str, int | None]
    units: dict[str, int]
    mutual_information: dict[str, float | None]
    marginal_kl: dict[str, float | None]
    verdict: str
    data: int
    reference: int
    threshold: float
    notes: list[str] = field(default_factory=list)
    kl_std_error: dict[str, float] = field(default_factory=dict)
    mutual_information_std_error: dict[str, float | None] = field(default_factory=dict)
    marginal_kl_std_error: dict[str, float | None] = field(default_factory=dict)
    surgery_gap: dict[str, float | None] = field(default_factory=dict)
    surgery_gap_std_error: dict[str, float | None] = field(default_factory=dict)
    mutual_information_upper: dict[str, float | None] = field(default_factory=dict)
    saturated: dict[str, bool | None] = field(default_factory=dict)

    @property
    def cap(self) -> float | None:
        """What no mutual information can exceed, log(`reference`); None if none was asked for."""
        return math.log(self.reference) if self.reference else None

    @property
    def total_kl(self) -> float:
        """KL over all sites, nats a datum."""
        return math.fsum(self.kl.values())

    def summary(self) -> str:
        """A few printable lines, one a site."""
        lines = [f"{self.verdict}: KL {self.total_kl:.3f} nats a datum over {self.data} data"]
        if self.kl:
            titles = f"{'KL':^17}   {'active':^10}   {'I(x;z)':^17}   {'KL(q(z)||p)':^17}"
            lines.append(f"  {'site':<12} {titles}   largest KL of a unit")
        for site, kl in self.kl.items():
            active = self.active_units[site]
            per_unit = self.kl_per_unit[site]
            largest = None if per_unit is None else per_unit.max().item()
            information = self.mutual_information[site]
            lines.append(
                f"  {site:<12} {_number(kl, self.kl_std_error.get(site))}"
                f"   {'?' if active is None else active:>3} of {self.units[site]:<3}"
                f"   {_number(information, self.mutual_information_std_error.get(site))}"
                f"   {_number(self.marginal_kl[site], self.marginal_kl_std_error.get(site))}"
                f"   {_number(largest).rstrip()}"
            )
        explained = f"active: variance of posterior means at least {self.threshold}"
        if self.cap is not None:
            explained += f"; I(x;z) cannot exceed log {self.reference} = {self.cap:.2f}"
        lines += [f"  {explained}"] if self.kl else []
        for site, gap in self.surgery_gap.items():
            if gap is not None:
                error = self.surgery_gap_std_error[site]
                lines.append(
                    f"  KL - I(x;z) - KL(q(z)||p) of '{site}', 0 but for the draws: "
                    f"{gap:.3f} +- {error:.3f}"
                )
        return "\n".join(lines + [f"  ! {note}" for note in self.notes])

    __str__ = summary


def collapse_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    threshold: float = 0.01,
    particles: int = 10,
    reference: int = 5000,
    seed: int = 0,
    batch_size: int = 100,
    data_plate: str | None = None,
    **kwargs: Any,
) -> CollapseReport:
    """Measure how much of each latent is used, over all data given.

    KL is analytic where torch knows it and it is valid for the order of the draws, otherwise a
    mean over `particles` draws. Networks are in evaluation mode; no weight, buffer or random state
    of the caller moves.

    The verdict: "collapsed" if no unit of any site is active; "partly collapsed" if some site has
    less than half of its units active; "healthy" otherwise. Where activity cannot be measured
    (discrete latents), a mutual information above 0.05 nats counts as use, or a KL above it where
    that is missing too; "unknown" if neither is a number.

    The mutual information is estimated from one draw a datum, q(z) being the mixture of the
    posteriors of the whole reference set, however the data are cut into batches; see
    :mod:`pyrovae.collapse.information` for its error, its bias and its cap. It is None, with the
    reason in ``notes``, where q(z|x) depends on another draw (hierarchies) or stands in further
    plates.

    Args:
        model: A Pyro program p(x, z).
        guide: A Pyro program q(z|x).
        *args: Arguments of both programs, for all data, or a :class:`pyrovae.datasets.Dataset`.
        threshold: Variance of posterior means from which on a unit is active.
        particles: Draws a datum where a KL or a mean has to be sampled.
        reference: Most data that q(z) is made of; the cost of the mutual information grows with
            its square. 0: no mutual information, and one datum is enough.
        seed: Seed of the draws.
        batch_size: Data a batch.
        data_plate: Name of the plate over data.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: As :func:`pyrovae.log_evidence`; or mutual information asked of one datum.

    Source: Burda et al. (2016), arXiv:1509.00519; Hoffman & Johnson (2016), "ELBO surgery".

    Example:
        >>> import torch, pyro, pyrovae as pv, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        >>> pv.collapse_report(model, guide, torch.randn(20, 1)).verdict
        'collapsed'
    """
    _check(particles, reference, threshold)
    batches = Batches(args, kwargs, batch_size, "collapse_report")
    if reference and batches.rows == 1:
        raise _one_datum()
    blocks = Blocks(model, guide, data_plate, "collapse_report")
    tables: dict[str, _Table] = {}
    devices = [batches.device] if batches.device.type == "cuda" else []
    with evaluating(model, guide), frozen_buffers(model, guide), torch.random.fork_rng(devices):
        for first_row, batch_args, batch_kwargs in batches:
            torch.manual_seed(derived_seed(seed, first_row))
            one = blocks.start(batch_args, batch_kwargs, first_row)
            rows = None if batches.rows is None else min(batches.size, batches.rows - first_row)
            batches.check_plate(one, rows, "collapse_report")
            with pyro.validation_enabled(False):
                count = particles if _is_sampled(one, blocks) else 1
                scored = blocks.score(blocks.draws(count), 0, count)
                for latent in _latents(scored.terms):
                    tables.setdefault(latent.name, _Table()).add(latent, scored, blocks)
        found: dict[str, Surgery] = {}
        notes: list[str] = []
        if reference and tables:
            found, notes = _surgery(blocks, batches, tables, reference, seed)
    return _report(tables, found, notes, blocks, threshold)


def _latents(terms: Terms) -> list[Latent]:
    """The latents of a datum that have a prior."""
    return [latent for latent in terms.local_latents if latent.prior is not None]


def _is_sampled(terms: Terms, blocks: Blocks) -> bool:
    """Whether some KL, or some mean, comes from draws or may depend on another site's."""
    if len(_latents(terms)) > 1:
        return True
    for latent in _latents(terms):
        inside = blocks.relations[latent.name].label in ("equal", "narrower")
        if latent.kl is None or not inside or centre(latent.posterior, latent.value)[1]:
            return True
        if latent.unit_kl is None and marginals(latent.posterior) is not None:
            return True
    return False


class _Table:
    """What is gathered of one site, batch by batch."""

    def __init__(self) -> None:
        self.kl: list[Tensor] = []  # [b]
        self.unit_kl: list[Tensor | None] = []  # [b, D]
        self.centres: list[Tensor | None] = []  # [b, D]
        self.medians = False

    def add(self, latent: Latent, scored: Scored, blocks: Blocks) -> None:
        rows = scored.terms.plate.size
        relation = blocks.relations[latent.name]
        if relation.is_infinite and relation.everywhere:
            self.kl.append(torch.full((rows,), math.inf))
        else:
            kl = None if latent.name in scored.outside else latent.kl
            if kl is None:
                kl = scored.log_ratio(latent.name) + _auxiliary(latent, scored)
            self.kl.append((kl.mean(0) if kl.dim() > 1 else kl).expand(rows))
        unit_kl = _unit_kl(latent)
        if unit_kl is not None and bool(self.kl[-1].isinf().all()):
            unit_kl = torch.full_like(unit_kl, math.inf)
        self.unit_kl.append(unit_kl)
        mean, is_median = centre(latent.posterior, latent.value)
        self.medians |= is_median
        if mean is not None:  # a mask says what counts in a density, not what a mean is
            site = replaced(latent._guide, mask=None)
            mean = latent._layout.by_unit(mean, site).mean(0)
        self.centres.append(mean)

    @property
    def all_kl(self) -> Tensor:
        """The KL of every datum, `[N]`, in float64."""
        return torch.cat(self.kl).double()


def _auxiliary(latent: Latent, scored: Scored) -> Tensor | float:
    """Log q of the auxiliary draws behind a Delta site (autoguides) `[K, B]`; NaN if unclear."""
    if not isinstance(unwrap(latent.posterior), Delta):
        return 0.0
    others = scored.terms.local_latents
    auxiliary = [a for a in others if a.prior is None]
    own = [a for a in auxiliary if a.name.startswith(latent.name)]
    points = [o for o in others if o.prior is not None and isinstance(unwrap(o.posterior), Delta)]
    if not own and len(points) > 1:
        return math.nan
    return sum((a.log_posterior for a in own or auxiliary), torch.zeros(()))


def _unit_kl(latent: Latent) -> Tensor | None:
    """KL of each unit, averaged over particles, `[b, D]`; of the marginals of a Normal."""
    if latent.unit_kl is not None:
        return latent.unit_kl.mean(0)
    if latent.unit_log_densities is not None:
        log_q, log_p = latent.unit_log_densities
        return (log_q - log_p).mean(0)
    q, p = marginals(latent.posterior), marginals(latent.prior)
    if q is None or p is None:
        return None
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        kl = q.log_prob(latent.value) - p.log_prob(latent.value)
    return latent._layout.by_unit(kl, latent._guide).mean(0)


def _surgery(
    blocks: Blocks, batches: Batches, tables: dict[str, _Table], reference: int, seed: int
) -> tuple[dict[str, Surgery], list[str]]:
    """Both parts of the KL of each site, from some of the data; what could not be done."""
    count = len(next(iter(tables.values())).all_kl)
    if count < 2:
        raise _one_datum()
    if not blocks.is_frozen:
        return {}, ["no mutual information: a posterior depends on another draw"]
    size, index = min(reference, count), torch.arange(count)
    if batches.rows is not None and size < batches.rows:
        generator = torch.Generator().manual_seed(derived_seed(seed, -2))
        index = torch.randperm(batches.rows, generator=generator)[:size].sort().values
        batches = batches.subset(index.to(batches.device))
    draws: dict[str, list[Draw]] = {}
    for first_row, args, kwargs in batches:
        torch.manual_seed(derived_seed(seed, first_row, -3))
        blocks.start(args, kwargs, first_row)
        with pyro.validation_enabled(False):
            drawn = blocks.draws(1)
            scored = blocks.score(drawn, 0, 1)
            for latent in _latents(scored.terms):
                one = _draw(latent, scored, drawn.values[latent.name])
                draws.setdefault(latent.name, []).append(one)
    found, notes = {}, []
    for name, parts in draws.items():
        if any(draw.posterior.batch_shape != draw.log_posterior.shape for draw in parts):
            notes.append(f"no mutual information of '{name}': it stands in further plates")
            continue
        with pyro.validation_enabled(False):
            kl = tables[name].all_kl
            found[name] = operate(parts, kl[index.to(kl.device)])
        notes += _doubts(name, found[name])
    return found, notes


def _draw(latent: Latent, scored: Scored, drawn: Tensor) -> Draw:
    if latent.name not in scored.outside:
        found = latent.value, latent.log_posterior, latent.log_prior
    else:  # in place of a draw outside the prior's support the model saw another: q knows better
        log_q = latent._reduced(latent.posterior.log_prob(drawn), latent._guide)
        log_p = latent.log_prior.masked_fill(scored.outside[latent.name], -math.inf)
        found = drawn, log_q, log_p
    return Draw(latent.posterior, *(value[0] for value in found))


def _doubts(name: str, surgery: Surgery) -> list[str]:
    """What to know about the two parts of one site's KL."""
    notes = []
    least = surgery.information
    most = min(surgery.upper, least + surgery.marginal + surgery.gap)  # I(x;z) is part of the KL
    if surgery.is_saturated:
        notes.append(
            f"I(x;z) of '{name}' is saturated: {least:.2f} of log {surgery.size} = "
            f"{math.log(surgery.size):.2f} nats, so it is at least that. Try: more data, or a "
            f"larger reference="
        )
    elif most - least > 4 * surgery.information_error:
        notes.append(
            f"I(x;z) of '{name}' is between {least:.2f} and {most:.2f} nats: few data for so much "
            f"of it. Try: more data, or a larger reference="
        )
    rounding = 1e-4 * (1 + abs(surgery.marginal) + abs(surgery.information))
    if abs(surgery.gap) > 4 * surgery.gap_error + rounding:
        notes.append(
            f"KL of '{name}' is not I(x;z) + KL(q(z)||p): off by {surgery.gap:.3f} +- "
            f"{surgery.gap_error:.3f}. The posterior's draws, density and KL do not agree "
            f"(or the draws have heavy tails)"
        )
    return notes


def _check(particles: int, reference: int, threshold: float) -> None:
    if particles < 1:
        raise ValueError(f"collapse_report: particles must be at least 1, got {particles}.")
    if reference < 0 or reference == 1:
        raise ValueError(
            f"collapse_report: reference must be 0 (no mutual information) or at least 2, "
            f"got {reference}."
        )
    if not 0 < threshold < math.inf:
        raise ValueError(f"collapse_report: threshold must be positive, got {threshold}.")


def _one_datum() -> ValueError:
    return ValueError(
        "collapse_report: mutual information between x and z was asked of one datum, where it is "
        "0 whatever the guide does. Expected: at least 2 data. "
        "Try: more data, or reference=0 for the KL alone."
    )


def _report(
    tables: dict[str, _Table],
    surgery: dict[str, Surgery],
    notes: list[str],
    blocks: Blocks,
    threshold: float,
) -> CollapseReport:
    count = len(next(iter(tables.values())).all_kl) if tables else 0
    kl, error, unit_kl, variance, active, units = {}, {}, {}, {}, {}, {}
    for name, table in tables.items():
        each = table.all_kl
        kl[name] = each.mean().item()
        error[name] = (each.std() / math.sqrt(count)).item() if count > 1 else math.nan
        known = [u for u in table.unit_kl if u is not None]
        complete = len(known) == len(table.unit_kl)
        unit_kl[name] = torch.cat(known).double().mean(0) if complete else None
        centres = [c for c in table.centres if c is not None]
        complete = len(centres) == len(table.centres) and count > 1
        variance[name] = torch.cat(centres).double().var(0) if complete else None
        active[name] = None if variance[name] is None else int((variance[name] >= threshold).sum())
        units[name] = centres[0].shape[1] if centres else 1
        notes = notes + _remarks(name, table, kl[name], unit_kl[name], variance[name], count)
        if blocks.relations[name].is_infinite:
            notes.append(
                f"KL of '{name}' is infinite: the guide draws where the prior has no mass"
            )

    def of_each(attribute: str) -> dict[str, Any]:
        return {n: getattr(surgery[n], attribute) if n in surgery else None for n in kl}

    information = of_each("information")
    saturated = of_each("is_saturated")
    state = state_of(kl, active, units, information)
    return CollapseReport(
        kl=kl,
        kl_per_unit=unit_kl,
        unit_variance=variance,
        active_units=active,
        units=units,
        mutual_information=information,
        marginal_kl=of_each("marginal"),
        verdict=in_words(state, [n for n, full in saturated.items() if full]),
        data=count,
        reference=next(iter(surgery.values())).size if surgery else 0,
        threshold=threshold,
        notes=notes,
        kl_std_error=error,
        mutual_information_std_error=of_each("information_error"),
        marginal_kl_std_error=of_each("marginal_error"),
        surgery_gap=of_each("gap"),
        surgery_gap_std_error=of_each("gap_error"),
        mutual_information_upper=of_each("upper"),
        saturated=saturated,
    )


def _remarks(
    name: str,
    table: _Table,
    kl: float,
    unit_kl: Tensor | None,
    variance: Tensor | None,
    count: int,
) -> list[str]:
    """Why a number of one site is missing."""
    notes = []
    if unit_kl is None:
        notes.append(
            f"no KL per unit of '{name}': its posterior or its prior does not factorize over units"
        )
    if variance is None:
        why = "no means" if count > 1 else "a single datum"
        notes.append(f"no active units of '{name}': {why}")
    if table.medians:
        notes.append(f"active units of '{name}' by medians: its posterior has no mean")
    if math.isnan(kl):
        notes.append(f"no KL of '{name}': it is a function of auxiliary draws that it shares")
    return notes


def _number(value: float | None, error: float | None = None) -> str:
    """A number and its error in a column of 17."""
    if value is None:
        return f"{'-':>8}{'':9}"
    tail = "" if error is None or not math.isfinite(error) else f" +- {error:.3f}"
    return f"{value:>8.3f}{tail:<9}"
