"""What does an E-step cost beside one that also computes the decoder's weight gradients?

An E-step moves the encoder: the gradient has to go *through* the decoder to z, but not *to* its
weights, and the decoder's optimizer stays still. Counting matrix products alone, the floor is 0.80
at 784-500-20 (four large products instead of five) and nearly 2/3 where the decoder is all there
is (two passes instead of three), as with its five layers of 1,000 here. In turns, in one process,
batch 100, Adam on the encoder:

* E-step: ``VariationalEM.e_step``;
* with decoder gradients: the same move with a plain backward, which computes every gradient;
* Pyro: ``SVI(poutine.block(model, hide_types=["param"]), guide, ...)`` with ``Trace_ELBO``, which
  computes the decoder's gradients, uses none and leaves them behind.

Targets: 0.85 and 0.72 of the second; 0.5 of the third.

``--clock cpu`` counts this process's processor time instead of the time that passes, for a machine
that others use as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _harness import alternate, append_row, table
from pyro import poutine
from torch import Tensor, nn

import pyrovae as pv

PIXELS, BATCH, LATENT = 784, 100, 20
Programs = tuple[Callable[[Tensor], object], Callable[[Tensor], object]]


def programs(encoder: list[int], decoder: list[int]) -> Programs:
    """A model and a guide as Pyro users write them; hidden widths of both networks."""
    body = mlp([PIXELS, *encoder])
    loc, log_scale = nn.Linear(encoder[-1], LATENT), nn.Linear(encoder[-1], LATENT)
    heads = nn.ModuleDict({"body": body, "loc": loc, "log_scale": log_scale})
    net = nn.Sequential(mlp([LATENT, *decoder]), nn.Linear(decoder[-1], PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decoder", net)
        with pyro.plate("data", x.shape[0]):
            zeros, ones = x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", heads)
        with pyro.plate("data", x.shape[0]):
            h = body(x)
            pyro.sample("z", dist.Normal(loc(h), log_scale(h).exp()).to_event(1))

    return model, guide


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with tanh."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers)


class Wasteful(pv.VariationalEM):
    """The same moves, by a plain backward: gradients of all weights, whoever moves."""

    def _backward(self, batch: Any, leaves: Any, run: Any = None) -> Any:
        return super()._backward(batch, None, run)


def e_step(pair: Programs, kind: type[pv.VariationalEM]) -> Callable[[Tensor], object]:
    """Our E-step, with or without the gradients that it does not need."""
    em = kind(*pair, pv.ELBO(), schedule=pv.Alternating(1, 1), data_size=60_000)
    return em.e_step


def pyros(pair: Programs) -> Callable[[Tensor], object]:
    """The E-step that Pyro's handlers give."""
    blocked = poutine.block(pair[0], hide_types=["param"])
    svi = pyro.infer.SVI(blocked, pair[1], pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return svi.step


def on_batches(step: Callable[[Tensor], object], batches: Iterator[Tensor]) -> Callable[[], None]:
    """A contender: the next batch, one step."""

    def call() -> None:
        step(next(batches))

    return call


def main() -> None:
    """Measure both sizes and append a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=10, help="steps a measurement")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--dry", action="store_true", help="append no row")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = (torch.rand(20 * BATCH, PIXELS) < 0.2).float().split(BATCH)
    sizes = {"784-500-20": ([500], [500]), "decoder-heavy": ([100], [1000] * 5)}
    for name, (encoder, decoder) in sizes.items():
        pyro.clear_param_store()
        steps = {
            "E-step": e_step(programs(encoder, decoder), pv.VariationalEM),
            "with decoder gradients": e_step(programs(encoder, decoder), Wasteful),
            "Pyro's SVI, model blocked": pyros(programs(encoder, decoder)),
        }
        contenders = {n: on_batches(step, cycle(data)) for n, step in steps.items()}
        clock = time.process_time if options.clock == "cpu" else time.perf_counter
        times = alternate(contenders, options.rounds, 20, options.calls, clock)
        ratios = {n: times["E-step"].median / t.median for n, t in times.items() if n != "E-step"}
        print(f"\n{name}, batch {BATCH}, {torch.get_num_threads()} threads")
        print(table(times))
        for other, ratio in ratios.items():
            print(f"  E-step / {other:<28} {ratio:.2f}")
        if not options.dry:
            size = {"encoder": encoder, "decoder": decoder, "latent": LATENT}
            row = {"size": size, "clock": options.clock, "seconds": times, "ratios": ratios}
            append_row("e_step_cost", row)


if __name__ == "__main__":
    main()
