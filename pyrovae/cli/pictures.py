"""The figure of a comparison: where they stand, what the differences are, how they got there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrovae.cli.comparing import Contender, Pair

__all__ = ["draw_comparison"]

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def draw_comparison(
    contenders: list[Contender], pairs: list[Pair], needed: float, file: Path
) -> None:
    """Draw three panels: ELBO and log p(x) a posterior, paired differences, training curves.

    Args:
        contenders: a colour each.
        pairs: a row each of the middle panel.
        needed: how many standard errors the bars of that panel are long on either side.
        file: the picture.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    levels, differences, curves = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    names = [c.name for c in contenders]
    rows = len(contenders[0].found.rows)
    for i, contender in enumerate(contenders):
        colour, evidence = _COLOURS[i % len(_COLOURS)], contender.found.evidence
        elbo, root = evidence.elbo, len(evidence) ** 0.5
        spread = (elbo.std() / root).item() if len(evidence) > 1 else 0.0
        common = {"color": colour, "capsize": 4, "linestyle": "none", "markersize": 7}
        levels.errorbar(i, evidence.mean, evidence.mean_std_error, marker="o", **common)
        levels.errorbar(i, elbo.mean().item(), spread, marker="o", mfc="white", **common)
        history = contender.run.history
        curves.plot([h["epoch"] for h in history], [h["elbo"] for h in history], color=colour)
        curves.axhline(elbo.mean().item(), color=colour, linestyle=":", linewidth=1)
        curves.plot([], [], color=colour, label=contender.name)
    levels.errorbar([], [], [], marker="o", color="grey", linestyle="none", label="log p(x)")
    levels.errorbar(
        [], [], [], marker="o", mfc="white", color="grey", linestyle="none", label="ELBO"
    )
    levels.legend(frameon=False)
    levels.set_xticks(range(len(names)), names)
    levels.set_xlim(-0.5, len(names) - 0.5)
    levels.set(title=f"{rows:,} test rows, ± s.e. over rows", ylabel="nats a datum")
    if pairs:
        _draw_pairs(differences, pairs, needed)
    else:
        differences.set_axis_off()
    final = [c.run.history[-1]["elbo"] for c in contenders]
    tested = [c.found.evidence.elbo.mean().item() for c in contenders]
    top, low = max(final + tested), min(final + tested)
    curves.set_ylim(low - 4 * max(top - low, 2.0), top + 0.5 * max(top - low, 2.0))
    curves.plot([], [], color="grey", linestyle=":", linewidth=1, label="test, at the end")
    curves.set(title="training ELBO", xlabel="epoch", ylabel="nats a datum")
    curves.legend(frameon=False, loc="lower right")
    for axis in (levels, differences, curves):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=140)


def _draw_pairs(axis: Axes, pairs: list[Pair], needed: float) -> None:
    """Paired differences of log p(x); a bar that misses zero is an established difference."""
    axis.axvline(0, color="grey", linewidth=1)
    for i, pair in enumerate(pairs):
        axis.errorbar(
            pair.difference, i, xerr=needed * pair.std_error, marker="s", color="black", capsize=4
        )
    axis.xaxis.set_major_locator(MaxNLocator(5))
    labels = [f"{pair.first}\n− {pair.second}" for pair in pairs]
    axis.set_yticks(range(len(pairs)), labels)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set(title=f"paired difference of log p(x), ± {needed:.1f} s.e.", xlabel="nats a datum")
