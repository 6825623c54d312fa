r"""Is VAE training still hill climbing? Count the steps that lower log p(x).

EM never lowers log p(x): its E-step makes the bound tight. In a VAE q(z|x) lags behind p(z|x), and
a step of the model that raises the ELBO may lower log p(x). Here that is counted, not argued: z
has one dimension, so log p(x) of all data is a sum over a grid, exact to many digits, and so is
its gradient. Every step is on the whole data set (60 points on a horseshoe), and the model moves
by plain gradient steps of one size, so that neither minibatches nor an optimizer's momentum can be
the cause (the guide moves by Adam). There are two starts: random weights for both; and a model
trained on log p(x) itself beside a guide with random weights, which has everything to catch up.
From each go

* exact: gradient steps on log p(x) itself, which are M-steps after an exact E-step (Fisher's
  identity);
* joint: ``pv.Joint``, both roles at once, with 64 draws of z a datum, and with 1;
* guide 10 and 100 times slower: the same with a smaller step size for the guide, so that it lags;
* converge: ``pv.Converge``, E-steps until the bound rests, then the M-step.

That leaves the Monte Carlo noise of the draws. Now and then (every second of the first ten steps,
every tenth later) the M-step is therefore repeated 8 times from the same parameters, with 2,000
new draws a datum each. It *lowers log p(x) beyond the noise* where the mean change lies more than
five standard errors below zero (false alarm 8e-4 a step: Student's t, 7 degrees of freedom). The
cosine is that between the mean step and the exact gradient.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from _harness import RESULTS, append_row
from torch import Tensor, nn

import pyrovae as pv

matplotlib.use("Agg")

GRID = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)
GUIDE_RATE = 0.01
REPEATS, DRAWS, ERRORS = 8, 2000, 5.0
STARTS = {"random weights": 0.02, "good model, fresh guide": 0.0002}  # and the model's step size


def horseshoe(n: int = 60, seed: int = 0) -> Tensor:
    """Points around three quarters of a circle, with noise of 0.1."""
    rng = torch.Generator().manual_seed(seed)
    t = 0.75 * math.pi * (2 * torch.rand(n, generator=rng, dtype=torch.float64) - 1)
    x = torch.stack([t.sin(), t.cos()], 1)
    return x + 0.1 * torch.randn(n, 2, generator=rng, dtype=torch.float64)


class Pair(nn.Module):
    """A VAE with one latent as plain Pyro programs, and its exact log p(x)."""

    def __init__(self, seed: int, hidden: int = 20) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.decoder = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.encoder = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.log_scale = nn.Parameter(torch.tensor(0.5).log())

    def model(self, x: Tensor) -> None:
        """A standard Normal z, and x around a curve in the plane."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """A Normal q(z|x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def theta(self) -> list[Tensor]:
        """The model's parameters."""
        return [*self.decoder.parameters(), self.log_scale]

    def log_px(self, x: Tensor) -> Tensor:
        """Mean log p(x) over the data, nats: the integral over z by a sum over the grid."""
        law = dist.Normal(self.decoder(GRID[:, None]).unsqueeze(1), self.log_scale.exp())
        log_joint = law.log_prob(x).sum(-1) + dist.Normal(0.0, 1.0).log_prob(GRID)[:, None]
        return (log_joint.logsumexp(0) + (GRID[1] - GRID[0]).log()).mean()

    def slope(self, x: Tensor) -> list[Tensor]:
        """The exact gradient of :meth:`log_px` in the model's parameters."""
        return list(torch.autograd.grad(self.log_px(x), self.theta()))


@dataclass
class Path:
    """What a run saw: after each M-step, and what repeating it said."""

    log_px: list[float] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    e_steps: int = 0
    repeated: list[tuple[int, float, float, float]] = field(default_factory=list)  # see `repeat`

    @property
    def changes(self) -> Tensor:
        """Change of log p(x) in each M-step."""
        return torch.tensor(self.log_px).diff()

    def beyond_noise(self) -> list[int]:
        """The repeated steps whose mean change is far below zero, in standard errors."""
        return [step for step, mean, error, _ in self.repeated if mean + ERRORS * error < 0]

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        changes = self.changes
        return {
            "m_steps": len(changes),
            "e_steps": self.e_steps,
            "log_px": self.log_px[-1],
            "elbo": self.elbo[-1] if self.elbo else None,
            "lowered": int((changes < 0).sum()),
            "lost": -changes[changes < 0].sum().item(),
            "gained": changes[changes > 0].sum().item(),
            "repeated": len(self.repeated),
            "lowered_beyond_noise": len(self.beyond_noise()),
            "cosines": [round(cosine, 4) for *_, cosine in self.repeated],
        }


def climb_exactly(pair: Pair, x: Tensor, steps: int, rate: float) -> Path:
    """Gradient steps on log p(x) itself."""
    path = Path()
    path.log_px.append(pair.log_px(x).item())
    for _ in range(steps):
        slope = pair.slope(x)
        with torch.no_grad():
            for parameter, g in zip(pair.theta(), slope, strict=True):
                parameter += rate * g
        path.log_px.append(pair.log_px(x).item())
    return path


def sgd(rate: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """Plain gradient steps."""
    return lambda params: torch.optim.SGD(params, lr=rate)


def climb(
    schedule: Any,
    particles: int,
    pair: Pair,
    x: Tensor,
    steps: int,
    rate: float,
    slowness: float = 1.0,
) -> Path:
    """The same by a schedule, with M-steps repeated now and then to see past the noise."""
    path = Path()
    is_joint = isinstance(schedule, pv.Joint)
    em = pv.VariationalEM(
        pair.model,
        pair.guide,
        pv.ELBO(particles=particles),
        pv.adam(GUIDE_RATE / slowness),
        sgd(rate),
        # an optimizer for each role, so that an M-step can be repeated alone
        pv.Alternating() if is_joint else schedule,
    )
    em.prepare(x)
    path.log_px.append(pair.log_px(x).item())
    for step in range(steps):
        if step % 10 == 0 or step in (2, 4, 6, 8):
            path.repeated.append((step, *repeat(em, pair, x, is_joint)))
        record = em.joint_step(x) if is_joint else em.step(x)
        path.e_steps += 1 if is_joint else record.inner_steps
        path.elbo.append(record.elbo.item())
        path.log_px.append(pair.log_px(x).item())
    return path


def repeat(em: pv.VariationalEM, pair: Pair, x: Tensor, is_joint: bool) -> tuple[float, ...]:
    """Mean change of log p(x) over repeated M-steps, its standard error, and the cosine.

    The guide is the one that the M-step would meet: under a schedule with E-steps of its own, the
    one after them. Everything is put back.
    """
    leaves = [*pair.theta(), *pair.encoder.parameters()]
    before, noise = [p.detach().clone() for p in leaves], torch.get_rng_state()
    memory = copy.deepcopy(em.optimizers["guide"].state_dict())
    if not is_joint:
        em.step(x)  # its E-steps; what its M-step did is put back
        put_back(pair.theta(), before)
    now, slope = pair.log_px(x).item(), pair.slope(x)
    changes, mean_step = [], [torch.zeros_like(g) for g in slope]
    objective, em.objective = em.objective, pv.ELBO(particles=DRAWS)
    for _ in range(REPEATS):
        em.m_step(x)
        step = [p.detach() - old for p, old in zip(pair.theta(), before, strict=False)]
        changes.append(pair.log_px(x).item() - now)
        for total, s in zip(mean_step, step, strict=True):
            total += s / REPEATS
        put_back(pair.theta(), before)
    em.objective = objective
    put_back(leaves, before)
    em.optimizers["guide"].load_state_dict(memory)
    torch.set_rng_state(noise)
    found = torch.tensor(changes)
    error = (found.std() / REPEATS**0.5).item()
    return found.mean().item(), error, cosine(mean_step, slope)


def put_back(parameters: list[Tensor], values: list[Tensor]) -> None:
    """Give parameters their old values, as many as there are."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=False):
            parameter.copy_(value)


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of the angle between two lists of tensors, each taken as one vector."""
    one, other = (torch.cat([t.flatten() for t in v]) for v in (a, b))
    return torch.cosine_similarity(one, other, dim=0).item()


RESTING = pv.Converge(tolerance=1e-3, max_steps=50, window=5)
CONTENDERS: dict[str, Callable[[Pair, Tensor, int, float], Path]] = {
    "exact": climb_exactly,
    "joint": lambda pair, x, n, rate: climb(pv.Joint(), 64, pair, x, n, rate),
    "joint, 1 draw": lambda pair, x, n, rate: climb(pv.Joint(), 1, pair, x, n, rate),
    "guide 10x slower": lambda pair, x, n, rate: climb(pv.Joint(), 64, pair, x, n, rate, 10.0),
    "guide 100x slower": lambda pair, x, n, rate: climb(pv.Joint(), 64, pair, x, n, rate, 100.0),
    "converge": lambda pair, x, n, rate: climb(RESTING, 64, pair, x, n, rate),
}
COLORS = dict(zip(CONTENDERS, ("0.2", "C0", "C9", "C1", "C3", "C2"), strict=True))


def start_of(name: str, seed: int, x: Tensor) -> Pair:
    """A pair from its seed; the model trained on log p(x) itself if the start says so."""
    pair = Pair(seed)
    if name != "random weights":
        optimizer = torch.optim.Adam(pair.theta(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            (-pair.log_px(x)).backward()
            optimizer.step()
        optimizer.zero_grad()
    return pair


def draw(starts: dict[str, dict[str, Path]], file: Any) -> None:
    """Log p(x) along the way, the steps that lowered it, and where the mean step points."""
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(starts), 3, figsize=(13, 7), layout="constrained")
    for axes, (start, paths) in zip(rows, starts.items(), strict=True):
        for name, path in paths.items():
            axes[0].plot(path.log_px, color=COLORS[name], label=name)
            downs = torch.cumsum((path.changes < 0).double(), 0)
            axes[1].plot(downs, color=COLORS[name])
            if path.repeated:
                cosines = [r[3] for r in path.repeated]
                axes[2].plot([r[0] for r in path.repeated], cosines, color=COLORS[name], lw=1)
                low = [(r[0], r[3]) for r in path.repeated if r[1] + ERRORS * r[2] < 0]
                if low:
                    axes[2].plot(*zip(*low, strict=True), "v", color=COLORS[name])
        end = max(path.log_px[-1] for path in paths.values())
        bottom = min(min(path.log_px[10:]) for path in paths.values())
        axes[0].set_ylim(bottom - 0.1 * (end - bottom), end + 0.1 * (end - bottom))
        axes[0].set(ylabel="nats a datum", title=f"{start}: exact log p(x)")
        axes[1].set(title="steps so far that lowered log p(x)")
        axes[2].axhline(0.0, color="0.2", lw=0.8)
        axes[2].set(title="cosine of mean M-step and exact gradient\n(triangles: beyond noise)")
        for ax in axes:
            ax.set_xlabel("M-step")
    rows[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run all contenders from the same starts, append a row each, draw the first seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="M-steps of each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dry", action="store_true", help="append no row, draw nothing")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    x = horseshoe()
    for seed in options.seeds:
        seen: dict[str, dict[str, Path]] = {}
        for start, rate in STARTS.items():
            print(f"\n{start}, seed {seed}")
            print(f"{'':<18} log p(x)    lowered      lost    gained  beyond noise  E-steps")
            seen[start] = {}
            for name, run in CONTENDERS.items():
                torch.manual_seed(seed)
                path = run(start_of(start, seed, x), x, options.steps, rate)
                seen[start][name], r = path, path.record()
                print(
                    f"{name:<18} {r['log_px']:>8.4f} {r['lowered']:>4} of {r['m_steps']:<4}"
                    f" {r['lost']:>8.5f} {r['gained']:>9.4f} {r['lowered_beyond_noise']:>6} of "
                    f"{r['repeated']:<4} {r['e_steps']:>8}",
                    flush=True,
                )
                if not options.dry:
                    row = {"start": start, "contender": name, "seed": seed}
                    append_row("hill_climbing", row | r)
        if seed == 0 and not options.dry:
            draw(seen, RESULTS / "hill_climbing.png")


if __name__ == "__main__":
    main()
