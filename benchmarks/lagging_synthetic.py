"""Does the posterior collapse, and do aggressive E-steps prevent it? The paper's synthetic data.

He, Spokoyny, Neubig and Berg-Kirkpatrick (2019, arXiv:1901.05534): 20,000 sentences of ten words,
written by a random LSTM from a 2-D z of four clusters (`pyrovae.datasets.lagging_synthetic`), and
an LSTM VAE of width 50 throughout with dropout 0.5. Each seed is trained twice, with every other
setting the same: jointly, and with aggressive E-steps for the first epochs.

The paper trains by SGD, learning rate 1.0, halved by the validation loss, batches of 16, E-steps
in windows of 15 up to 99 for each M-step, fifty epochs. Here it is Adam at 0.01, batches of 32,
windows of 2 and at most 4 E-steps, sixteen epochs: the same question on one core in minutes. The
rule that ends the aggressive phase is theirs: the first epoch whose mutual information on
validation sentences is below that of the epoch before.

The numbers are after the last epoch, on test sentences: the importance-weighted NLL (500 samples,
`pv.log_evidence`), KL, mutual information and active units (`pv.collapse_report`). Where z has one
dimension, the mean of the true posterior p(z|x) is computed on a grid after each epoch and drawn
against that of q(z|x): where q lags behind, the points are flatter than the diagonal.

    python benchmarks/lagging_synthetic.py                          # every run not yet committed
    python benchmarks/lagging_synthetic.py --kind plain --seed 0    # one run
    python benchmarks/lagging_synthetic.py --table                  # table and figure, from rows
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, append_row

import pyrovae as pv
from pyrovae import datasets
from pyrovae.models import SequenceVAE

NAME = "lagging_synthetic"
KINDS = ("plain", "aggressive")
SEEDS = (0, 1, 2)
EPOCHS, BATCH, LR, CLIP = 16, 32, 1e-2, 5.0
AGGRESSIVE = pv.Aggressive(window=2, max_steps=4, patience=1, compare="previous", reference=2000)
TEST_ROWS, PARTICLES = 500, 500
DRAWN = 300  # training sentences whose posterior means are drawn
GRID = torch.linspace(-8.0, 8.0, 161)


def one(kind: str, latent: int, seed: int, epochs: int) -> dict[str, Any]:
    """Train one VAE, watch it epoch by epoch, and measure it on test sentences."""
    torch.manual_seed(seed)
    train, valid, test = (datasets.lagging_synthetic(s) for s in ("train", "valid", "test"))
    vae = SequenceVAE(1000, latent, embedding=50, hidden=50)
    watched: list[dict[str, Any]] = []
    means: list[list[list[float]]] = []
    began = time.process_time()
    training = 0.0

    def watch(record: dict[str, Any]) -> None:
        nonlocal began, training
        training += time.process_time() - began
        report = pv.collapse_report(
            vae.model, vae.guide, valid, particles=1, reference=1000, batch_size=500
        )
        said = {
            "epoch": record["epoch"],
            "valid_elbo": record["valid_elbo"],
            "kl": report.total_kl,
            "mutual_information": report.mutual_information["z"],
            "inner_steps": record.get("inner_steps", 0),
            "cpu_seconds": training,
        }
        watched.append(said)
        if latent == 1:
            means.append(posterior_means(vae, train.args[0][:DRAWN]))
        print(f"{kind} z={latent} seed={seed}", said, flush=True)
        began = time.process_time()

    run = pv.fit(
        vae.model,
        vae.guide,
        train,
        valid=valid,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LR, fused=True),
        schedule=AGGRESSIVE if kind == "aggressive" else None,
        epochs=epochs,
        batch_size=BATCH,
        clip_norm=CLIP,
        seed=seed,
        callbacks=[watch],
        progress=False,
    )
    if means:
        file = RESULTS / f"{NAME}_means_{kind}.json"
        file.write_text(json.dumps({"seed": seed, "epochs": means}) + "\n", encoding="utf-8")
    steps = len(run.history) * math.ceil(len(train) / BATCH)
    return {
        "kind": kind,
        "latent": latent,
        "seed": seed,
        "epochs": epochs,
        "batch_size": BATCH,
        "optimizer": f"Adam({LR})",
        "clip_norm": CLIP,
        "schedule": repr(AGGRESSIVE) if kind == "aggressive" else "Joint()",
        "aggressive_epochs": sum(h.get("inner_steps", 0) > 0 for h in run.history),
        "steps": steps,
        "e_steps": sum(h.get("inner_steps", 0) for h in run.history),
        "train_cpu_seconds": training,
        "history": watched,
        **measured(run, test, seed),
    }


def measured(run: pv.Run, test: datasets.Dataset, seed: int) -> dict[str, Any]:
    """IW-NLL, KL, mutual information, active units of test sentences."""
    report = pv.collapse_report(run.model, run.guide, test, reference=2000, batch_size=500)
    some = test.subset(range(TEST_ROWS))
    found = pv.log_evidence(
        run.model, run.guide, some, particles=PARTICLES, seed=seed, chunk=2000, progress=False
    )
    return {
        "test_rows": TEST_ROWS,
        "particles": PARTICLES,
        "iw_nll": -found.log_px.mean().item(),
        "iw_nll_std_error": (found.log_px.std() / math.sqrt(TEST_ROWS)).item(),
        "elbo": found.elbo.mean().item(),
        "ess_median": found.ess.median().item(),
        "kl": report.total_kl,
        "mutual_information": report.mutual_information["z"],
        "marginal_kl": report.marginal_kl["z"],
        "active_units": report.active_units["z"],
        "verdict": report.verdict,
        "log_px": [round(v, 3) for v in found.log_px.tolist()],
    }


@torch.no_grad()
def posterior_means(vae: SequenceVAE, tokens: torch.Tensor) -> list[list[float]]:
    r"""Means of p(z|x), by the grid, and of q(z|x), for sentences `[N, 10]` and a 1-D z.

    With :math:`w_i \propto p(z_i) p(x|z_i)` on the grid, the mean is :math:`\sum_i w_i z_i`.
    """
    vae.eval()
    z = GRID.view(-1, 1, 1)
    log_joint = vae.prior().log_prob(z) + vae.decode(z, 10).log_prob(tokens)  # [G, N]
    true = (log_joint.softmax(0) * GRID[:, None]).sum(0)
    q = vae.encode(tokens).mean.squeeze(-1)
    return [[round(v, 4) for v in means.tolist()] for means in (true, q)]


# -- rows, table, figure --------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """Return the committed rows of full length."""
    file = RESULTS / f"{NAME}.jsonl"
    found = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return [row for row in found if row["epochs"] == EPOCHS]


def plan() -> list[tuple[str, int, int]]:
    """Return kind, dimension of z and seed of every run, the figure's after the first pair."""
    runs = [(kind, 2, SEEDS[0]) for kind in KINDS] + [(kind, 1, 0) for kind in KINDS]
    return runs + [(kind, 2, seed) for seed in SEEDS[1:] for kind in KINDS]


def table() -> str:
    """Return the rows as Markdown: each run, and the paired difference of the NLLs."""
    lines = [
        "| z | seed | training | IW-NLL | KL | MI | AU | ELBO | E-steps | CPU s | relative |",
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    pairs: dict[tuple[int, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows():
        pairs[row["latent"], row["seed"]][row["kind"]] = row
    gains = []
    for (latent, seed), pair in sorted(pairs.items(), key=lambda item: (-item[0][0], item[0][1])):
        for kind in KINDS:
            if kind not in pair:
                continue
            row = pair[kind]
            cost = row["train_cpu_seconds"]
            base = pair.get("plain", row)["train_cpu_seconds"]
            lines.append(
                f"| {latent} | {seed} | {kind} | {row['iw_nll']:.2f} ± "
                f"{row['iw_nll_std_error']:.2f} | {row['kl']:.3f} | "
                f"{row['mutual_information']:.3f} | {row['active_units']} of {latent} | "
                f"{row['elbo']:.2f} | {row['e_steps']} | {cost:.0f} | {cost / base:.1f}x |"
            )
        if len(pair) == 2:
            gain = np.subtract(pair["aggressive"]["log_px"], pair["plain"]["log_px"])
            gains.append((latent, seed, gain.mean(), gain.std(ddof=1) / math.sqrt(len(gain))))
    said = [
        f"z of {latent}, seed {seed}: aggressive E-steps gain {gain:+.2f} ± {error:.2f} nats a "
        "sentence (paired over the same sentences)."
        for latent, seed, gain, error in gains
    ]
    return "\n".join([*lines, "", *said])


def figure() -> None:
    """Draw the means of q against those of the true posterior, epoch by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = {kind: RESULTS / f"{NAME}_means_{kind}.json" for kind in KINDS}
    if not all(file.exists() for file in files.values()):
        return
    means = {kind: json.loads(file.read_text())["epochs"] for kind, file in files.items()}
    clusters = datasets.lagging_synthetic("train").labels[:DRAWN].numpy()
    last = min(map(len, means.values()))
    shown = [e for e in (1, 2, 3, 5, last) if e <= last]
    limit = 1.05 * max(np.abs(m).max() for epochs in means.values() for m in epochs)
    panels, axes = plt.subplots(
        2, len(shown), figsize=(2.3 * len(shown), 5.2), sharex=True, sharey=True, squeeze=False
    )
    titles = {"plain": "joint training", "aggressive": "aggressive E-steps first"}
    for line, kind in zip(axes, KINDS, strict=True):
        for axis, epoch in zip(line, shown, strict=True):
            true, q = means[kind][epoch - 1]
            axis.axline((0, 0), slope=1, color="0.7", linewidth=0.8, zorder=0)
            axis.scatter(true, q, s=5, c=clusters, cmap="tab10", vmin=0, vmax=9, linewidths=0)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axis.set_title(f"epoch {epoch}" if kind == "plain" else "", fontsize=9)
        line[0].set_ylabel(f"{titles[kind]}\nmean of q(z|x)", fontsize=9)
    axes[1][len(shown) // 2].set_xlabel("mean of the true posterior p(z|x), by a grid", fontsize=9)
    panels.tight_layout()
    panels.savefig(RESULTS / f"{NAME}.png", dpi=110)


def summary() -> str:
    """Return what the rows with a 2-D z say, over seeds."""
    groups = {k: [r for r in rows() if r["kind"] == k and r["latent"] == 2] for k in KINDS}
    if any(len(group) < 2 for group in groups.values()):
        return ""
    said = []
    for kind, group in groups.items():
        parts = [
            f"{name} {mean(r[key] for r in group):.3f} ± {stdev(r[key] for r in group):.3f}"
            for name, key in (
                ("IW-NLL", "iw_nll"), ("KL", "kl"), ("MI", "mutual_information"),
            )
        ]  # fmt: skip
        said.append(f"{kind} over {len(group)} seeds: {', '.join(parts)}.")
    return "\n".join(said)


def main() -> None:
    """Run what is missing, or one, or write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, help="one run: how it is trained")
    parser.add_argument("--latent", type=int, default=2, help="one run: dimension of z")
    parser.add_argument("--seed", type=int, default=0, help="one run: the seed")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--table", action="store_true", help="write table and figure, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [(options.kind, options.latent, options.seed)] if options.kind else plan()
    for kind, latent, seed in [] if options.table else wanted:
        if (kind, latent, seed) in {(r["kind"], r["latent"], r["seed"]) for r in rows()}:
            continue
        row = one(kind, latent, seed, options.epochs)
        append_row(NAME, row)
        print(
            f"{kind} z={latent} seed={seed}: IW-NLL {row['iw_nll']:.2f}, KL {row['kl']:.3f}, "
            f"MI {row['mutual_information']:.3f}, {row['train_cpu_seconds']:.0f} CPU s",
            flush=True,
        )
    (RESULTS / f"{NAME}.md").write_text(f"{table()}\n\n{summary()}\n", encoding="utf-8")
    figure()


if __name__ == "__main__":
    main()
