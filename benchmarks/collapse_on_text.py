"""Which cure for posterior collapse is worth its price, on text?

The experiment of He, Spokoyny, Neubig & Berg-Kirkpatrick (2019, arXiv:1901.05534, tables 2 and 3)
in the size of a laptop: first names spelled letter by letter (`pyrovae.datasets.names`, 25,627 to
train on), an LSTM VAE of width 64 with 8 latents, no dropout, 6 epochs of 201 steps, one seed. An
LSTM can spell without z, so a plain VAE leaves it unused. Their claim under test: aggressive
E-steps gain likelihood at two to four times the price of a VAE, semi-amortized inference at ten to
fifteen times.

Reported for each method: -log p(x) with K = 500 draws on 500 test names, and the difference to the
plain VAE's, paired by name; KL, mutual information (at most log 2,000 = 7.6 nats) and active units
on 2,000; and the price relative to the VAE's: gradient steps of either role (a refinement step of
semi-amortized inference counts as one), and processor seconds of training on one thread, since
wall time would measure what else the machine was doing. A row more, for scale: the same decoder
with z fixed at 0, a plain language model.

A row is appended for each; rows that are there already are not run again. `--table` writes
`results/collapse_on_text.md` from the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from _harness import RESULTS, append_row
from torch import Tensor

import pyrovae as pv

NAME = "collapse_on_text"
EPOCHS, BATCH, RATE, CLIP = 6, 128, 5e-3, 5.0
LATENT, EMBEDDING, HIDDEN = 8, 32, 64
JUDGED, PARTICLES, REPORTED, WARM = 500, 500, 2_000, 3
REFINED = 10


def annealed() -> Any:
    """Return a KL weight that rises from 0.1 to 1, as theirs does."""
    return pv.kl_control.Linear(0.1, epochs=WARM)


def aggressive() -> Any:
    """Return their schedule with shorter windows; the first drop of the information ends it."""
    return pv.Aggressive(window=5, max_steps=30, patience=1, compare="previous", reference=2000)


METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "VAE": dict,
    "beta 0.2": lambda: {"objective": pv.ELBO(kl_weight=0.2)},
    "beta 0.4": lambda: {"objective": pv.ELBO(kl_weight=0.4)},
    "beta 0.6": lambda: {"objective": pv.ELBO(kl_weight=0.6)},
    "beta 0.8": lambda: {"objective": pv.ELBO(kl_weight=0.8)},
    "linear annealing": lambda: {"objective": pv.ELBO(kl_weight=annealed())},
    "cyclical annealing": lambda: {
        "objective": pv.ELBO(kl_weight=pv.kl_control.Cyclical(epochs=EPOCHS, cycles=3))
    },
    "free bits, 2 nats": lambda: {"objective": pv.ELBO(free_bits=2.0)},
    "aggressive": lambda: {"schedule": aggressive()},
    "aggressive + annealing": lambda: {
        "schedule": aggressive(),
        "objective": pv.ELBO(kl_weight=annealed()),
    },
    "semi-amortized, 10 steps": lambda: {"schedule": pv.SemiAmortized(steps=REFINED)},
}
CONTEXT = ("no z",)


def without_z(vae: pv.models.SequenceVAE) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return a model that spells from z = 0, and a guide that draws nothing."""

    def model(tokens: Tensor, lengths: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(tokens)):
            z = torch.zeros(len(tokens), LATENT)
            pyro.sample("x", vae.decode(z, tokens.shape[1], lengths), obs=tokens)

    def guide(tokens: Tensor, lengths: Tensor) -> None:
        pass

    return model, guide


def one(name: str, seed: int) -> dict[str, Any]:
    """Train, judge, and return a row."""
    torch.manual_seed(seed)
    train, valid, test = (pv.datasets.names(split) for split in ("train", "valid", "test"))
    vae = pv.models.SequenceVAE(27, LATENT, EMBEDDING, HIDDEN, dropout=0.0, end=0)
    programs = without_z(vae) if name == "no z" else (vae.model, vae.guide)
    wall, processor = time.perf_counter(), time.process_time()
    run = pv.fit(
        *programs,
        train,
        valid=valid.subset(range(2000)),
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=pv.adam(RATE),
        clip_norm=CLIP,
        seed=seed,
        progress=False,
        callbacks=[_tell],
        **METHODS.get(name, dict)(),
    )
    inner = sum(record.get("inner_steps", 0) for record in run.history)
    row = {
        "method": name,
        "seed": seed,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rate": RATE,
        "clip": CLIP,
        "judged": JUDGED,
        "particles": PARTICLES,
        "processor_seconds": time.process_time() - processor,
        "wall_seconds": time.perf_counter() - wall,
        "inner_steps": inner,
        "gradient_steps": inner + EPOCHS * math.ceil(len(train) / BATCH),
        "valid_elbo": run.history[-1]["valid_elbo"],
        "history": [
            {k: h[k] for k in ("elbo", "valid_elbo", "kl") if k in h} for h in run.history
        ],
    }
    return row | judged(name, run, test)


def judged(name: str, run: pv.Run, test: pv.datasets.Dataset) -> dict[str, Any]:
    """Return what the trained programs are worth on test names."""
    chosen = np.random.RandomState(0).permutation(len(test))
    few, many = (test.subset(torch.from_numpy(chosen[:n])) for n in (JUDGED, REPORTED))
    if name == "no z":
        log_px = pv.ELBO().per_datum(run.model, run.guide, *few.args).double()
        row = {"kl": 0.0, "mutual_information": 0.0, "active_units": 0, "elbo": log_px.mean()}
    else:
        evidence = pv.log_evidence(
            run.model, run.guide, few, particles=PARTICLES, seed=0, chunk=5000, progress=False
        )
        log_px = evidence.log_px
        report = pv.collapse_report(run.model, run.guide, many, reference=REPORTED)
        row = {
            "kl": report.total_kl,
            "mutual_information": report.mutual_information["z"],
            "active_units": report.active_units["z"],
            "elbo": evidence.elbo.mean(),
            "monte_carlo_error": evidence.std_error.square().sum().sqrt() / JUDGED,
            "verdict": report.verdict,
        }
    return row | {
        "nll": -log_px.mean(),
        "nll_std_error": log_px.std() / math.sqrt(JUDGED),
        "log_px": [round(v, 3) for v in log_px.tolist()],
    }


def _tell(record: dict[str, Any]) -> None:
    told = {k: round(v, 2) for k, v in record.items() if isinstance(v, (int, float))}
    print("   ", told, flush=True)


# -- rows and table -------------------------------------------------------------------------------


def rows(seed: int) -> dict[str, dict[str, Any]]:
    """Return the committed rows of these settings, by method."""
    file = RESULTS / f"{NAME}.jsonl"
    found = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return {r["method"]: r for r in found if (r["epochs"], r["seed"]) == (EPOCHS, seed)}


def table(seed: int = 0) -> str:
    """Return the rows as Markdown."""
    found = rows(seed)
    lines = [
        "| method | -log p(x) | minus the VAE's | KL | I(x; z) | active units | gradient steps | "
        "price |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(found[name], found["VAE"]) for name in (*METHODS, *CONTEXT) if name in found]
    return "\n".join(lines)


def setting(seed: int = 0) -> str:
    """Return in words what was done."""
    return (
        f"Names, letter by letter: 25,627 to train on, {EPOCHS} epochs of 201 steps, seed {seed}; "
        f"-log p(x) in nats with K = {PARTICLES} on {JUDGED} test names (± over names), its "
        f"difference paired by name; I(x; z) is at most {math.log(REPORTED):.1f}; gradient steps "
        "and price (processor seconds of training) relative to the VAE's."
    )


def answer(seed: int = 0) -> str:
    """Return in words what each method came to against the VAE, from the rows."""
    found = rows(seed)
    told = []
    for name in METHODS:
        if name in found and name != "VAE":
            row, vae = found[name], found["VAE"]
            gain, error = _gain(row, vae)
            sure = "more than" if abs(gain) > 2 * error else "not beyond"
            told.append(
                f"* {name}: {gain:+.2f} nats of log p(x) against the VAE ({sure} two standard "
                f"errors of {error:.2f}), KL {row['kl']:.2f} instead of {vae['kl']:.2f}, at "
                f"{row['processor_seconds'] / vae['processor_seconds']:.1f} times its price."
            )
    return "\n".join(told)


def _gain(row: dict[str, Any], vae: dict[str, Any]) -> tuple[float, float]:
    """Return the mean over names of the gain in log p(x), and its standard error."""
    gain = np.subtract(row["log_px"], vae["log_px"])
    return gain.mean(), gain.std(ddof=1) / math.sqrt(len(gain))


def _line(row: dict[str, Any], vae: dict[str, Any]) -> str:
    paired = ""
    if row is not vae:
        gain, error = _gain(row, vae)
        paired = f"{-gain:+.2f} ± {error:.2f}"
    cells = [
        row["method"],
        f"{row['nll']:.2f} ± {row['nll_std_error']:.2f}",
        paired,
        f"{row['kl']:.2f}",
        f"{row['mutual_information']:.2f}",
        f"{row['active_units']} of {LATENT}",
        f"{row['gradient_steps'] / vae['gradient_steps']:.1f}",
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
        if name in rows(options.seed) or (options.only and name not in options.only):
            continue
        print(name, flush=True)
        row = one(name, options.seed)
        append_row(NAME, row)
        print(
            f"{name}: NLL {row['nll']:.2f}, KL {row['kl']:.2f}, I(x; z) "
            f"{row['mutual_information']:.2f}, {row['processor_seconds']:.0f} s",
            flush=True,
        )
    if "VAE" in rows(options.seed):
        text = f"{setting(options.seed)}\n\n{table(options.seed)}\n\n{answer(options.seed)}\n"
        (RESULTS / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
