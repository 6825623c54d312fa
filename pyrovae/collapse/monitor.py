"""A callback that watches the latents during training, and speaks up while there is still time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from pyrovae.collapse.report import CollapseReport, collapse_report
from pyrovae.collapse.verdict import ADVICE

__all__ = ["CollapseMonitor", "CollapseWarning"]

KL, INFORMATION = 0.1, 0.05  # nats, below which He et al. (2019) speak of collapse
STATES = ("collapsed", "partly collapsed", "healthy")
FALL = 0.8  # of the most active units so far


class CollapseWarning(UserWarning):
    """The latents go out of use."""


class CollapseMonitor:
    """Measure the use of z every few epochs; warn when it goes, once for each reason.

    It is a callback of :func:`pyrovae.fit`, and adds to the record of its epoch (so to the history
    and to ``metrics.jsonl``) for each latent site

    * ``mi``: I_q(x; z), nats, and ``mi_std_error``; at most the logarithm of `reference`;
    * ``active_units``;
    * ``monitored_kl``: the mean KL on the monitor's data, networks in evaluation mode (``kl`` of
      the record is over training steps);

    and ``verdict``. Where there are several sites their names follow a colon, ``mi:z1``.

    It warns, with what to try, where one of these holds at `patience` measurements in a row:

    * the KL of all sites is below 0.1 and their mutual information below 0.05 nats;
    * the verdict is "collapsed", or is worse than it was;
    * fewer than 80 % of the units are active that once were.

    No weight, buffer or random number of the training moves. It may also be called by hand in a
    loop of one's own, with a dictionary to fill.

    Args:
        model: The model that is trained.
        guide: The guide that is trained.
        *args: The data to watch, arguments of both programs, or a data set: a thousand rows are
            enough.
        every: Epochs between measurements. The first epoch is measured anyway: a mistake in the
            arguments shows there.
        patience: Measurements in a row that make a warning.
        reference: Most data that q(z) is made of; see :func:`pyrovae.collapse_report`.
        threshold: Variance of posterior means from which on a unit is active.
        **options: Further options of :func:`pyrovae.collapse_report`, and keyword arguments of
            both programs.

    Attributes:
        reports: The reports so far, by epoch.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.models.VAE(data_shape=4, latent=2, hidden=8)
        >>> x = torch.ones(20, 4)
        >>> watch = pv.CollapseMonitor(vae.model, vae.guide, x, patience=9)
        >>> run = pv.fit(vae.model, vae.guide, x, epochs=2, callbacks=[watch], progress=False)
        >>> run.history[-1]["active_units"]
        0
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        every: int = 1,
        patience: int = 2,
        reference: int = 1000,
        threshold: float = 0.01,
        **options: Any,
    ) -> None:
        for name, number in (("every", every), ("patience", patience)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"CollapseMonitor: {name} must be an integer of at least 1, got {number!r}."
                )
        if not callable(model) or not callable(guide):
            raise TypeError(
                "CollapseMonitor: the first two arguments are the model and the guide, two "
                "programs; the data to watch come after them."
            )
        self.model, self.guide, self.args = model, guide, args
        self.every, self.patience = every, patience
        self.options = {
            "particles": 1, "reference": reference, "threshold": threshold
        } | options  # fmt: skip
        self.reports: dict[int, CollapseReport] = {}
        self._best = STATES[0]
        self._most: dict[str, int] = {}  # active units, at their best
        self._held: dict[str, int] = {}  # reason -> measurements in a row
        self._said: set[str] = set()

    def __call__(self, record: dict[str, Any]) -> None:
        """Measure, if it is time; write into the record; warn."""
        epoch = record.setdefault("epoch", len(self.reports) + 1)
        if self.reports and epoch % self.every:
            return
        report = collapse_report(self.model, self.guide, *self.args, **self.options)
        self.reports[epoch] = report
        record.update(_figures(report))
        reasons = self._reasons(report)
        for reason in self._held.keys() - reasons.keys():
            self._held[reason] = 0
        for reason, words in reasons.items():
            self._held[reason] = self._held.get(reason, 0) + 1
            if self._held[reason] >= self.patience and reason not in self._said:
                self._said.add(reason)
                warnings.warn(f"epoch {epoch}: {words}. {ADVICE}", CollapseWarning, stacklevel=2)

    def _reasons(self, report: CollapseReport) -> dict[str, str]:
        """What gives cause for a warning: a short name, and the facts in words."""
        found = {}
        state = report.verdict.partition(",")[0]
        known = [i for i in report.mutual_information.values() if i is not None]
        information = math.fsum(known) if known else math.inf
        if report.kl and report.total_kl < KL and information < INFORMATION:
            found["silent"] = (
                f"z says nothing of x: KL {report.total_kl:.3f} (below {KL}) and mutual "
                f"information {max(information, 0.0):.3f} nats (below {INFORMATION})"
            )
        elif state == "collapsed":
            found[state] = f"collapsed: no unit of z is active, KL {report.total_kl:.3f} nats"
        elif state in STATES:
            self._best = max(self._best, state, key=STATES.index)
            if state != self._best:
                found[f"no longer {self._best}"] = f"{state}, no longer {self._best}"
        for name, active in report.active_units.items():
            if active is None:
                continue
            most = self._most[name] = max(active, self._most.get(name, 0))
            if active < FALL * most:
                found[f"fall of {name}"] = (
                    f"units of '{name}' fall out of use: {active} active, there were {most}"
                )
        return found


def _figures(report: CollapseReport) -> dict[str, Any]:
    """What a history keeps of a report, plain values."""
    named = {
        "mi": report.mutual_information,
        "mi_std_error": report.mutual_information_std_error,
        "active_units": report.active_units,
        "monitored_kl": report.kl,
    }
    single = len(report.kl) == 1
    found: dict[str, Any] = {
        name if single else f"{name}:{site}": value
        for name, values in named.items()
        for site, value in values.items()
    }
    return found | {"verdict": report.verdict}
