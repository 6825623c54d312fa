"""Which cure for posterior collapse is worth its price, on images?

The experiment of He, Spokoyny, Neubig & Berg-Kirkpatrick (2019, arXiv:1901.05534, tables 2 and 3)
in the size of a laptop: OMNIGLOT in 28x28, a decoder that predicts each pixel from its neighbours
and from z (`likelihood="window"`, one masked convolution where theirs has thirteen), 32 latents,
8,000 of the 24,345 training drawings, 12 epochs of 80 steps, one seed. With such a decoder a
plain VAE leaves z almost unused. Their claim under test: aggressive E-steps gain likelihood at two
to four times the price of a VAE, semi-amortized inference at ten to fifteen times.

Reported for each method: -log p(x) with K = 500 draws on 300 test drawings, and the difference to
the plain VAE's, paired by drawing; KL, mutual information (at most log 2,000 = 7.6 nats) and
active units on 2,000; and the price in processor seconds of training, one thread, relative to the
VAE's: wall time would measure what else the machine was doing. Further rows, for scale: the
decoder without any z, and VAEs with two other decoders (independent pixels, MADE).

A row is appended for each; rows that are there already are not run again. `--table` writes
`results/collapse_on_images.md` from the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from _harness import RESULTS, append_row
from torch import Tensor

import pyrovae as pv

NAME = "collapse_on_images"
TRAIN, VALID, EPOCHS, BATCH, RATE, CLIP = 8_000, 500, 12, 100, 2e-3, 5.0
LATENT, HIDDEN = 32, (200,)
JUDGED, PARTICLES, REPORTED = 300, 500, 2_000
WARM = 5  # epochs of annealing
DECODERS = {
    "window": {"radius": 3, "channels": 32},
    "made": {"hidden": 500, "skip": True},
    "bernoulli": {},
}
FOLDER = Path("runs/collapse-on-images")


def annealed() -> Any:
    """Return a KL weight that rises from 0.1 to 1, as theirs does."""
    return pv.kl_control.Linear(0.1, epochs=WARM)


def aggressive() -> Any:
    """Return their schedule for images; ended by the first drop of the mutual information."""
    return pv.Aggressive(window=10, max_steps=99, patience=1, reference=VALID)


METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "VAE": dict,
    "beta 0.2": lambda: {"objective": pv.ELBO(kl_weight=0.2)},
    "beta 0.4": lambda: {"objective": pv.ELBO(kl_weight=0.4)},
    "beta 0.6": lambda: {"objective": pv.ELBO(kl_weight=0.6)},
    "beta 0.8": lambda: {"objective": pv.ELBO(kl_weight=0.8)},
    "linear annealing": lambda: {"objective": pv.ELBO(kl_weight=annealed())},
    "cyclical annealing": lambda: {
        "objective": pv.ELBO(kl_weight=pv.kl_control.Cyclical(epochs=EPOCHS, cycles=4))
    },
    "free bits, 5 nats": lambda: {"objective": pv.ELBO(free_bits=5.0)},
    "aggressive": lambda: {"schedule": aggressive()},
    "aggressive + annealing": lambda: {
        "schedule": aggressive(),
        "objective": pv.ELBO(kl_weight=annealed()),
    },
    "semi-amortized, 5 steps": lambda: {"schedule": pv.SemiAmortized(steps=5)},
}
CONTEXT = ("no z", "VAE, MADE decoder", "VAE, independent pixels")


def data() -> tuple[pv.datasets.Dataset, Tensor, Tensor]:
    """Return training drawings, and validation and test drawings, binarized once."""
    train, test = pv.datasets.omniglot("train"), pv.datasets.omniglot("test")
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(train)))
    chosen = np.random.RandomState(0).permutation(len(test))[:REPORTED]
    (valid,), _ = train.subset(order[TRAIN : TRAIN + VALID]).realize(seed=0)
    (judged,), _ = test.subset(torch.from_numpy(chosen)).realize(seed=0)
    return train.subset(order[:TRAIN]), valid, judged


def new_vae(decoder: str, train: pv.datasets.Dataset) -> pv.models.VAE:
    """Return an untrained VAE; one encoder for all decoders."""
    return pv.models.VAE(
        (28, 28),
        LATENT,
        hidden=HIDDEN,
        likelihood=decoder,
        likelihood_args=DECODERS[decoder],
        data_mean=train.args[0].mean(0),
    )


def without_z(vae: pv.models.VAE) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Return a model that decodes z = 0 for every image, and a guide that draws nothing."""

    def model(x: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.decode(x.new_zeros(len(x), LATENT)), obs=x)

    def guide(x: Tensor) -> None:
        pass

    return model, guide


def train_one(name: str, seed: int) -> tuple[pv.Run, Tensor, dict[str, Any]]:
    """Return the run, the test drawings, and what training cost."""
    torch.manual_seed(seed)
    train, valid, judged = data()
    decoder = {"VAE, MADE decoder": "made", "VAE, independent pixels": "bernoulli"}.get(
        name, "window"
    )
    vae = new_vae(decoder, train)
    programs = without_z(vae) if name == "no z" else (vae.model, vae.guide)
    options = METHODS.get(name, dict)()
    wall, processor = time.perf_counter(), time.process_time()
    run = pv.fit(
        *programs,
        train,
        valid=valid,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=pv.adam(RATE),
        clip_norm=CLIP,
        seed=seed,
        progress=False,
        callbacks=[_tell],
        **options,
    )
    cost = {
        "processor_seconds": time.process_time() - processor,
        "wall_seconds": time.perf_counter() - wall,
        "inner_steps": sum(record.get("inner_steps", 0) for record in run.history),
    }
    return run, judged, cost


def _tell(record: dict[str, Any]) -> None:
    told = {k: round(v, 2) for k, v in record.items() if isinstance(v, (int, float))}
    print("   ", told, flush=True)


def one(name: str, seed: int) -> dict[str, Any]:
    """Train, judge, and return a row."""
    run, x, cost = train_one(name, seed)
    row = {
        "method": name,
        "seed": seed,
        "train": TRAIN,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rate": RATE,
        "clip": CLIP,
        "judged": JUDGED,
        "particles": PARTICLES,
        **cost,
        "train_elbo": run.history[-1]["elbo"],
        "valid_elbo": run.history[-1]["valid_elbo"],
    }
    if name == "no z":
        log_px = pv.ELBO().per_datum(run.model, run.guide, x[:JUDGED]).double()
        row |= {"kl": 0.0, "mutual_information": 0.0, "active_units": 0, "elbo": log_px.mean()}
    else:
        evidence = pv.log_evidence(
            run.model, run.guide, x[:JUDGED], particles=PARTICLES, seed=0, progress=False
        )
        log_px = evidence.log_px
        report = pv.collapse_report(run.model, run.guide, x, reference=REPORTED)
        row |= {
            "kl": report.total_kl,
            "mutual_information": report.mutual_information["z"],
            "active_units": report.active_units["z"],
            "elbo": evidence.elbo.mean(),
            "monte_carlo_error": evidence.monte_carlo_error,
            "khat_share_above": evidence.unreliable.double().mean(),
        }
    row["log_px"] = log_px.mean()
    row["log_px_std_error"] = log_px.std() / math.sqrt(len(log_px))
    kept = FOLDER / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.npy"
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, log_px.numpy())
    baseline = FOLDER / f"VAE-{seed}.npy"
    if name != "VAE" and baseline.exists():
        difference = log_px - torch.from_numpy(np.load(baseline))
        row["minus_vae"] = difference.mean()
        row["minus_vae_std_error"] = difference.std() / math.sqrt(len(difference))
    return row


def rows() -> list[dict[str, Any]]:
    """Return the committed rows of these settings."""
    file = RESULTS / f"{NAME}.jsonl"
    if not file.exists():
        return []
    found = map(json.loads, file.read_text().splitlines())
    return [row for row in found if (row["train"], row["epochs"]) == (TRAIN, EPOCHS)]


def table(seed: int = 0) -> str:
    """Return the rows as Markdown."""
    found = {row["method"]: row for row in rows() if row["seed"] == seed}
    lines = [
        "| method | -log p(x) | minus the VAE's | KL | I(x; z) | active units | price |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in (*METHODS, *CONTEXT):
        if name in found:
            lines.append(_line(found[name], found["VAE"]))
    return "\n".join(lines)


def setting(seed: int = 0) -> str:
    """Return in words what was done."""
    return (
        f"OMNIGLOT 28x28, {TRAIN:,} training drawings, {EPOCHS} epochs of {TRAIN // BATCH} steps, "
        f"seed {seed}; -log p(x) in nats with K = {PARTICLES} on {JUDGED} test drawings (± over "
        "drawings), its difference paired by drawing; I(x; z) is at most "
        f"{math.log(REPORTED):.1f}; price: processor seconds of training, relative."
    )


def answer() -> str:
    """Return in words what the claim under test came to, from the rows of all seeds."""
    told = []
    for seed in sorted({row["seed"] for row in rows()}):
        found = {row["method"]: row for row in rows() if row["seed"] == seed}
        for name in ("aggressive", "aggressive + annealing", "semi-amortized, 5 steps"):
            if name in found and "VAE" in found:
                told.append(f"* {_told(found[name], found['VAE'])}")
    return "\n".join(told)


def _told(row: dict[str, Any], vae: dict[str, Any]) -> str:
    gain, error = row["minus_vae"], row["minus_vae_std_error"]
    sure = "more than" if abs(gain) > 2 * error else "within"
    return (
        f"{row['method']}, seed {row['seed']}: {gain:+.2f} nats of log p(x) against the VAE "
        f"({sure} two standard errors of {error:.2f}), KL {row['kl']:.1f} instead of "
        f"{vae['kl']:.1f}, at {row['processor_seconds'] / vae['processor_seconds']:.1f} times its "
        "price."
    )


def _line(row: dict[str, Any], vae: dict[str, Any]) -> str:
    paired = ""
    if "minus_vae" in row:
        paired = f"{-row['minus_vae']:+.2f} ± {row['minus_vae_std_error']:.2f}"
    cells = [
        row["method"],
        f"{-row['log_px']:.2f} ± {row['log_px_std_error']:.2f}",
        paired,
        f"{row['kl']:.2f}",
        f"{row['mutual_information']:.2f}",
        f"{row['active_units']}",
        f"{row['processor_seconds'] / vae['processor_seconds']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="of what is missing, these methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="write the table and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if options.table else (*METHODS, *CONTEXT):
        there = {(row["method"], row["seed"]) for row in rows()}
        if (name, options.seed) in there or (options.only and name not in options.only):
            continue
        print(name, flush=True)
        row = one(name, options.seed)
        append_row(NAME, row)
        print(
            f"{name}: log p(x) {row['log_px']:.2f}, KL {row['kl']:.2f}, I(x; z) "
            f"{row['mutual_information']:.2f}, {row['processor_seconds']:.0f} s",
            flush=True,
        )
    if any(row["method"] == "VAE" for row in rows()):
        text = f"{setting()}\n\n{table()}\n\n{answer()}\n"
        (RESULTS / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
