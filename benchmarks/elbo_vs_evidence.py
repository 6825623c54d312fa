"""How far is the ELBO from log p(x), and how many importance samples does log p(x) take?

For each data set and posterior family one VAE is trained; then

    L_K = E[ log 1/K sum_k p(x, z_k) / q(z_k|x) ],   z_k ~ q(z|x),

is estimated on the same test rows for K = 1 ... 5000. L_1 is the ELBO, L_K grows with K and tends
to log p(x). Where the curve is flat at its end log p(x) has been reached; where it still climbs,
the number printed for the largest K is low, whatever its standard error says. The share of rows
whose Pareto k-hat is too large is beside it.

Digits; MNIST too if PYROVAE_DATA is set::

    python benchmarks/elbo_vs_evidence.py

A quick look, and the figure alone, from the last row of each data set::

    python benchmarks/elbo_vs_evidence.py --data digits --epochs 20 --particles 1,10,100
    python benchmarks/elbo_vs_evidence.py --figure-only

A row a data set goes to results/elbo_vs_evidence.jsonl; the figure shows the last row of each.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, append_row
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.evidence import log_evidence

NAME = "elbo_vs_evidence"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"title": "digits, binarized: Bernoulli", "latent": 10, "epochs": 400, "lr": 3e-3},
    "digits-counts": {
        "title": "digits, 17 levels: Binomial",
        "latent": 10,
        "epochs": 400,
        "lr": 3e-3,
    },
    "mnist": {"title": "MNIST, binarized: Bernoulli", "latent": 50, "epochs": 30, "lr": 1e-3},
}


def load(name: str, split: str) -> pv.datasets.Dataset:
    """The rows of a split; what is binarized is binarized dynamically."""
    if name == "mnist":
        return pv.datasets.mnist(split)
    return pv.datasets.digits(split, binarize="dynamic" if name == "digits" else None)


def train(name: str, posterior: str, epochs: int, seed: int) -> pv.Run:
    """A VAE with two tanh layers of 200, Adam with a cosine schedule."""
    data, how = load(name, "train"), SETTINGS[name]
    torch.manual_seed(seed)
    vae = pv.models.VAE(
        data.data_shape,
        how["latent"],
        hidden=(200, 200),
        likelihood=data.likelihood,
        likelihood_args=data.likelihood_args,
        posterior=pv.distributions.lookup(posterior),
        data_mean=data.args[0].mean(0),
    )
    return pv.fit(
        vae.model,
        vae.guide,
        data,
        epochs=epochs,
        optimizer=pv.adam(how["lr"]),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
        seed=seed,
    )


def measure(run: pv.Run, x: torch.Tensor, particles: list[int], seed: int) -> dict[str, Any]:
    """L_K for each K on the rows x, and the ELBO from the draws of the largest."""
    found: dict[str, Any] = {
        "log_px": [],
        "std_error": [],
        "monte_carlo_error": [],
        "khat_above": [],
    }
    for k in particles:
        with warnings.catch_warnings():  # a lower bound is said in the row
            warnings.filterwarnings("ignore", message="log_evidence:", category=UserWarning)
            evidence = log_evidence(run.model, run.guide, x, particles=k, seed=seed + k)
        found["log_px"].append(evidence.mean)
        found["std_error"].append(evidence.mean_std_error)
        found["monte_carlo_error"].append(evidence.monte_carlo_error)
        found["khat_above"].append(evidence.unreliable.double().mean().item())
    found["elbo"] = evidence.elbo.mean().item()
    found["lower_bound"] = evidence.lower_bound
    return found


def measure_all(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: every posterior on one data set."""
    test = load(name, "test").realize(0)[0][0]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    x = test[order[: options.rows].sort().values]
    epochs = options.epochs or SETTINGS[name]["epochs"]
    row: dict[str, Any] = {
        "data": name,
        "rows": len(x),
        "epochs": epochs,
        "seed": options.seed,
        "particles": options.particles,
        "posteriors": {},
    }
    for posterior in options.posteriors:
        began = time.perf_counter()
        run = train(name, posterior, epochs, options.seed)
        trained = time.perf_counter() - began
        found = measure(run, x, options.particles, options.seed)
        found["seconds_training"] = trained
        row["posteriors"][posterior] = found
        curve = "  ".join(
            f"{k}: {v:.2f}" for k, v in zip(options.particles, found["log_px"], strict=True)
        )
        print(
            f"{name:<14} {posterior:<10} ELBO {found['elbo']:.2f}  L_K {curve}  "
            f"k-hat too large for {found['khat_above'][-1]:.0%}  ({trained:.0f} s)",
            flush=True,
        )
    return row


def last_rows(file: Path) -> dict[str, dict[str, Any]]:
    """The last row of each data set."""
    rows: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["data"]] = row
    return {name: rows[name] for name in SETTINGS if name in rows}


def draw(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """A panel a data set: L_K against K, the ELBO dashed."""
    figure = Figure(figsize=(4.6 * len(rows), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, row) in zip(
        figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True
    ):
        for i, (posterior, found) in enumerate(row["posteriors"].items()):
            colour, share = COLOURS[i % len(COLOURS)], found["khat_above"][-1]
            error = [0.0 if e is None else 2 * e for e in found["monte_carlo_error"]]
            label = f"{posterior} ({share:.0%})"
            axis.errorbar(
                row["particles"],
                found["log_px"],
                error,
                marker="o",
                ms=4,
                color=colour,
                label=label,
            )
            axis.axhline(found["elbo"], color=colour, linestyle="--", linewidth=1)
        axis.plot([], [], color="grey", linestyle="--", linewidth=1, label="ELBO")
        axis.set_xscale("log")
        axis.set(
            title=SETTINGS[name]["title"],
            xlabel="K, importance samples a datum",
            ylabel="nats a datum",
        )
        axis.legend(
            loc="lower right",
            title="k-hat too large",
            fontsize="small",
            framealpha=0.9,
            edgecolor="none",
        )
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure, append the rows, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    standard = "digits,digits-counts" + (",mnist" if os.environ.get("PYROVAE_DATA") else "")
    parser.add_argument(
        "--data", default=standard, help=f"of {', '.join(SETTINGS)}; default {standard}"
    )
    parser.add_argument("--posteriors", default="Normal,Laplace,Logistic,StudentT")
    parser.add_argument("--particles", default="1,5,50,500,5000", help="increasing K")
    parser.add_argument(
        "--epochs", type=int, help="of training; default 400 on digits, 30 on MNIST"
    )
    parser.add_argument("--rows", type=int, default=1000, help="test rows at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of rows and figure")
    parser.add_argument("--figure-only", action="store_true")
    options = parser.parse_args()
    options.posteriors = [p.strip() for p in options.posteriors.split(",")]
    options.particles = sorted({int(k) for k in options.particles.split(",")})
    names = [name.strip() for name in options.data.split(",")]
    for name in names:
        pv.datasets.check_choice("--data", name, SETTINGS)
    torch.set_num_threads(options.threads)
    for name in [] if options.figure_only else names:
        append_row(NAME, measure_all(name, options), options.results)
    draw(last_rows(options.results / f"{NAME}.jsonl"), options.results / f"{NAME}.png")


if __name__ == "__main__":
    main()
