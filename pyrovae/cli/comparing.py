r"""`pyrovae compare`: which posterior? One VAE each, the same data, seed, budget and test rows.

Two standard errors are easily confused. That of a *mean* of log p(x) over test data comes from the
scatter of the data: some digits are harder than others, for every posterior alike. That of a
*difference* of two means over the same data does not contain that scatter, and is what decides. So
differences are paired: with :math:`d_n = \log p_A(x_n) - \log p_B(x_n)`,

.. math:: \bar d = \frac1N \sum_n d_n, \qquad
    \mathrm{s.e.}^2 = \frac{1}{N(N-1)} \sum_n (d_n - \bar d)^2,

which has the Monte Carlo error of both estimates in it, since that scatters :math:`d_n` as well.
With m pairs a difference counts as established where it exceeds the Normal quantile of
:math:`1 - 0.05 / 2m` (Bonferroni) standard errors. Neither error knows of the luck of one training
seed.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pyro
import torch
import typer

from pyrovae.cli import options
from pyrovae.cli.data import load_split
from pyrovae.cli.evaluating import Evaluation, evaluate_run, numbers, write_json
from pyrovae.cli.folders import file_name, new_folder, replace_folder
from pyrovae.cli.settings import Settings
from pyrovae.cli.tables import markdown, text
from pyrovae.cli.training import LIMIT, describe_prior, train_vae, use_threads
from pyrovae.collapse import CollapseReport
from pyrovae.distributions.spelling import split_list
from pyrovae.run import Run

__all__ = ["Contender", "Pair", "answer", "compare", "pairs_of"]

MARKER = "compare.json"
LEVEL = 0.05
DOUBTFUL = 0.1  # share of rows with a k-hat above the threshold
HEADER = ["posterior", "ELBO", "log p(x) +- s.e.", "gap", "KL", "active units", "seconds"]
PAIRED = ["pair", "log p(x) +- s.e.", "in s.e.", "ELBO +- s.e."]


@dataclass
class Contender:
    """One posterior: what was trained and what was found."""

    name: str
    prior: str
    run: Run
    found: Evaluation

    @property
    def seconds(self) -> float:
        """Time of training."""
        return sum(record["seconds"] for record in self.run.history)

    def row(self) -> list[str]:
        """Its row of the table."""
        evidence, collapse = self.found.evidence, self.found.collapse
        sign = ">= " if evidence.lower_bound else ""
        elbo = evidence.elbo.mean().item()
        return [
            self.name,
            f"{elbo:.2f}",
            f"{sign}{evidence.mean:.2f} +- {evidence.mean_std_error:.2f}",
            f"{evidence.mean - elbo:.2f}",
            f"{collapse.total_kl:.2f}",
            _active(collapse),
            f"{self.seconds:.1f}",
        ]


def _active(collapse: CollapseReport) -> str:
    known = [n for n in collapse.active_units.values() if n is not None]
    total = sum(collapse.units.values())
    return (
        f"{sum(known)} of {total}" if len(known) == len(collapse.active_units) else f"? of {total}"
    )


@dataclass
class Pair:
    """Mean over the test rows of log p(x), and of the ELBO, under `first` minus `second`, nats."""

    first: str
    second: str
    difference: float
    std_error: float
    elbo_difference: float
    elbo_std_error: float

    @property
    def ratio(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.std_error if self.std_error > 0 else 0.0

    def row(self) -> list[str]:
        """Its row of the table."""
        value = f"{self.difference:+.3f} +- {self.std_error:.3f}"
        elbo = f"{self.elbo_difference:+.3f} +- {self.elbo_std_error:.3f}"
        return [f"{self.first} - {self.second}", value, f"{self.ratio:+.1f}", elbo]


def pairs_of(contenders: list[Contender]) -> list[Pair]:
    """Every pair, the better one first, the largest difference first."""
    pairs = []
    for a, b in itertools.combinations(contenders, 2):
        if a.found.evidence.mean < b.found.evidence.mean:
            a, b = b, a
        first, second = a.found.evidence, b.found.evidence
        elbo = first.elbo - second.elbo
        error = (elbo.std() / len(elbo) ** 0.5).item() if len(elbo) > 1 else math.nan
        pairs.append(Pair(a.name, b.name, *first.paired(second), elbo.mean().item(), error))
    return sorted(pairs, key=lambda pair: -pair.difference)


def quantile(count: int) -> float:
    """How many standard errors one of `count` differences has to exceed: 5 % over all."""
    return NormalDist().inv_cdf(1 - LEVEL / (2 * max(count, 1)))


def answer(pairs: list[Pair], rows: int) -> str:
    """Which guide is better, in a sentence, no more certain than the numbers are."""
    if not pairs:
        return "One posterior: nothing to compare."
    needed = quantile(len(pairs))
    names = {pair.first for pair in pairs} | {pair.second for pair in pairs}
    best = (names - {pair.second for pair in pairs}) or {pairs[0].first}
    leader = sorted(best)[0]
    behind = [pair for pair in pairs if pair.first == leader]
    beaten = [pair for pair in behind if pair.ratio > needed]
    equal = [pair for pair in behind if pair.ratio <= needed]
    count = f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
    rule = f"a difference has to exceed {needed:.1f} standard errors, 5 % over {count}"
    rule = f"on these {rows:,} test rows ({rule})"
    by = ", ".join(f"{p.second} by {p.difference:.3f} +- {p.std_error:.3f}" for p in beaten)
    if not equal:
        return f"{leader}: its log p(x) is higher than that of {by} nats {rule}."
    level = ", ".join(f"{p.second} ({p.difference:.3f} +- {p.std_error:.3f})" for p in equal)
    more = f"it is better than {by} nats, but " if beaten else ""
    return (
        f"no single winner. {leader} has the highest log p(x): {more}"
        f"it cannot be told from {level} {rule}."
    )


def _caution(contenders: list[Contender]) -> str:
    """What the standard errors do not see."""
    shares = {c.name: c.found.evidence.unreliable.double().mean().item() for c in contenders}
    doubtful = [f"{name} {share:.0%}" for name, share in shares.items() if share > DOUBTFUL]
    if not doubtful:
        return ""
    return (
        f" But the weights are heavy-tailed for many rows ({', '.join(doubtful)}; Pareto k-hat), "
        "so log p(x) is "
        "probably low by more than its error, and this answer is provisional."
    )


def compare(
    ctx: typer.Context,
    posteriors: options.Posteriors = "Normal,Laplace,Logistic",
    prior: options.Prior = None,
    data: options.Data = "digits",
    binarize: options.BinarizeCompared = None,
    latent: options.Latent = None,
    hidden: options.Hidden = "200,200",
    likelihood: options.Likelihood = None,
    objective: options.Objective = "elbo",
    particles: options.ObjectiveParticles = None,
    kl_weight: options.KLWeight = 1.0,
    warm_up: options.WarmUp = None,
    warm_up_shape: options.WarmUpShape = "linear",
    target_kl: options.TargetKL = None,
    capacity: options.Capacity = None,
    free_bits: options.FreeBits = 0.0,
    free_bits_per: options.FreeBitsPer = "site",
    schedule: options.EMSchedule = "joint",
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = 100,
    lr: options.LearningRate = None,
    lr_schedule: options.Schedule = "cosine",
    minutes: options.Minutes = None,
    optimizer: options.Optimizer = "adam",
    clip_norm: options.ClipNorm = None,
    valid: options.Valid = None,
    patience: options.Patience = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    evaluate: options.EvaluationParticles = 5000,
    limit: options.Limit = LIMIT,
    out: options.Out = None,
    quiet: options.Quiet = False,
) -> None:
    """Train one VAE per posterior on the same data, seed and budget, and say which is better.

    Prints ELBO, log p(x) and collapse side by side on the same test rows, and the paired
    differences of log p(x) with their standard errors. Writes table.md, comparison.json,
    comparison.png and a run's folder each. A comparison already in --out is moved aside, to a
    folder of the same name with -old.
    """
    use_threads(threads, data)
    if evaluate < 2:
        raise ValueError("--evaluate: comparing needs log p(x), so at least 2 draws of z.")
    names = split_list(posteriors)
    if binarize is None and data == "digits":
        # 17 grey levels make posteriors that these guides do not cover: k-hat above 1
        binarize = "dynamic"
    chosen = ctx.params | {"binarize": binarize}
    every = [Settings.chosen(chosen | {"posterior": name}) for name in names]
    names = [settings.posterior for settings in every]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"--posteriors: different names, separated by commas; got {posteriors!r}."
        )
    data_train = load_split(data, every[0].binarize, "train")
    data_test = load_split(data, every[0].binarize, "test")
    for settings in every:  # what is wrong with any of them is wrong before the first is trained
        settings.vae(data_train)
    folder = out or new_folder(f"{Path(data).stem}-compared")
    moved = replace_folder(folder, MARKER)
    if moved is not None:
        typer.echo(f"the comparison that was in {folder} is now in {moved}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, {"posteriors": names, "settings": asdict(every[0])})
    say = (lambda line: None) if quiet else typer.echo
    contenders = []
    for settings in every:
        run = train_vae(
            settings,
            data_train,
            folder / file_name(settings.posterior),
            resume=False,
            say=say,
            quiet=quiet,
        )
        found = evaluate_run(
            run,
            data_test,
            particles=evaluate,
            seed=seed,
            limit=limit,
            progress=False if quiet else None,
        )
        say(
            f"log p(x) of {len(found.rows):,} test rows, K = {evaluate:,}: {found.seconds:.1f} s\n"
        )
        drawn_from = describe_prior(settings.vae(data_train))
        contenders.append(Contender(settings.posterior, drawn_from, run, found))
    _report(contenders, folder)


compare.epilog = """\b
Examples:
  pyrovae compare                                        three posteriors on digits, two minutes
  pyrovae compare --posteriors Normal,StudentT --seed 1
  pyrovae compare --data mnist --minutes 10 --limit 2000"""


def _report(contenders: list[Contender], folder: Path) -> None:
    """Print the tables and the answer, and write them, the numbers and the figure."""
    from pyrovae.cli.pictures import draw_comparison

    pairs = pairs_of(contenders)
    rows = len(contenders[0].found.rows)
    conclusion = (
        f"Which guide is better? {answer(pairs, rows)}{_caution(contenders) if pairs else ''}"
    )
    table = [contender.row() for contender in contenders]
    paired = [pair.row() for pair in pairs]
    notes = _notes(contenders)
    typer.echo(text(HEADER, table))
    for note in notes:
        typer.echo(f"  {note}")
    if pairs:
        typer.echo("\nPaired differences over the same test rows, nats:")
        typer.echo(text(PAIRED, paired))
    typer.echo(f"\n{conclusion}\n")
    parts = [f"# {', '.join(c.name for c in contenders)}: a comparison", markdown(HEADER, table)]
    parts.append("\n".join(f"* {note}" for note in notes))
    if pairs:
        parts += ["Paired differences over the same test rows, nats:", markdown(PAIRED, paired)]
    parts += [conclusion, "![comparison](comparison.png)"]
    (folder / "table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw_comparison(contenders, pairs, quantile(len(pairs)), folder / "comparison.png")
    write_json(folder / "comparison.json", _record(contenders, pairs, conclusion, folder))
    typer.echo(f"written: {folder}/comparison.png, table.md, comparison.json, and a run each")


def _notes(contenders: list[Contender]) -> list[str]:
    found = contenders[0].found
    size, rows = found.data["size"], len(found.rows)
    part = f"{rows:,} of {size:,}" if rows < size else f"all {rows:,}"
    drawn = ", binarized once (seed 0)" if found.data["binarize"] == "dynamic" else ""
    error = max(c.found.evidence.monte_carlo_error for c in contenders)
    priors = {c.prior for c in contenders}
    listed = "; ".join(f"{c.name}: {c.prior}" for c in contenders)
    notes = [
        f"nats, mean over {part} rows of {found.data['name']}{drawn}; K = "
        f"{found.evidence.particles:,} draws of z "
        "a datum, the same rows for all",
        "s.e. is over test rows; the Monte Carlo error of a mean, inside it, is at most "
        f"{error:.1g}",
        "log p(x) judges the model that a guide has trained, the gap = log p(x) - ELBO = mean "
        "KL(q(z|x) || p(z|x)) the "
        "guide itself",
        "KL = mean KL(q(z|x) || p(z)); seconds of training",
        f"prior of every unit, all: {priors.pop()}"
        if len(priors) == 1
        else f"prior of every unit, so that the models differ too: {listed}",
        "one training seed: the luck of the seed is in no error here; try --seed 1",
    ]
    for contender in contenders:
        notes += [f"{contender.name}: {doubt}" for doubt in contender.found.evidence.warnings()]
    return notes


def _record(
    contenders: list[Contender], pairs: list[Pair], conclusion: str, folder: Path
) -> dict[str, Any]:
    settings = json.loads((folder / MARKER).read_text())
    return settings | {
        "contenders": {
            c.name: {
                "prior": c.prior,
                "seconds": c.seconds,
                "epochs": len(c.run.history),
                "train_elbo": numbers([record["elbo"] for record in c.run.history]),
            }
            | c.found.record()
            for c in contenders
        },
        "paired": numbers([asdict(pair) for pair in pairs]),
        "answer": conclusion,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro": pyro.__version__,
        },
    }
