"""What a run is: the command line's options as one record, and what is built from them.

A :class:`Settings` is plain values only, so it is kept as JSON beside the run (``train.json``) and
read back by ``--resume`` and ``evaluate``. Options that were left out depend on the data;
`resolve` fills them in, so that what is kept says what was done.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributions import constraints

from pyrovae import distributions
from pyrovae.checkpoint import write_atomic
from pyrovae.datasets import Dataset, check_choice
from pyrovae.em import OptimizerFactory, Schedule, adam, parse_schedule, spell_schedule
from pyrovae.kl_control import Cyclical, FreeBits, Linear, Sigmoid, TargetRate
from pyrovae.models import VAE
from pyrovae.models.likelihoods import likelihood_names
from pyrovae.objectives import ELBO, IWAE, Objective

__all__ = ["Settings", "read_settings"]

FILE = "train.json"
_EPOCHS = {"digits": 400}
_LATENT = {"digits": 10, "mnist": 50, "omniglot": 50}
_GREY = ("mnist", "omniglot")  # intensities, binarized unless told otherwise
_RATE = {"digits": 3e-3}
_ARGUMENT = {
    "binomial": ("total_count", int),
    "normal_fixed": ("scale", float),
    "made": ("hidden", int),
    "window": ("radius", int),
}
_OWN_DEFAULT = ("made", "window")  # their argument may be left out
_BINARY = ("bernoulli", "made", "window")
_KL = ("kl_weight", "warm_up", "target_kl", "capacity", "free_bits")
_WARM_UPS = {"linear": Linear, "sigmoid": Sigmoid, "cyclical": Cyclical}


@dataclasses.dataclass
class Settings:
    """The options of a training; None stands for "depends on the data"."""

    data: str = "digits"
    binarize: str | None = None
    posterior: str = "Normal"
    prior: str | None = None
    latent: int | None = None
    hidden: str = "200,200"
    likelihood: str | None = None
    objective: str = "elbo"
    particles: int | None = None
    kl_weight: float = 1.0
    warm_up: float | None = None
    warm_up_shape: str = "linear"
    target_kl: float | None = None
    capacity: float | None = None
    free_bits: float = 0.0
    free_bits_per: str = "site"
    schedule: str = "joint"
    epochs: int | None = None
    batch_size: int = 100
    lr: float | None = None
    lr_schedule: str = "cosine"
    minutes: float | None = None
    optimizer: str = "adam"
    clip_norm: float | None = None
    valid: float | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "cpu"

    @classmethod
    def chosen(cls, options: dict[str, Any]) -> Settings:
        """The settings among a command's options, what they leave open filled in.

        Raises:
            ValueError: an unknown name (says the nearest known one), or numbers out of range.
        """
        own = {f.name for f in dataclasses.fields(cls)}
        settings = cls(**{k: v for k, v in options.items() if k in own})
        settings._check()
        settings._fill()
        return settings

    def save(self, folder: Path) -> None:
        """Keep the settings in the run's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_atomic(folder / FILE, text.encode())

    def _check(self) -> None:
        self.posterior = _canonical(self.posterior)
        if self.prior is not None:
            self.prior = _canonical(self.prior)
            distributions.prior_by_name(self.prior, 1)
        check_choice("--objective", self.objective, ["elbo", "iwae"])
        check_choice("--optimizer", self.optimizer, ["adam", "adagrad"])
        check_choice("--lr-schedule", self.lr_schedule, ["constant", "cosine", "burda"])
        check_choice("--binarize", self.binarize, ["dynamic", "fixed", "none", None])
        self._check_kl()
        schedule = self.schedule_of()
        self.schedule = spell_schedule(schedule)
        if schedule.needs_valid and self.valid is None:
            raise ValueError(
                f"--schedule {self.schedule} ends by the mutual information on held-out data: add "
                f"--valid 0.1, or say after how many epochs, aggressive(stop=3)."
            )
        for name in ("lr", "minutes", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
        if self.valid is not None and not 0 < self.valid < 1:
            raise ValueError(f"--valid is a fraction between 0 and 1, got {self.valid}.")
        if self.patience is not None and (self.valid is None or self.patience < 1):
            raise ValueError("--patience needs data to judge by and an epoch: add --valid 0.1.")
        self.widths()
        self.torch_device()

    def _check_kl(self) -> None:
        check_choice("--warm-up-shape", self.warm_up_shape, list(_WARM_UPS))
        used = [
            f"--{n.replace('_', '-')}" for n in _KL if getattr(self, n) != getattr(Settings, n)
        ]
        if self.objective == "iwae" and used:
            raise ValueError(f"{' and '.join(used)}: for --objective elbo only.")
        clash = {"--kl-weight", "--warm-up", "--capacity"}.intersection(used)
        if self.target_kl is not None and clash:
            raise ValueError(f"--target-kl sets the weight itself: not with {min(clash)}.")
        if self.warm_up_shape != "linear" and not self.warm_up:
            raise ValueError("--warm-up-shape needs --warm-up, the epochs it takes.")
        if self.free_bits_per != "site" and not self.free_bits:
            raise ValueError("--free-bits-per needs --free-bits, the nats of each.")
        if self.objective == "elbo":
            self.objective_of()  # what is out of range says so

    def _fill(self) -> None:
        self.latent = self.latent or _LATENT.get(self.data, 20)
        self.epochs = self.epochs or _EPOCHS.get(self.data, 100)
        self.particles = self.particles or (5 if self.objective == "iwae" else 1)
        if self.binarize is None:
            self.binarize = "dynamic" if self.data in _GREY else "none"
        if self.lr is None:
            self.lr = 0.02 if self.optimizer == "adagrad" else _RATE.get(self.data, 1e-3)

    # -- what is built ----------------------------------------------------------------------------

    def widths(self) -> tuple[int, ...]:
        """The hidden widths as numbers."""
        try:
            widths = tuple(int(w) for w in self.hidden.split(","))
        except ValueError:
            widths = ()
        if not widths or min(widths) < 1:
            raise ValueError(f"--hidden: widths such as 200,200, got {self.hidden!r}.")
        return widths

    def torch_device(self) -> torch.device:
        """The device, if this machine has it."""
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"--device: cpu, cuda or cuda:1, got {self.device!r}.") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch sees no such device here. Try: cpu.")
        return device

    def likelihood_of(self, data: Dataset) -> tuple[str, dict[str, Any]]:
        """Name and arguments of p(x|z): as chosen, or what fits the data.

        Raises:
            ValueError: an unknown name, an argument that is missing or is not a number, grey
                values under a Bernoulli.
        """
        hint = data.likelihood or ("bernoulli" if _is_binary(data) else "normal")
        name, _, text = (self.likelihood or hint).partition(":")
        check_choice("--likelihood", name, likelihood_names())
        if name in _BINARY and not data.binarize and not _is_binary(data):
            raise ValueError(
                f"--likelihood {name}: {data.name} has values other than 0 and 1. Try: "
                "--binarize dynamic "
                "(or fixed) for intensities in [0, 1], or another --likelihood."
            )
        arguments = data.likelihood_args if name == data.likelihood else {}
        if text or (name in _ARGUMENT and name not in _OWN_DEFAULT and not arguments):
            arguments = _argument(name, text)
        return name, dict(arguments)

    def vae(self, data: Dataset) -> VAE:
        """A VAE for the data, its weights drawn from the seed, its output at the data's mean."""
        name, arguments = self.likelihood_of(data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VAE(
                data.data_shape,
                self.latent,
                hidden=self.widths(),
                likelihood=name,
                likelihood_args=arguments,
                posterior=self.posterior,
                prior=self.prior,
                data_mean=data.args[0].mean(0),
            )

    def objective_of(self) -> Objective:
        """What is maximized."""
        if self.objective == "iwae":
            return IWAE(self.particles)
        weight: Any = self.kl_weight
        capacity: Any = self.capacity
        if self.target_kl is not None:
            weight = TargetRate(self.target_kl)
        elif self.warm_up:
            rising = _WARM_UPS[self.warm_up_shape]
            if capacity is None:
                weight = rising(0.0, weight, epochs=self.warm_up)
            else:
                capacity = rising(0.0, capacity, epochs=self.warm_up)
        return ELBO(
            kl_weight=weight,
            free_bits=self._free_bits(),
            capacity=capacity,
            particles=self.particles or 1,
        )

    def describe_kl(self) -> list[str]:
        """What is done to the KL, in the words of the options; nothing for a plain ELBO."""
        names = (*_KL, "warm_up_shape", "free_bits_per")
        given = {n: getattr(self, n) for n in names if getattr(self, n) != getattr(Settings, n)}
        return [
            f"{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in given.items()
        ]

    def _free_bits(self) -> float | FreeBits:
        per: Any = self.free_bits_per
        if per != "unit" and not per.isdigit():
            check_choice("--free-bits-per", per, ["site", "unit"])
        if per == "site" or self.free_bits == 0:
            return self.free_bits
        return FreeBits(self.free_bits, per if per == "unit" else int(per))

    def schedule_of(self) -> Schedule:
        """Which role steps when."""
        return parse_schedule(self.schedule)

    def optimizer_of(self) -> OptimizerFactory:
        """`params -> torch.optim.Optimizer`, one fused kernel a step."""
        if self.optimizer == "adam":
            return adam(self.lr)
        fused = self.torch_device().type == "cpu"  # torch has no fused Adagrad elsewhere
        return lambda params: torch.optim.Adagrad(params, lr=self.lr, fused=fused)

    def lr_scheduler(self) -> Callable[[torch.optim.Optimizer], Any] | None:
        """`optimizer -> torch scheduler`, stepped once an epoch."""
        if self.lr_schedule == "constant":
            return None
        factor = {"cosine": _cosine, "burda": _burda}[self.lr_schedule]
        epochs = self.epochs
        return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: factor(min(epoch / epochs, 1.0))
        )

    def clock(self) -> Callable[[dict[str, Any]], bool]:
        """A callback that stops once `minutes` have passed since now."""
        end = math.inf if self.minutes is None else time.monotonic() + 60 * self.minutes
        return lambda record: time.monotonic() >= end


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings kept in a run's folder; empty for a run that was not trained from here."""
    try:
        kept = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / FILE} cannot be read: {error}.") from None
    own = {f.name for f in dataclasses.fields(Settings)}
    return {k: v for k, v in kept.items() if k in own} if isinstance(kept, dict) else {}


def _canonical(text: str) -> str:
    """The one way of writing a family and its numbers, `StudentT(df=5)`."""
    return distributions.spelling.spell_values(*distributions.parse(text))


def _is_binary(data: Dataset) -> bool:
    return bool(constraints.boolean.check(data.args[0]).all())


def _argument(name: str, text: str) -> dict[str, Any]:
    if name not in _ARGUMENT:
        raise ValueError(f"--likelihood {name} takes no argument, got {text!r}.")
    argument, kind = _ARGUMENT[name]
    try:
        return {argument: kind(text)}
    except ValueError:
        raise ValueError(
            f"--likelihood {name} needs its {argument}, a number after a colon: {name}:16."
        ) from None


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _burda(done: float) -> float:
    """Eight stages of 3^0 ... 3^7 epochs, 1 down to 0.1 (Burda et al. 2016, arXiv:1509.00519)."""
    stage = next((i for i in range(8) if 3280 * done < (3 ** (i + 1) - 1) / 2), 7)
    return round(10 ** (1 - stage / 7), 1) / 10
