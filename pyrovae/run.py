"""What training leaves behind: the trained programs, their parameters, the history, a folder.

A Pyro program does not hold its own ``pyro.param`` values; they live in a global store. A
:class:`Run` keeps them, and hands out the programs wrapped so that they find their own wherever
they are called.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pyrovae.checkpoint import CheckpointError, load_state
from pyrovae.em import VariationalEM
from pyrovae.models import VAE, AutoEncoder, CodeModel, SequenceVAE
from pyrovae.traces import ParamScope, Scoped, evaluating, modules_of

__all__ = ["Run", "load_run", "program_spec"]

CHECKPOINT = ("checkpoint", "last")
OWN = {  # models that say how they were built, .config
    "vae": VAE,
    "sequence": SequenceVAE,
    "autoencoder": AutoEncoder,
    "codes": CodeModel,
}


class Run:
    """A trained pair of programs.

    Attributes:
        model: The model, carrying its parameters with it wherever it is called.
        guide: The guide, likewise.
        history: One dictionary an epoch, with keys ``epoch``, ``step``, ``elbo`` (the true bound,
            nats a datum), ``objective`` (what was maximized), ``kl`` (mean KL(q || p), nats a
            datum), ``kl_weight``, ``valid_elbo``, ``lr`` (of the model's optimizer where there
            are two), ``grad_norm`` and ``seconds``; means over the steps of the epoch. Some
            trainings have more: ``capacity`` its target; schedules ``inner_steps``, the E-steps
            of the epoch, and ``converged``, the share of its steps whose E-steps came to rest
            (:class:`~pyrovae.Converge`), or ``aggressive`` and ``mutual_information`` (nats, on
            held-out data: :class:`~pyrovae.Aggressive`); callbacks what they add.
        path: The folder of the run, or None.
        config: What was run: sizes, seeds, versions, data.
    """

    def __init__(
        self,
        em: VariationalEM,
        history: list[dict[str, Any]],
        path: Path | None,
        config: dict[str, Any],
    ) -> None:
        self._em = em
        self.model: Callable[..., Any] = Scoped(em.model, em.scope)
        self.guide: Callable[..., Any] = Scoped(em.guide, em.scope)
        self.history = history
        self.path = path
        self.config = config

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        elbo = f", elbo={last['elbo']:.4f} nats" if last else ""
        where = f", path='{self.path}'" if self.path else ""
        return f"Run(epochs={len(self.history)}{elbo}{where})"

    @property
    def params(self) -> dict[str, torch.Tensor]:
        """Every trained parameter by name, unconstrained, as the optimizer saw it."""
        return {name: p for leaves in self._em.params.values() for name, p in leaves.items()}

    def scope(self) -> ParamScope:
        """The run's parameters in force: ``with run.scope(): pyro.param("loc")``."""
        return self._em.scope

    def export(self) -> None:
        """Put the run's parameters into the parameter store now in force, for plain Pyro code."""
        self._em.scope.export()

    def evaluating(self) -> AbstractContextManager[None]:
        """No gradients and every network in evaluation mode: ``with run.evaluating(): ...``."""
        return evaluating(self._em.model, self._em.guide)


def program_spec(model: Any, guide: Any) -> dict[str, Any]:
    """How a pair can be built again: a model's arguments, or the functions' import paths.

    Empty for programs that cannot be found by name (closures, lambdas); :func:`load_run` then
    needs them given.
    """
    owner = getattr(model, "__self__", None)
    for kind, made in OWN.items():
        if type(owner) is made and getattr(guide, "__self__", None) is owner:
            return {} if owner.config is None else {kind: owner.config}
    names = {}
    for role, program in (("model", model), ("guide", guide)):
        module, name = getattr(program, "__module__", None), getattr(program, "__qualname__", "<")
        if module in (None, "__main__") or "<" in name or "." in name:
            return {}
        names[role] = f"{module}:{name}"
    return names


def load_run(path: str | Path, model: Any = None, guide: Any = None) -> Run:
    """Load a run's folder, ready to evaluate.

    ``fit(..., out=path, resume=True)`` continues its training instead.

    Args:
        path: The folder given as ``out`` when the run was trained.
        model: The model, built with the same sizes; only needed for programs that cannot be
            imported by name.
        guide: The guide, likewise.

    Raises:
        CheckpointError: The folder holds no complete checkpoint, or a damaged or foreign one.
        ValueError: The programs are needed, or do not fit the saved parameters.
    """
    path = Path(path)
    state = load_state(path / CHECKPOINT[0], CHECKPOINT[1])
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"load_run: {path / 'config.json'} cannot be read: {error}. "
            f"Expected: the folder of a run. Try: the folder given as out= when it was trained."
        ) from None
    if (model is None) != (guide is None):
        raise ValueError("load_run: give both model and guide, or neither.")
    example, params = state["example"], state["em"]["params"]
    with torch.random.fork_rng():
        if model is None:
            model, guide = _rebuild(config["program"], path)
        for module in modules_of(model, guide):
            _cast(module, params)
        em = VariationalEM(model, guide)
        names = {name for leaves in params.values() for name in leaves}
        em.find_params(example["args"], example["kwargs"], names)
    best = state["best"]  # where training stopped early, these are the weights it went back to
    kept = best if best["params"] else state["em"]
    em.load_params(kept["params"], kept["buffers"])
    for module in modules_of(model, guide):
        module.eval()
    return Run(em, state["history"], path, config)


def _cast(module: torch.nn.Module, params: dict[str, dict[str, torch.Tensor]]) -> None:
    """Give a network the floating dtype of the saved parameters, where they have one."""
    dtypes = {p.dtype for leaves in params.values() for p in leaves.values()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())


def _rebuild(spec: dict[str, Any], path: Path) -> tuple[Any, Any]:
    for kind in OWN.keys() & spec.keys():
        made = OWN[kind].from_config(spec[kind])
        return made.model, made.guide
    if not spec:
        raise ValueError(
            f"load_run: the programs of {path} cannot be imported by name (closures, "
            f"or functions of __main__). Expected: the pair that was trained. "
            f"Try: pv.load_run(path, model=model, guide=guide)."
        )
    pair = []
    for role in ("model", "guide"):
        module, _, name = spec[role].partition(":")
        try:
            pair.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"load_run: the {role} {spec[role]} of {path} cannot be imported: {error}. "
                f"Try: run from the folder that holds it, "
                f"or pv.load_run(path, model=model, guide=guide)."
            ) from None
    return pair[0], pair[1]
