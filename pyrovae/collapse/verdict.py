"""What the numbers mean, in words, and what may be done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["ADVICE", "in_words", "state_of"]

INFORMATION = 0.05  # nats of mutual information below which z says nothing (He et al. 2019)
ADVICE = (
    "Try, one at a time: a warm-up of the KL (objective=pv.ELBO(kl_weight=pv.kl_control."
    "Linear(epochs=10))), several (Cyclical) or a target (TargetRate); free bits "
    "(free_bits=pv.kl_control.FreeBits(0.1)); more E-steps than M-steps "
    "(schedule=pv.Aggressive()); a decoder that cannot do without z."
)


def state_of(
    kl: Mapping[str, float],
    active: Mapping[str, int | None],
    units: Mapping[str, int],
    information: Mapping[str, float | None],
) -> str:
    """One of "healthy", "partly collapsed", "collapsed", "unknown", "no latents".

    A site's share of active units decides. Where activity cannot be measured, all of the site
    counts if it has more mutual information than `INFORMATION`, or more KL where that is missing
    too.
    """
    if not kl:
        return "no latents"
    shares = []
    for name, count in active.items():
        measure = kl[name] if information[name] is None else information[name]
        if count is not None:
            shares.append(count / units[name])
        elif math.isnan(measure):
            return "unknown"
        else:
            shares.append(float(measure > INFORMATION))
    if not any(shares):
        return "collapsed"
    return "partly collapsed" if min(shares) < 0.5 else "healthy"


def in_words(state: str, saturated: list[str]) -> str:
    """The verdict: the state, and whether the mutual information of some site is at its cap."""
    if not saturated:
        return state
    return f"{state}, MI saturated at log N"
