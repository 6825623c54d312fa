"""How good is a VAE on MNIST after fifteen minutes on two cores?

The one-layer network of the IWAE paper (784-200-200-50, tanh), dynamic binarization, a Normal
posterior, the ELBO; trained and evaluated by the command line alone. Published, with 3,280 epochs:
86.76 nats (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519). Target here: at most 88.5 nats
over all 10,000 test digits with K = 5,000, after at most 15 minutes of training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from _harness import append_row

COMMAND = [sys.executable, "-c", "from pyrovae.cli import main; main()"]
TRAIN = "--data mnist --latent 50 --hidden 200,200 --lr 0.002 --lr-schedule cosine --minutes 15"


def main() -> None:
    """Train (unless a trained run is given), evaluate, append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mnist-nll"))
    parser.add_argument("--epochs", type=int, default=155, help="what fits into 15 minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--trained", action="store_true", help="--out holds the trained run")
    options = parser.parse_args()
    arguments = [*TRAIN.split(), "--epochs", str(options.epochs), "--evaluate", "0"]
    arguments += ["--threads", str(options.threads), "--out", str(options.out)]
    if not options.trained:
        subprocess.run([*COMMAND, "train", *arguments], check=True)
    evaluate = ["evaluate", str(options.out), "--particles", str(options.particles)]
    subprocess.run([*COMMAND, *evaluate], check=True)
    history = [json.loads(line) for line in (options.out / "metrics.jsonl").open()]
    evidence = json.loads((options.out / "evidence.json").read_text())
    row = {
        "command": "pyrovae train " + " ".join(arguments[:-2]),
        "training_seconds": sum(record["seconds"] for record in history),
        "epochs": len(history),
        "train_elbo": history[-1]["elbo"],
    }
    row |= {k: evidence[k] for k in ("split", "particles", "seed", "mean", "seconds")}
    row["nll"] = -evidence["mean"]["log_px"]
    append_row("mnist_nll", row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
