"""`pyrovae train`: one VAE, from data to a number on held-out data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from pyrovae.cli import options
from pyrovae.cli.data import load_split
from pyrovae.cli.evaluating import evaluate_run, write_json
from pyrovae.cli.folders import file_name, new_folder
from pyrovae.cli.settings import Settings, read_settings
from pyrovae.datasets import Dataset
from pyrovae.distributions import posterior_class
from pyrovae.fit import fit
from pyrovae.models import VAE
from pyrovae.run import CHECKPOINT, Run

__all__ = ["describe_prior", "given", "train", "train_vae", "use_threads"]

LIMIT = 1000  # test rows evaluated after training, unless asked otherwise


def train(
    ctx: typer.Context,
    data: options.Data = "digits",
    binarize: options.Binarize = None,
    posterior: options.Posterior = "Normal",
    prior: options.Prior = None,
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
    resume: options.Resume = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a VAE and evaluate it on test data it has not seen.

    Without options: 8x8 handwritten digits, a Normal posterior, the exact binomial likelihood,
    half a minute. The folder of the run keeps its settings, history and weights, and
    evidence.json.
    """
    chosen = dict(ctx.params)
    if resume:
        if out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with.")
        kept = read_settings(out)
        if not kept:
            raise FileNotFoundError(
                f"--resume: {out} holds no run of `pyrovae train` to go on with."
            )
        chosen |= kept | given(ctx)
    settings = Settings.chosen(chosen)
    use_threads(threads, settings.data)
    data_train = load_split(settings.data, settings.binarize, "train")
    data_test = load_split(settings.data, settings.binarize, "test")
    name = file_name(settings.posterior).lower()
    folder = out or new_folder(f"{Path(settings.data).stem}-{name}")
    say = (lambda line: None) if quiet else typer.echo
    run = train_vae(settings, data_train, folder, resume=resume, say=say, quiet=quiet)
    if evaluate:
        found = evaluate_run(
            run,
            data_test,
            particles=evaluate,
            seed=seed,
            limit=limit,
            progress=False if quiet else None,
        )
        say("")
        typer.echo(found.summary())
        write_json(
            folder / "evidence.json", {"run": str(folder), "split": "test"} | found.record()
        )
    typer.echo(f"saved in {folder}")


train.epilog = """\b
Examples:
  pyrovae train
  pyrovae train --posterior Logistic --objective iwae --particles 5
  pyrovae train --posterior gamma --prior "gamma(0.3, 0.3)"
  pyrovae train --data mnist --minutes 15 --out runs/mnist
  pyrovae train --schedule "alternating(5, 1)"
  pyrovae train --schedule aggressive --valid 0.1
  pyrovae train --data mnist --likelihood bernoulli --lr-schedule burda --batch-size 20
  pyrovae train --out runs/mnist --epochs 200 --resume"""


def train_vae(
    settings: Settings,
    data: Dataset,
    folder: Path,
    *,
    resume: bool,
    say: Callable[[str], Any],
    quiet: bool,
) -> Run:
    """Train the VAE of the settings in the folder, saying what and how."""
    if not resume:
        _refuse_taken(folder)
    vae = settings.vae(data)
    name, arguments = settings.likelihood_of(data)
    inside = ", ".join(str(v) for v in arguments.values())
    law = f"{name}({inside})" if inside else name
    say(
        f"{data.name}, {len(data):,} x {data.data_shape}"
        f"{f', binarized ({data.binarize})' if data.binarize else ''}; {settings.posterior} "
        "posterior, "
        f"prior {describe_prior(vae)}, {law} likelihood, latent {settings.latent}, "
        f"hidden {settings.hidden}"
    )
    chosen = settings.describe_kl() + [settings.schedule] * (settings.schedule != "joint")
    say(
        f"{settings.objective} ({settings.particles} particle{'s' * (settings.particles > 1)}), "
        f"{''.join(f'{words}, ' for words in chosen)}"
        f"{settings.epochs} epoch{'s' * (settings.epochs > 1)} of "
        f"{-(-len(data) // settings.batch_size)} steps, "
        f"{settings.optimizer}, "
        f"lr {settings.lr:g} {settings.lr_schedule}, seed {settings.seed} -> {folder}"
    )
    clock, rows = settings.clock(), _Rows(settings, say)

    def keep(
        record: dict[str, Any],
    ) -> None:  # not before an epoch went well: a refused run leaves nothing
        settings.save(folder)

    callbacks = [keep, clock] if quiet else [keep, rows, clock]
    try:
        run = fit(
            vae.model,
            vae.guide,
            data,
            objective=settings.objective_of(),
            schedule=settings.schedule_of(),
            optimizer=settings.optimizer_of(),
            lr_scheduler=settings.lr_scheduler(),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            valid=settings.valid,
            patience=settings.patience,
            clip_norm=settings.clip_norm,
            callbacks=callbacks,
            device=settings.torch_device(),
            seed=settings.seed,
            out=folder,
            resume=resume,
            progress=False if quiet else None,
        )
    except KeyboardInterrupt:
        on = f"to go on: pyrovae train --out {folder} --resume"
        kept = on if (folder / CHECKPOINT[0]).is_dir() else "nothing had been saved yet"
        typer.echo(f"\ninterrupted; {kept}", err=True)
        raise
    done = len(run.history)
    if settings.minutes is not None and clock({}) and done < settings.epochs:
        say(
            f"stopped by --minutes {settings.minutes:g} after epoch {done} of {settings.epochs}; "
            f"to go on: pyrovae train --out {folder} --resume"
        )
    return run


class _Rows:
    """Print every tenth of the epochs, or so, as a row of a table."""

    def __init__(self, settings: Settings, say: Callable[[str], Any]) -> None:
        self.every = max(1, settings.epochs // 10)
        self.last, self.held_out = settings.epochs, settings.valid is not None
        self.seconds = 0.0
        titles = ["train ELBO", "valid ELBO"] if self.held_out else ["train ELBO"]
        say(f"{'epoch':>7}" + "".join(f" {t:>11}" for t in titles) + f" {'seconds':>8}")

    def __call__(self, record: dict[str, Any]) -> None:
        self.seconds += record["seconds"]
        epoch = record["epoch"]
        if epoch % self.every and epoch not in (1, self.last):
            return
        held_out = f" {record['valid_elbo']:>11.2f}" if self.held_out else ""
        tqdm.write(
            f"{record['epoch']:>7} {record['elbo']:>11.2f}{held_out} {self.seconds:>8.1f}",
            file=sys.stdout,
        )


def _refuse_taken(folder: Path) -> None:
    """Refuse a folder with anything in it but what a run without a checkpoint leaves."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out {folder} is a file. Expected: a new or empty folder.")
    started = {"config.json", "metrics.jsonl", "train.json"}
    if folder.is_dir() and {file.name for file in folder.iterdir()} - started:
        raise FileExistsError(
            f"--out {folder} is not empty. Try: --resume to go on with the run in it, or another "
            "--out; nothing "
            "has been changed."
        )


def given(ctx: typer.Context) -> dict[str, Any]:
    """The options that were typed, as opposed to defaults."""
    typed = {}
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is not None and not source.name.startswith("DEFAULT"):
            typed[name] = value
    return typed


def use_threads(threads: int | None, data: str) -> None:
    """Set this process's CPU threads; small networks are faster on one, busy machines too."""
    if threads is not None or data == "digits":
        torch.set_num_threads(threads or 1)


def describe_prior(vae: VAE) -> str:
    """The prior of one unit in words, `Normal(0, 1)`."""
    prior = vae.prior()
    family = posterior_class(prior)
    while type(prior) is not family:
        prior = prior.base_dist
    values = []
    for name in prior.arg_constraints:
        value = getattr(prior, name, None)
        if name not in ("logits", "probs", "covariance_matrix", "precision_matrix"):
            values.append(_constant(value))
    return f"{family.__name__}({', '.join(values)})"


def _constant(value: Any) -> str:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return str(value)
    first = value.flatten()[0]
    return f"{first.item():g}" if bool((value == first).all()) else "..."
