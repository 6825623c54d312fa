"""What does a family cost: constructing it, `rsample`, `log_prob` of the draw, and backward?

One call constructs the distribution from leaf parameters, draws z, and takes the gradient of
``(z + log_prob(z)).sum()`` in every parameter. Contenders of one family take turns in one process:
torch's Normal (the reference of the closed forms), ours, torch's and Pyro's class of the same name
where there is one, and NumPyro's, jitted, where it is installed. Validation is as each library
has it by default: torch's, Pyro's and ours on, NumPyro's off (it cannot look inside `jit`).

Targets: a closed form costs at most 1.5 times torch's Normal; Gamma, Beta, StudentT and Dirichlet
at most 1.5 times torch's class eager and 1.0 times compiled in float32, 3 times in float64.
With --compiled the call is captured by `torch.compile(fullgraph=True)`, ours and torch's.

Beside the time stands the accuracy: the greatest relative error of the pathwise derivative of
some draws in the first shape parameter, for concentrations from 1e-2 to 1e4, against mpmath.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as pyro_dist
import torch
from _harness import Timing, alternate, append_row, table
from torch import Tensor
from torch import distributions as td

import pyrovae.distributions as ours

try:
    import jax
    import numpyro.distributions as numpyro_dist
except ImportError:
    jax = None

Arguments = dict[str, Tensor]
SIZES = {"128x32": (128, 32), "1e6": (31_250, 32)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
REFERENCE = "torch Normal"


@dataclass
class Family:
    """A class by its name, what its parameters are, and whether torch must be matched by class."""

    name: str
    arguments: tuple[str, ...]
    numpyro: str | None = ""
    same_class: bool = False


CLOSED = [
    Family("Normal", ("loc", "scale")),
    Family("Laplace", ("loc", "scale")),
    Family("Logistic", ("loc", "scale")),
    Family("Cauchy", ("loc", "scale")),
    Family("Gumbel", ("loc", "scale")),
    Family("Exponential", ("rate",)),
    Family("Weibull", ("scale", "concentration")),
    Family("Rayleigh", ("scale",), None),
    Family("Pareto", ("scale", "alpha")),
    Family("Gompertz", ("concentration", "rate")),
    Family("Kumaraswamy", ("concentration1", "concentration0")),
    Family("Uniform", ("low", "high")),
    Family("Reciprocal", ("low", "high"), "LogUniform"),
    Family("Triangular", ("low", "peak", "high"), None),
    Family("LogNormal", ("loc", "scale")),
]
GAMMAS = [
    Family("Gamma", ("concentration", "rate"), same_class=True),
    Family("Beta", ("concentration1", "concentration0"), same_class=True),
    Family("StudentT", ("df", "loc", "scale"), same_class=True),
    Family("Dirichlet", ("concentration",), same_class=True),
]
FAMILIES = {family.name: family for family in CLOSED + GAMMAS}


def leaves(family: Family, shape: tuple[int, ...], dtype: torch.dtype) -> Arguments:
    """Parameters as an encoder would give them: scattered, and asked for their gradients."""
    torch.manual_seed(0)
    given = {}
    for name in family.arguments:
        noise = torch.randn(shape, dtype=dtype)
        if name == "loc":
            value = noise
        elif name in ("low", "peak", "high"):
            value = torch.rand(shape, dtype=dtype) + {"low": 1.0, "peak": 3.0, "high": 5.0}[name]
        elif name == "df":
            value = 4 * torch.exp(0.5 * noise)
        elif name == "alpha":
            value = 3 * torch.exp(0.3 * noise)
        else:
            value = torch.exp((0.7 if family.same_class else 0.3) * noise)
        given[name] = value.requires_grad_()
    return given


def step(make: Callable[..., Any], given: Arguments) -> tuple[Tensor, ...]:
    """Construct, draw, score, differentiate."""
    d = make(**given)
    z = d.rsample()
    loss = z.sum() + d.log_prob(z).sum()
    return torch.autograd.grad(loss, tuple(given.values()))


def compiled(make: Callable[..., Any]) -> Callable[[Arguments], tuple[Tensor, ...]]:
    """The same as one graph, differentiated by hand: a compiled step has its backward inside."""

    def loss(given: Arguments) -> Tensor:
        d = make(**given)
        z = d.rsample()
        return z.sum() + d.log_prob(z).sum()

    graph = torch.compile(loss, fullgraph=True, dynamic=False)
    return lambda given: torch.autograd.grad(graph(given), tuple(given.values()))


def jitted(make: Callable[..., Any], given: Arguments) -> Callable[[], Any]:
    """NumPyro's call: loss and gradients under `jax.jit`, waited for."""

    def loss(given: Mapping[str, Any], key: Any) -> Any:
        d = make(**given)
        z = d.sample(key)
        return z.sum() + d.log_prob(z).sum()

    graph = jax.jit(jax.grad(loss))
    arrays = {k: jax.numpy.asarray(v.detach().numpy()) for k, v in given.items()}
    key = jax.random.PRNGKey(0)
    return lambda: jax.block_until_ready(graph(arrays, key))


def contenders(
    family: Family, shape: tuple[int, ...], dtype: torch.dtype, graphs: bool
) -> dict[str, Callable[[], Any]]:
    """Name -> the call, torch's Normal first."""
    given = leaves(family, shape, dtype)
    normal = leaves(FAMILIES["Normal"], shape, dtype)
    found = {REFERENCE: lambda: step(td.Normal, normal)}
    classes = {"pyrovae": getattr(ours, family.name)}
    for library, module in (("torch", td), ("Pyro", pyro_dist)):
        made = getattr(module, family.name, None)
        if made is not None and (library, family.name) != ("torch", "Normal"):
            classes[library] = made
    for library, made in classes.items():
        found[library] = lambda made=made: step(made, given)
        if graphs and library != "Pyro":
            call = compiled(made)
            found[f"{library}, compiled"] = lambda call=call: call(given)
    if jax is not None and family.numpyro is not None:
        made = getattr(numpyro_dist, family.numpyro or family.name)
        found["NumPyro, jitted"] = jitted(made, given)
    return found


def ratios(family: Family, times: Mapping[str, Timing]) -> dict[str, float]:
    """How many times the reference's median ours is: torch's Normal, or torch's own class."""
    peer = "torch" if family.same_class else REFERENCE
    found = {"eager": times["pyrovae"].median / times[peer].median}
    if "pyrovae, compiled" in times:
        mine = times["pyrovae, compiled"].median
        found["compiled, to torch eager"] = mine / times[peer].median
        if "torch, compiled" in times:
            found["compiled, to torch compiled"] = mine / times["torch, compiled"].median
    return found


# -- accuracy -------------------------------------------------------------------------------------


def pathwise_errors(dtype: torch.dtype, draws: int = 60) -> dict[str, dict[str, float]]:
    """Family -> library -> the greatest relative error of dz/d(first parameter) of some draws."""
    torch.manual_seed(1)
    spread = 10 ** torch.empty(draws, 2, dtype=dtype).uniform_(-2, 4)
    makes = {
        "Gamma": lambda lib, s: lib.Gamma(s[..., 0], torch.ones_like(s[..., 0])),
        "Beta": lambda lib, s: lib.Beta(s[..., 0], s[..., 1]),
        "StudentT": lambda lib, s: lib.StudentT(s[..., 0]),
        "Dirichlet": lambda lib, s: lib.Dirichlet(s),
    }
    found: dict[str, dict[str, float]] = {}
    for name, make in makes.items():
        for library, module in (("pyrovae", ours), ("torch", td)):
            if (library, name) == ("torch", "StudentT"):
                continue  # a ratio of draws: unbiased too, but not the derivative at a fixed cdf
            shapes = spread.clone().requires_grad_()
            z = make(module, shapes).rsample()
            z = z[..., 0] if name == "Dirichlet" else z
            (slope,) = torch.autograd.grad(z.sum(), shapes)
            worst = 0.0
            for (a, b), at, got in zip(spread.tolist(), z.tolist(), slope[:, 0], strict=True):
                true = _implicit(name, a, b, at)
                if true is not None:
                    worst = max(worst, abs(float(got) / true - 1))
            found.setdefault(name, {})[library] = worst
    return found


def _implicit(name: str, a: float, b: float, at: float) -> float | None:
    """-(dF/da)/f by mpmath, 40 digits; None where rounding the draw decides it."""
    import mpmath as mp

    low, high = {"Gamma": (1e-30, 1e30), "StudentT": (1e-3, 1e15)}.get(name, (1e-30, 0.9))
    if not low < abs(at) < high:
        return None

    def tail(s: Any) -> Any:
        if name == "Gamma":
            return mp.gammainc(s, 0, z, regularized=True)
        if name == "StudentT":
            upper = beta(s / 2, mp.mpf(0.5), s / (s + z * z), z * z / (s + z * z)) / 2
            return -mp.sign(z) * upper
        return beta(s, mp.mpf(b), z, 1 - z)

    def beta(p: Any, q: Any, x: Any, rest: Any) -> Any:
        """I_x(p, q), by the series of positive terms that is the shorter one."""
        front = x**p * rest**q / mp.beta(p, q)
        if x * q > rest * p:
            return 1 - front / q * mp.hyp2f1(p + q, 1, q + 1, rest, maxterms=10**6)
        return front / p * mp.hyp2f1(p + q, 1, p + 1, x, maxterms=10**6)

    with mp.workdps(40):
        z, half, h = mp.mpf(at), mp.mpf(a) / 2, mp.mpf(10) ** -9 * a
        if name == "Gamma":
            density = mp.exp((a - 1) * mp.log(z) - z - mp.loggamma(a))
        elif name == "StudentT":
            density = mp.exp(mp.loggamma(half + 0.5) - mp.loggamma(half)) / mp.sqrt(a * mp.pi)
            density *= mp.exp(-(half + 0.5) * mp.log1p(z * z / a))
        else:
            density = z ** (a - 1) * (1 - z) ** (b - 1) / mp.beta(a, b)
        return float(-(tail(a + h) - tail(a - h)) / (2 * h) / density)


def main() -> None:
    """Measure, print, append one row for each size and type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--compiled", action="store_true", help="compile the gamma-like ones too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: what the process used, all threads; fairer where others use the machine",
    )
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--dry", action="store_true", help="append no row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if jax is not None:
        jax.config.update("jax_enable_x64", "float64" in options.dtypes)
    for dtype in options.dtypes:
        errors = {} if options.no_accuracy else pathwise_errors(DTYPES[dtype])
        for name, by_library in errors.items():
            found = ", ".join(f"{k} {v:.1e}" for k, v in by_library.items())
            print(f"{name}, {dtype}: greatest relative error of the pathwise derivative: {found}")
        for size in options.sizes:
            shape, calls = SIZES[size], 20 if size == "128x32" else 1
            times, summary = {}, {}
            for name in options.families:
                family = FAMILIES[name]
                calls_of = contenders(
                    family, shape, DTYPES[dtype], options.compiled and family.same_class
                )
                clock = CLOCKS[options.clock]
                times[name] = alternate(calls_of, options.rounds, 3, calls, clock)
                summary[name] = ratios(family, times[name])
                shown = ", ".join(f"{k} {v:.2f}" for k, v in summary[name].items())
                print(f"\n{name}, {size}, {dtype}: {shown}\n{table(times[name])}", flush=True)
            if not options.dry:
                row = {"size": size, "elements": shape[0] * shape[1], "dtype": dtype}
                row |= {"validation": "each library's default", "ratios": summary}
                row |= {"clock": options.clock, "load": os.getloadavg()[0]}
                row |= {"seconds": times, "pathwise_errors": errors}
                append_row("distributions", row)


if __name__ == "__main__":
    main()
