"""How near does `log_evidence` come to the bare matrix products, and does memory stay flat?

The decoder 50-200-200-784 (tanh), K = 5,000 particles a datum, float32. "Products" are the
decoder's three matrix products alone, in well-sized blocks: what any implementation must pay.
Reported is the share of their rate that `log_evidence` reaches (target: 0.4), and the peak memory
of a process at K = 50,000 against K = 5,000 (target: 1.1).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from _harness import alternate, append_row, table

import pyrovae as pv

LATENT, HIDDEN, PIXELS = 50, (200, 200), 784


def programs() -> pv.models.VAE:
    """An untrained VAE of the IWAE paper's size: speed does not depend on the weights."""
    torch.manual_seed(0)
    return pv.models.VAE(PIXELS, LATENT, HIDDEN)


def products(rows: int, block: int) -> Callable[[], None]:
    """The decoder's matrix products for `rows` latents, `block` at a time."""
    sizes = (LATENT, *HIDDEN, PIXELS)
    weights = [torch.randn(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    inputs = [torch.randn(block, a) for a in sizes[:-1]]
    outputs = [torch.empty(block, b) for b in sizes[1:]]

    def run() -> None:
        for _ in range(rows // block):
            for x, w, y in zip(inputs, weights, outputs, strict=True):
                torch.mm(x, w, out=y)

    return run


def peak_memory(particles: int) -> float:
    """MB at the peak of a process that evaluates 20 data with so many particles."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(particles)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print, append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=int, default=20, help="data evaluated")
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="append no row")
    options = parser.parse_args()
    vae = programs()
    x = (torch.rand(options.data, PIXELS) < 0.2).float()
    if options.memory:
        pv.log_evidence(vae.model, vae.guide, x, particles=options.memory, seed=0)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows = options.data * options.particles
    contenders = {f"products, blocks of {b}": products(rows, b) for b in (500, 1000, 2000)}
    contenders["log_evidence"] = lambda: pv.log_evidence(
        vae.model, vae.guide, x, particles=options.particles, seed=0
    )
    times = alternate(contenders, rounds=options.rounds)
    best = min(t.median for name, t in times.items() if name != "log_evidence")
    share = best / times["log_evidence"].median
    memory = {k: peak_memory(k) for k in (5_000, 50_000)}
    growth = memory[50_000] / memory[5_000]
    print(table(times))
    print(f"share of the products' rate: {share:.2f}")
    print(f"peak memory: {memory[5_000]:.0f} MB at K=5,000, {memory[50_000]:.0f} MB at K=50,000")
    if not options.dry:
        row = {"data": options.data, "particles": options.particles, "seconds": times}
        row |= {"share": share, "peak_memory_mb": memory, "memory_growth": growth}
        append_row("evidence_speed", row)


if __name__ == "__main__":
    main()
