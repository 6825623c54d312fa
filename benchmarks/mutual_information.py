"""How far can an estimate of the mutual information be trusted, and what does its cap do to it?

Two standard Normal data per row, z | x ~ N(x, s^2) of two units: I(x; z) = log(1 + 1 / s^2) is
known. For N data it is estimated by `pyrovae.collapse_report` with all N as the reference set of
q(z); the estimate is low on average and cannot exceed log N, a second one is high on average, and
the report says where the first has come to its cap. N = 50 is the batch over which published
figures of collapse are computed.

A row a run goes to results/mutual_information.jsonl; the figure and the table, from the last row,
are `results/mutual_information.png` and `.md`::

    python benchmarks/mutual_information.py
    python benchmarks/mutual_information.py --figure-only
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _harness import RESULTS, append_row
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv

NAME = "mutual_information"
SIZES = {50: 40, 500: 20, 5000: 4}  # N: data sets
NATS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
COLOURS = ["#0072B2", "#D55E00", "#009E73"]


def pair(scale: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a model and a guide whose posterior is N(x, scale^2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return model, guide


def measure(nats: float, size: int, repeats: int) -> dict[str, Any]:
    """Estimate an information of so many nats from several data sets."""
    programs = pair(1 / math.sqrt(math.expm1(nats)))
    reports = []
    for seed in range(repeats):
        x = torch.randn(size, 2, generator=torch.Generator().manual_seed(seed))
        reports.append(
            pv.collapse_report(*programs, x, reference=size, seed=seed, batch_size=1000)
        )
    low = [report.mutual_information["z"] for report in reports]
    return {
        "nats": nats,
        "size": size,
        "cap": math.log(size),
        "repeats": repeats,
        "estimate": mean(low),
        "spread": stdev(low),
        "std_error": mean(r.mutual_information_std_error["z"] for r in reports),
        "upper": mean(r.mutual_information_upper["z"] for r in reports),
        "saturated": mean(r.saturated["z"] for r in reports),
    }


def last() -> list[dict[str, Any]]:
    """Return what the last run found."""
    lines = (RESULTS / f"{NAME}.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["found"]


def table(found: list[dict[str, Any]]) -> str:
    """Return the numbers as Markdown."""
    lines = [
        "| N | log N | true I | estimate | bias | spread | its standard error | high estimate | "
        "said to be saturated |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        cells = [
            str(one["size"]),
            f"{one['cap']:.2f}",
            f"{one['nats']:g}",
            f"{one['estimate']:.3f}",
            f"{one['estimate'] - one['nats']:+.3f}",
            f"{one['spread']:.3f}",
            f"{one['std_error']:.3f}",
            "-" if one["upper"] is None else f"{one['upper']:.3f}",
            f"{100 * one['saturated']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Nats; means over the data sets of each size. No high estimate (-): some datum has no "
        "neighbour, so that nothing is known from above but the KL."
    )
    return "\n".join([*lines, "", note])


def draw(found: list[dict[str, Any]]) -> None:
    """Draw the estimates against the truth."""
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, max(NATS)], [0, max(NATS)], color="black", linewidth=0.8, label="truth")
    for size, colour in zip(SIZES, COLOURS, strict=True):
        rows = [one for one in found if one["size"] == size]
        nats, low = [one["nats"] for one in rows], [one["estimate"] for one in rows]
        axes.axhline(math.log(size), color=colour, linestyle=":", linewidth=0.9)
        axes.plot(nats, low, color=colour, label=f"N = {size:,}, at most {math.log(size):.2f}")
        full = [one["saturated"] > 0.5 for one in rows]
        for marks, face in ((False, colour), (True, "white")):
            shown = [(x, y) for x, y, f in zip(nats, low, full, strict=True) if f == marks]
            axes.plot(*zip(*shown, strict=True), "o", color=colour, markerfacecolor=face)
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label='"saturated"')
    axes.set_xlabel("true I(x; z), nats")
    axes.set_ylabel("estimate, nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{NAME}.png", dpi=130)


def main() -> None:
    """Measure, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure-only", action="store_true", help="from the last row")
    if not parser.parse_args().figure_only:
        torch.set_default_dtype(torch.float64)
        found = [measure(i, n, repeats) for n, repeats in SIZES.items() for i in NATS]
        append_row(NAME, {"found": found})
    text = table(last())
    (RESULTS / f"{NAME}.md").write_text(f"{text}\n", encoding="utf-8")
    draw(last())
    print(text)


if __name__ == "__main__":
    main()
