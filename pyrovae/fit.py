"""The loop around a step: epochs, validation, checkpoints, progress, resume.

It knows nothing of models. Everything about what is trained is in :mod:`pyrovae.em`; everything
about what is maximized is in :mod:`pyrovae.objectives`. What is logged as ``elbo`` is always the
true bound in nats a datum, free of KL weights and scales: two epochs or two runs can be compared.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader
from tqdm import tqdm

from pyrovae.checkpoint import load_state, rng_state, save_state, set_rng_state, write_atomic
from pyrovae.datasets import Dataset, as_dataset, check_support, check_values, minibatches
from pyrovae.em import (
    Batch,
    Converge,
    Joint,
    NotFinite,
    OptimizerFactory,
    Schedule,
    VariationalEM,
    adam,
    check_schedule,
    spell_schedule,
)
from pyrovae.objectives import Objective
from pyrovae.run import CHECKPOINT, Run, program_spec
from pyrovae.traces import modules_of
from pyrovae.traces.batches import derived_seed

__all__ = ["fit"]

Callback = Callable[[dict[str, Any]], Any]
VALID_ROWS = 1000  # validation rows evaluated at once


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    objective: pyro.infer.ELBO | None = None,
    schedule: Schedule | None = None,
    optimizer: OptimizerFactory | dict[str, OptimizerFactory] | None = None,
    lr_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    epochs: int = 50,
    batch_size: int = 100,
    valid: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    callbacks: Callback | tuple[Callback, ...] | list[Callback] = (),
    compile: Literal["auto", False] = "auto",
    device: torch.device | str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: bool | None = None,
) -> Run:
    """Train a model and a guide, two Pyro programs, in place.

    The gradient is that of the bound on the whole data set divided by N: nats a datum, with N/B
    set from the data where the model's plate does not subsample by itself. Parameters live in the
    run's own store, not in Pyro's global one; ``run.export()`` puts them there.

    Args:
        model: A Pyro program p(x, z), called as ``model(*batch)``.
        guide: A Pyro program q(z|x), called likewise.
        data: A tensor `[N, ...]`, a tuple of tensors (the model's arguments), a dict (its keyword
            arguments), a :class:`pyrovae.datasets.Dataset`, the name of a data set, a path to a
            ``.npy`` or ``.npz`` file, or a ``DataLoader``.
        objective: A pyrovae objective, or Pyro's ``Trace_ELBO``, ``TraceMeanField_ELBO``,
            ``TraceGraph_ELBO`` or ``TraceEnum_ELBO``. Default :class:`pyrovae.ELBO`.
        schedule: Which role steps when: :class:`pyrovae.Joint` (the default, both on every batch),
            ``Alternating``, ``Converge``, ``Aggressive`` or ``SemiAmortized``. Inner steps get
            fresh batches, drawn uniformly with replacement from the data; a ``DataLoader``'s are
            its own, gone through from the start in each epoch.
        optimizer: ``params -> torch.optim.Optimizer``, called with all parameters, or once for
            each role where they step separately; or ``{"guide": ..., "model": ...}``. Default:
            fused Adam with learning rate 1e-3.
        lr_scheduler: ``optimizer -> torch scheduler``, stepped once an epoch
            (``ReduceLROnPlateau`` with the validation bound, or else the training bound, negated).
        epochs: Passes over the data, those of a resumed run included.
        batch_size: B. A last short batch is used as it is.
        valid: Held-out data in any of the forms of `data` but a ``DataLoader``, or a fraction of
            the data; its bound is logged every epoch.
        patience: Stop after so many epochs without a better validation bound, and go back to the
            best weights.
        clip_norm: Clip the gradient of the parameters that step (nats a datum) at this Euclidean
            norm.
        callbacks: Called after each epoch with its dictionary of history, to which they may add,
            the run's parameters in force; training stops when one returns True.
        compile: "auto" or False; this version runs eager either way.
        device: Where to train; by default where the networks are.
        seed: Of batches, noise and binarization. Torch's global generator is left as it was.
        out: Folder of the run: ``config.json``, ``metrics.jsonl``, ``checkpoint/``.
        resume: Continue the run in `out`, to the last bit on a CPU; starts anew if there is none.
        checkpoint_seconds: At most so much work is lost to a crash, and the epoch under way; 0
            saves after every epoch. The first epoch is always saved.
        progress: Show a progress bar; by default if standard error is a terminal.

    Returns:
        The trained programs with their history. Their networks are left in evaluation mode.

    Raises:
        ValueError: Data that are empty, not finite, or outside the likelihood's support;
            programs that do not fit.
        TypeError: Data of a dtype or device other than the networks'.
        FloatingPointError: The bound or a gradient is not finite. That step has moved no weight.
        FileExistsError: `out` holds a run, and `resume` is False.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.models.VAE(data_shape=4, latent=2, hidden=8)
        >>> run = pv.fit(vae.model, vae.guide, torch.ones(10, 4), epochs=2, progress=False)
        >>> [sorted(h)[:2] for h in run.history]
        [['elbo', 'epoch'], ['elbo', 'epoch']]
    """
    schedule = schedule or Joint()
    _check_settings(epochs, batch_size, patience, valid, compile)
    _check_schedule(schedule, valid)
    callbacks = _callbacks(callbacks)
    optimizers = _optimizers(optimizer)
    device = _device_of(model, guide) if device is None else torch.device(device)
    for module in modules_of(model, guide):
        module.to(device)
    data, valid = _sources(data, valid, batch_size, device, seed)
    _check_held_out(schedule, valid)
    folder = None if out is None else Path(out)
    saved = _saved_state(folder, resume)
    em = VariationalEM(
        model,
        guide,
        objective,
        optimizers["guide"],
        optimizers["model"],
        schedule=schedule,
        data_size=data.size,
        clip_norm=clip_norm,
    )
    if isinstance(em.objective, Objective):
        em.objective.begin(data.steps)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        example = data.example()
        _check_devices(model, guide, example, device)
        em.prepare(*example[0], **example[1])
        _check_against_support(em, data, example)
        loop = _Loop(em, data, valid, lr_scheduler, device, folder, checkpoint_seconds, example)
        config = _config(em, data, valid, batch_size, seed, clip_norm)
        if saved is not None:
            loop.load(saved, config)
        loop.start(config)
        history = loop.run(epochs, patience, callbacks, progress)
    for module in modules_of(model, guide):
        module.eval()
    return Run(em, history, folder, config)


# Data ------------------------------------------------------------------------------------------


class _Tensors:
    """Minibatches of a data set in memory: index tensors on the device."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.size = len(dataset)
        self.steps = -(-self.size // batch_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.fresh_generator = torch.Generator().manual_seed(derived_seed(seed, -1))

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = torch.arange(min(self.batch_size, self.size))
        return self.dataset.take(first, torch.Generator().manual_seed(0))

    def batches(self) -> Iterator[tuple[Tensor | None, tuple[Any, ...], dict[str, Any]]]:
        device = self.dataset.device
        for index in minibatches(self.size, self.batch_size, self.generator, device=device):
            yield index, *self.dataset.take(index, self.generator)

    def fresh(self) -> Iterator[Batch]:
        """Batches without end, rows drawn uniformly with replacement, binarized anew."""
        size, rng = (min(self.batch_size, self.size),), self.fresh_generator
        while True:
            index = torch.randint(self.size, size, generator=rng).to(self.dataset.device)
            yield Batch(*self.dataset.take(index, rng), index)

    def describe(self) -> dict[str, Any]:
        return self.dataset.describe()


class _Loader:
    """Minibatches of a torch DataLoader.

    A batch is the model's arguments, or its keyword arguments if it is a dict.
    """

    generator = fresh_generator = None

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self.loader, self.device = loader, device
        try:
            self.size, self.steps = len(loader.dataset), len(loader)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                "fit: the DataLoader's dataset has no length, "
                "and N is needed to scale global terms. Expected: a dataset with __len__. "
                "Try: add __len__ to the dataset (an iterable one too)."
            ) from None
        if self.size == 0 or self.steps == 0:
            raise ValueError("fit: the DataLoader yields no batch. Expected: at least one datum.")

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        with torch.random.fork_rng():
            return self._arguments(next(iter(self.loader)))

    def batches(self) -> Iterator[tuple[Tensor | None, tuple[Any, ...], dict[str, Any]]]:
        for batch in self.loader:
            args, kwargs = self._arguments(batch)
            check_values(args, kwargs, where="fit: a batch of the DataLoader")
            yield None, args, kwargs

    def fresh(self) -> Iterator[Batch]:
        """Batches without end: the loader's own, gone through again and again."""
        while True:
            for _, args, kwargs in self.batches():
                yield Batch(args, kwargs)

    def _arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def move(x: Any) -> Any:
            return x.to(self.device) if isinstance(x, Tensor) else x

        if isinstance(batch, dict):
            return (), {name: move(x) for name, x in batch.items()}
        parts = batch if isinstance(batch, (list, tuple)) else [batch]
        return tuple(move(x) for x in parts), {}

    def describe(self) -> dict[str, Any]:
        return {"name": type(self.loader.dataset).__name__, "size": self.size}


def _sources(data: Any, valid: Any, batch_size: int, device: torch.device, seed: int) -> Any:
    """The training batches, and the validation data as arguments (drawn once where binarized)."""
    fraction = valid if isinstance(valid, float) else None
    if isinstance(data, DataLoader):
        if fraction is not None:
            raise ValueError(
                "fit: valid as a fraction needs data in memory. Try: a second data set."
            )
        source: Any = _Loader(data, device)
    else:
        dataset = as_dataset(data).to(device)
        if fraction is not None:
            dataset, valid = dataset.split(fraction, seed)
        source = _Tensors(dataset, batch_size, seed)
    held_out = None if valid is None else as_dataset(valid).to(device)
    return source, held_out


# The loop --------------------------------------------------------------------------------------


@dataclass
class _Best:
    elbo: float = -float("inf")
    epoch: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)


def _says_stop(answer: Any) -> bool:
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


class _Loop:
    def __init__(
        self,
        em: VariationalEM,
        data: Any,
        valid: Dataset | None,
        lr_scheduler: Callable[[torch.optim.Optimizer], Any] | None,
        device: torch.device,
        folder: Path | None,
        checkpoint_seconds: float,
        example: Any,
    ) -> None:
        self.em, self.data, self.device, self.folder = em, data, device, folder
        self.valid = None if valid is None else valid.realize(seed=0)
        self.schedulers = (
            {role: lr_scheduler(o) for role, o in em.optimizers.items()} if lr_scheduler else {}
        )
        self.checkpoint_seconds, self.example = checkpoint_seconds, example
        self.history: list[dict[str, Any]] = []
        self.best = _Best()
        self.step = 0
        self.saved_at = -math.inf  # the first epoch is kept, however quick

    def run(
        self, epochs: int, patience: int | None, callbacks: Any, progress: bool | None
    ) -> list[dict[str, Any]]:
        total, done = epochs * self.data.steps, len(self.history) * self.data.steps
        quiet = None if progress is None else not progress  # None: only on a terminal
        stopped = self._out_of_patience(patience)
        with tqdm(total=total, initial=done, unit="step", disable=quiet, leave=False) as bar:
            while len(self.history) < epochs and not stopped:
                record = self._epoch(bar)
                self.history.append(record)
                self._remember_best(record, patience)
                with self.em.scope:  # a callback may call the programs as they are now
                    stopped = any([_says_stop(callback(record)) for callback in callbacks])
                stopped = stopped or self._out_of_patience(patience)
                self._save(final=stopped or len(self.history) >= epochs)
        if patience is not None and self.best.params:
            self.em.load_params(self.best.params, self.best.buffers)
        return self.history

    def _epoch(self, bar: Any) -> dict[str, Any]:
        began = time.perf_counter()
        for module in modules_of(self.em.model, self.em.guide):
            module.train()
        self.em.thorough = not self.history  # every datum is seen once by Pyro's own checks
        # anew in each epoch: how far a loader has been gone through is in no checkpoint
        fresh = self.data.fresh() if self.em.schedule.needs_batches else None
        sums = torch.zeros(())  # of the figures below, by datum
        seen = inner = rested = 0
        for index, args, kwargs in self.data.batches():
            try:
                record = self.em.step(*args, batches=fresh, **kwargs)
            except NotFinite as error:
                raise self._located(error, index) from None
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"fit: {error}. BatchNorm needs two data, and the last batch of the epoch "
                    f"holds one. Try: another batch_size; or one datum less."
                ) from error
            inner, rested = inner + record.inner_steps, rested + bool(record.converged)
            values = {"elbo": record.elbo, "objective": record.objective} | record.figures
            values["grad_norm"] = record.grad_norm
            stacked = record.size * torch.stack(list(values.values())).double()
            sums = stacked if seen == 0 else sums + stacked
            seen += record.size
            self.step += 1
            if bar.update():  # it has just been drawn anew
                bar.set_postfix_str(f"elbo {sums[0].item() / seen:.2f} nats", refresh=False)
        means = dict(zip(values, (sums / seen).tolist(), strict=True))
        record = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            **means,
            "lr": float(next(iter(self.em.optimizers.values())).param_groups[0]["lr"]),
        }
        if not isinstance(self.em.schedule, Joint):
            record["inner_steps"] = inner
        if isinstance(self.em.schedule, Converge):
            record["converged"] = rested / self.data.steps
        held_out = None if self.valid is None else Batch(*self.valid)
        record |= self.em.end_epoch(held_out)
        if self.valid is not None:
            record["valid_elbo"] = self.em.evaluate(*self.valid, rows=VALID_ROWS)
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(-record.get("valid_elbo", record["elbo"]))
            else:
                scheduler.step()
        record["seconds"] = time.perf_counter() - began
        return record

    def _located(self, error: NotFinite, index: Tensor | None) -> FloatingPointError:
        if error.batch is not None and error.batch.index is not None:  # of an inner step
            index = error.batch.index
        rows = "" if index is None else f", row(s) {index[error.rows[:5]].tolist()} of the data"
        has_one = self.folder is not None and (self.folder / CHECKPOINT[0]).is_dir()
        kept = f" The last checkpoint in {self.folder} is intact." if has_one else ""
        return FloatingPointError(
            f"fit: epoch {len(self.history) + 1}, step {self.step + 1}{rows}: {error}{kept}"
        )

    def _remember_best(self, record: dict[str, Any], patience: int | None) -> None:
        if patience is not None and record["valid_elbo"] > self.best.elbo:
            state = self.em.state_dict()
            params = {
                role: {n: p.detach().clone() for n, p in leaves.items()}
                for role, leaves in state["params"].items()
            }
            buffers = {n: b.clone() for n, b in state["buffers"].items()}
            self.best = _Best(record["valid_elbo"], record["epoch"], params, buffers)

    def _out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and len(self.history) - self.best.epoch >= patience > 0

    # Files -------------------------------------------------------------------------------------

    def start(self, config: dict[str, Any]) -> None:
        """Write the configuration, and the history as far as it goes."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        self._write_metrics()

    def _write_metrics(self) -> None:
        if self.folder is not None:
            lines = "".join(json.dumps(record) + "\n" for record in self.history)
            write_atomic(self.folder / "metrics.jsonl", lines.encode())

    def _save(self, final: bool) -> None:
        if self.folder is None:
            return
        if not final and time.monotonic() - self.saved_at < self.checkpoint_seconds:
            return
        state = {
            "em": self.em.state_dict(),
            "schedulers": {role: s.state_dict() for role, s in self.schedulers.items()},
            "rng": rng_state(self.device),
            "data_rng": _state_of(self.data.generator),
            "fresh_rng": _state_of(self.data.fresh_generator),
            "history": self.history,
            "step": self.step,
            "best": vars(self.best),
            "example": {"args": self.example[0], "kwargs": self.example[1]},
        }
        save_state(self.folder / CHECKPOINT[0], CHECKPOINT[1], state)
        self._write_metrics()
        self.saved_at = time.monotonic()

    def load(self, state: dict[str, Any], config: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.saved_at = time.monotonic()
        old = json.loads((self.folder / "config.json").read_text()) if self.folder else config
        old.setdefault("schedule", "joint")  # runs of earlier versions
        for key in ("data", "batch_size", "seed", "objective", "schedule"):
            if old.get(key) != config[key]:
                raise ValueError(
                    f"fit: resume=True, but {key} is not that of the run in {self.folder}: "
                    f"{old.get(key)} there, {config[key]} here. Expected: the same run continued. "
                    f"Try: the same arguments with more epochs, or another out= for a new run."
                )
        if state["schedulers"].keys() != self.schedulers.keys():
            raise ValueError(
                f"fit: the run in {self.folder} was trained "
                f"{'with' if state['schedulers'] else 'without'} lr_scheduler=, this call is not. "
                f"Expected: the same run continued. Try: the arguments of the first call."
            )
        self.em.load_state_dict(state["em"])
        for role, saved in state["schedulers"].items():
            self.schedulers[role].load_state_dict(saved)
        set_rng_state(state["rng"], self.device)
        if self.data.generator is not None:
            self.data.generator.set_state(state["data_rng"])
            if "fresh_rng" in state:  # absent from runs of earlier versions
                self.data.fresh_generator.set_state(state["fresh_rng"])
        self.history, self.step = state["history"], state["step"]
        self.best = _Best(**state["best"])
        if not self.best.params:  # patience begins to count now
            self.best.epoch = len(self.history)


# Checks ----------------------------------------------------------------------------------------


def _check_settings(
    epochs: int, batch_size: int, patience: int | None, valid: Any, compile: Any
) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fit: {name} must be an integer of at least 1, got {value!r}.")
    if patience is not None and (valid is None or patience < 1):
        raise ValueError(
            f"fit: patience={patience} needs validation data to judge by, and at least one "
            f"epoch. Try: valid=0.1."
        )
    if compile not in ("auto", False):
        raise ValueError(f'fit: compile must be "auto" or False in this version, got {compile!r}.')


def _check_schedule(schedule: Any, valid: Any) -> None:
    check_schedule(schedule, "fit")
    if schedule.needs_valid and valid is None:
        raise ValueError(
            f"fit: {type(schedule).__name__} ends by the mutual information on held-out data, and "
            f"there are none. Expected: validation data. Try: valid=0.1; valid=another data set; "
            f"or a schedule that needs none, pv.Aggressive(stop=5)."
        )


def _check_held_out(schedule: Schedule, valid: Dataset | None) -> None:
    if schedule.needs_valid and valid is not None and len(valid) < 2:
        raise ValueError(
            f"fit: {schedule!r} ends by the mutual information on held-out data, which is 0 for "
            f"one datum whatever the guide does, and there is {len(valid)}. Expected: at least 2 "
            f"data, better hundreds. Try: a larger fraction as valid=; pv.Aggressive(stop=5)."
        )


def _callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks as a list; a single one may stand by itself."""
    if callable(callbacks):
        return [callbacks]
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(
                f"fit: callbacks holds {callback!r}. Expected: functions of the epoch's record, a "
                f"dictionary. Try: callbacks=[lambda record: print(record)]."
            )
    return list(callbacks)


def _optimizers(optimizer: Any) -> dict[str, OptimizerFactory]:
    """A factory for each role; the same object where one serves both."""
    if not isinstance(optimizer, Mapping):
        optimizer = adam() if optimizer is None else optimizer
        return {"guide": optimizer, "model": optimizer}
    if set(optimizer) != {"guide", "model"}:
        raise ValueError(
            f"fit: optimizer has the keys {sorted(optimizer)}. Expected: a callable for both "
            f'roles, or {{"guide": ..., "model": ...}}.'
        )
    return dict(optimizer)


def _state_of(generator: torch.Generator | None) -> Tensor | None:
    return None if generator is None else generator.get_state()


def _saved_state(folder: Path | None, resume: bool) -> dict[str, Any] | None:
    if resume and folder is None:
        raise ValueError("fit: resume=True needs out=, the folder of the run to continue.")
    if folder is None or not (folder / CHECKPOINT[0]).is_dir():
        return None
    if not resume:
        raise FileExistsError(
            f"fit: {folder} already holds a run. Expected: an empty or new folder. "
            f"Try: resume=True to continue it, or another out=; nothing has been changed."
        )
    return load_state(folder / CHECKPOINT[0], CHECKPOINT[1])


def _device_of(*programs: Any) -> torch.device:
    for module in modules_of(*programs):
        for parameter in module.parameters():
            return parameter.device
    return torch.empty(0).device


def _check_devices(model: Any, guide: Any, example: Any, device: torch.device) -> None:
    dtypes = {
        p.dtype for m in modules_of(model, guide) for p in m.parameters() if p.is_floating_point()
    }
    floats = [x for x in (*example[0], *example[1].values()) if isinstance(x, Tensor)]
    for x in floats:
        if x.is_floating_point() and len(dtypes) == 1 and x.dtype not in dtypes:
            raise TypeError(
                f"fit: the data are {x.dtype}, the networks {next(iter(dtypes))}. "
                f"Expected: one dtype. Try: data.to({next(iter(dtypes))}), "
                f"or module.to({x.dtype})."
            )
        if x.device.type != device.type:
            raise TypeError(
                f"fit: the data are on {x.device}, the networks on {device}. Try: device=."
            )


def _check_against_support(em: VariationalEM, data: Any, example: Any) -> None:
    """Before a weight moves, check each datum against the support of the site that observes it."""
    if not isinstance(data, _Tensors):
        return
    given = {id(x): i for i, x in enumerate(example[0])} | {
        id(x): n for n, x in example[1].items()
    }
    for name, site in em.observed.items():
        key = given.get(id(site.value))
        if key is None:
            continue
        if key == 0 and data.dataset.binarize:
            values = example[0][0]  # drawn from the intensities: in {0, 1} by construction
        else:
            values = data.dataset.args[key] if isinstance(key, int) else data.dataset.kwargs[key]
        try:
            check_support(
                values, _plain(site.fn.support), f"fit: site '{name}' ({_family(site.fn)})"
            )
        except (NotImplementedError, RuntimeError):
            continue  # a support with a shape of its own: left to Pyro


def _plain(support: Any) -> Any:
    """A support whose bounds are one number each, where they were written for one batch."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = copy.copy(support)
    for bound in ("lower_bound", "upper_bound"):
        value = getattr(support, bound, None)
        if isinstance(value, Tensor) and (value == value.flatten()[0]).all():
            setattr(support, bound, value.flatten()[0].item())
    return support


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _config(
    em: VariationalEM, data: Any, valid: Any, batch_size: int, seed: int, clip_norm: float | None
) -> dict[str, Any]:
    objective = {
        k: v.describe() if hasattr(v, "describe") else v.item() if isinstance(v, Tensor) else v
        for k, v in vars(em.objective).items()
        if isinstance(v, (bool, int, str, Tensor))
        or (isinstance(v, float) and v != float("inf"))
        or hasattr(v, "describe")
    }
    # a bound on plate nesting is learnt in the first step of Pyro's losses, not chosen
    objective.pop("max_plate_nesting", None)
    return {
        "program": program_spec(em.model, em.guide),
        "objective": {"name": type(em.objective).__name__} | objective,
        "schedule": spell_schedule(em.schedule),
        "optimizer": {role: repr(o) for role, o in em.optimizers.items()},
        "parameters": {r: sum(p.numel() for p in ps.values()) for r, ps in em.params.items()},
        "data": data.describe(),
        "valid": None if valid is None else valid.describe(),
        "batch_size": batch_size,
        "clip_norm": clip_norm,
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro": pyro.__version__,
        },
    }
