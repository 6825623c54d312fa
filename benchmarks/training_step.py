"""What does a step through `fit` cost beside a hand-written torch loop and beside Pyro's SVI?

The same network (one tanh layer each way), Adam, batch 100, on random binary pixels; they take
turns in one process.

* by hand: torch modules, the loss with the closed-form KL written out, fused Adam, `loss.item()`;
* Pyro: `SVI(model, guide, Adam, Trace_ELBO())` on programs written as in Pyro's tutorial;
* ours: `fit`'s step on exactly those programs, with its default objective (closed-form KL);
* ours, sampled: the same with Trace_ELBO's estimator, `ELBO(analytic_kl=False)`;
* ours, VAE: `fit`'s step on :class:`pyrovae.models.VAE`, default objective.

Targets: 1.3x by hand at 784-500-20, 0.8x Pyro at 784-64-8.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import cycle

import pyro
import pyro.distributions as dist
import torch
from _harness import alternate, append_row, table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv

PIXELS, BATCH = 784, 100
Programs = tuple[Callable[[Tensor], object], Callable[[Tensor], object]]


class Encoder(nn.Module):
    """784 -> hidden -> (loc, scale)."""

    def __init__(self, hidden: int, latent: int) -> None:
        super().__init__()
        self.body = nn.Linear(PIXELS, hidden)
        self.loc, self.log_scale = nn.Linear(hidden, latent), nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        h = torch.tanh(self.body(x))
        return self.loc(h), self.log_scale(h).exp()


class Decoder(nn.Module):
    """Latent -> hidden -> 784 logits."""

    def __init__(self, hidden: int, latent: int) -> None:
        super().__init__()
        self.body, self.logits = nn.Linear(latent, hidden), nn.Linear(hidden, PIXELS)

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.logits(torch.tanh(self.body(z)))


def by_hand(hidden: int, latent: int) -> Callable[[Tensor], float]:
    """Hand-written torch."""
    encoder, decoder = Encoder(hidden, latent), Decoder(hidden, latent)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loc, scale = encoder(x)
        z = loc + scale * torch.randn_like(loc)
        log_px = -binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        loss = (kl - log_px) / len(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def tutorial_programs(hidden: int, latent: int) -> Programs:
    """A model and a guide as Pyro users write them."""
    encoder, decoder = Encoder(hidden, latent), Decoder(hidden, latent)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            zeros, ones = x.new_zeros(len(x), latent), x.new_ones(len(x), latent)
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


def with_svi(hidden: int, latent: int) -> Callable[[Tensor], float]:
    """Pyro's own loop."""
    programs = tutorial_programs(hidden, latent)
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return svi.step


def ours(programs: Programs, analytic_kl: bool = True) -> Callable[[Tensor], object]:
    """The step that `fit` takes, checks and record included."""
    return pv.VariationalEM(*programs, pv.ELBO(analytic_kl), data_size=60_000).step


def vae(hidden: int, latent: int) -> Programs:
    """The package's own programs."""
    net = pv.models.VAE(PIXELS, latent, hidden)
    return net.model, net.guide


def on_batches(step: Callable[[Tensor], object], batches: Iterator[Tensor]) -> Callable[[], None]:
    """A contender: the next batch, one step."""

    def call() -> None:
        step(next(batches))

    return call


def main() -> None:
    """Measure both sizes and append a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=10, help="steps a measurement")
    parser.add_argument("--dry", action="store_true", help="append no row")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = (torch.rand(20 * BATCH, PIXELS) < 0.2).float().split(BATCH)
    for hidden, latent in ((500, 20), (64, 8)):
        pyro.clear_param_store()
        steps = {
            "by hand": by_hand(hidden, latent),
            "Pyro SVI": with_svi(hidden, latent),
            "ours": ours(tutorial_programs(hidden, latent)),
            "ours, sampled": ours(tutorial_programs(hidden, latent), analytic_kl=False),
            "ours, VAE": ours(vae(hidden, latent)),
        }
        contenders = {name: on_batches(step, cycle(data)) for name, step in steps.items()}
        times = alternate(contenders, rounds=options.rounds, warmup=20, calls=options.calls)
        ratios = {
            f"{name} / {base}": times[name].median / times[base].median
            for name in ("ours", "ours, sampled", "ours, VAE")
            for base in ("by hand", "Pyro SVI")
        }
        print(f"\n{PIXELS}-{hidden}-{latent}, batch {BATCH}, {torch.get_num_threads()} threads")
        print(table(times))
        for name, ratio in ratios.items():
            print(f"  {name:<34} {ratio:.2f}")
        if not options.dry:
            size = [PIXELS, hidden, latent]
            append_row("training_step", {"size": size, "seconds": times, "ratios": ratios})


if __name__ == "__main__":
    main()
