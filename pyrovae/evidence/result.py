"""What is known about log p(x) after an evaluation: numbers, their errors, and reasons for doubt.

Every number has two kinds of error, and :meth:`Evidence.summary` prints both: that of a *datum's*
estimate, from a finite number of particles (Monte Carlo), and that of a *mean over data*, from a
finite number of data, which the scatter of the estimates already contains. Comparing two guides or
two models on the same data, the second cancels: that is what :meth:`Evidence.paired` is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from pyrovae.evidence.psis import khat_threshold

__all__ = ["Evidence", "Paired"]


class Paired(NamedTuple):
    """Mean difference of log p(x) over the same data, nats, and its standard error."""

    difference: float
    std_error: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} +- {self.std_error:.3f} nats"


@dataclass
class Evidence:
    """log p(x) of each datum, in nats and float64, with what is needed to judge it.

    Attributes:
        log_px: Estimate `[B]`.
        std_error: Its Monte Carlo standard error by the delta method `[B]`; to be trusted where
            k-hat is small.
        ess: Effective sample size `[B]`, of `particles`.
        khat: Pareto k-hat `[B]`; -inf where all weights are equal, inf where it cannot be judged.
        elbo: The mean log-weight `[B]`; -inf where KL(q || p) is infinite.
        elbo_std_error: Its standard error `[B]`.
        particles: K.
        seed: Seed of the noise.
        support: Per latent site, how the guide's support stands to the prior's: "equal",
            "narrower", "wider", ...
        lower_bound: The guide cannot reach all of the prior: `log_px` estimates a lower bound.
        method: "importance".
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor
    elbo: Tensor
    elbo_std_error: Tensor
    particles: int
    seed: int
    support: dict[str, str] = field(default_factory=dict)
    lower_bound: bool = False
    method: str = "importance"

    def __len__(self) -> int:
        return self.log_px.shape[0]

    def __repr__(self) -> str:
        mean = f"{self.mean:.4f} +- {self.mean_std_error:.4f}"
        return f"Evidence({len(self)} data, mean log p(x) = {mean})"

    @property
    def total(self) -> float:
        """Sum of log p(x) over data, nats."""
        return self.log_px.sum().item()

    @property
    def total_std_error(self) -> float:
        """Monte Carlo standard error of :attr:`total`, nats."""
        return self.std_error.square().sum().sqrt().item()

    @property
    def mean(self) -> float:
        """Mean of log p(x) over data, nats."""
        return self.log_px.mean().item()

    @property
    def mean_std_error(self) -> float:
        """Standard error of :attr:`mean` over data, Monte Carlo error included, nats."""
        return _std_error(self.log_px)

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of :attr:`mean` for these very data, nats."""
        return self.total_std_error / len(self)

    @property
    def khat_threshold(self) -> float:
        """min(1 - 1/log10 K, 0.7)."""
        return khat_threshold(self.particles)

    @property
    def unreliable(self) -> Tensor:
        """Which data have a k-hat above the threshold `[B]`."""
        return self.khat > self.khat_threshold

    def _khat_line(self) -> str:
        """The share of data with a large k-hat, among those whose k-hat can be judged."""
        judged = self.khat < math.inf
        if not bool(judged.any()):
            return "not to be judged"
        share = 100 * self.unreliable[judged].double().mean().item()
        rest = "" if bool(judged.all()) else f" of the {int(judged.sum())} judged"
        return f"{share:.1f} % of data above {self.khat_threshold:.2f}{rest}"

    def paired(self, other: Evidence) -> Paired:
        """Mean over data of this log p(x) minus the other's, with its standard error.

        Raises:
            ValueError: The two hold different numbers of data.
        """
        if len(self) != len(other):
            raise ValueError(
                f"Evidence.paired: {len(self)} and {len(other)} data. "
                f"Expected: both evaluated on the same data in the same order. "
                f"Try: log_evidence of both models on one test set."
            )
        difference = self.log_px - other.log_px.to(self.log_px.device)
        return Paired(difference.mean().item(), _std_error(difference))

    def summary(self) -> str:
        """A few printable lines: mean, both errors, ELBO, ESS, k-hat, reasons for doubt."""
        sign = ">=" if self.lower_bound else "="
        lines = [
            f"log p(x) of {len(self)} data, {self.particles} particles, seed {self.seed} "
            f"({self.method})",
            f"  mean log p(x) {sign} {self.mean:.3f} +- {self.mean_std_error:.3f} over data, "
            f"of which +- {self.monte_carlo_error:.4f} Monte Carlo (nats)",
            f"  ELBO          = {self.elbo.mean().item():.3f} +- {_std_error(self.elbo):.3f}, "
            f"gap {(self.log_px - self.elbo).mean().item():.3f}",
        ]
        low, median, high = (_quantile(self.ess, q) for q in (0.05, 0.5, 0.95))
        lines.append(
            f"  ESS             min {self.ess.min().item():.1f}, 5 % {low:.1f}, median "
            f"{median:.1f}, 95 % {high:.1f}"
        )
        lines.append(f"  Pareto k-hat    {self._khat_line()}")
        return "\n".join(lines + [f"  ! {doubt}" for doubt in self.warnings()])

    __str__ = summary

    def warnings(self) -> list[str]:
        """Reasons to doubt the numbers, in words; empty if there is none."""
        found = []
        if self.lower_bound:
            sites = [n for n, label in self.support.items() if label in ("narrower", "crossing")]
            found.append(f"a lower bound only: the guide cannot reach all of the prior at {sites}")
        unknown = [n for n, label in self.support.items() if label == "unknown"]
        if unknown:
            found.append(f"supports of guide and prior could not be compared at {unknown}")
        if bool((self.elbo == -math.inf).any()):
            found.append(
                "the ELBO is -inf: the guide draws where the prior has no mass (infinite KL)"
            )
        impossible = int((self.log_px == -math.inf).sum())
        if impossible:
            found.append(f"{impossible} data with log p(x) = -inf: no draw can explain them")
        unjudged = int((self.khat == math.inf).sum()) - impossible
        if unjudged > 0:
            found.append(
                f"{unjudged} data whose k-hat cannot be judged from {self.particles} particles"
            )
        unreliable = int((self.unreliable & self.khat.isfinite()).sum())
        if unreliable:
            found.append(
                f"{unreliable} data with heavy-tailed weights: their log p(x) is probably low "
                f"and its error too small; try a wider or better guide, or more particles"
            )
        return found


def _std_error(values: Tensor) -> float:
    if len(values) < 2 or not bool(values.isfinite().all()):
        return math.nan
    return (values.std() / math.sqrt(len(values))).item()


def _quantile(values: Tensor, q: float) -> float:
    ordered = values.sort().values  # torch.quantile refuses more than 2**24 values
    return ordered[round(q * (len(ordered) - 1))].item()
