r"""Variational EM: which parameters step when.

A latent-variable model p(x, z; theta) and its guide q(z|x; phi) climb the same bound
:math:`\mathcal L(\theta, \phi) \le \log p(x; \theta)`: the E-step in phi, the M-step in theta.
Auto-encoding variational Bayes takes both at once, a schedule called :class:`Joint` here.

:class:`VariationalEM` owns what a run needs and Pyro's global store does not give: the parameters
of each role, found by running the programs; a store of the run's own
(:class:`~pyrovae.traces.ParamScope`); one torch optimizer a role; gradients that are fresh at
every step; a refusal to move when a number is not finite.

Source: Kingma & Welling (2014), arXiv:1312.6114, Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyrovae.objectives import ELBO, Objective
from pyrovae.traces import (
    DataPlate,
    ParamScope,
    Site,
    Terms,
    data_plate_of,
    evaluating,
    frozen_buffers,
    modules_of,
    probe,
    with_data_scale,
)

__all__ = ["Joint", "NotFinite", "OptimizerFactory", "StepRecord", "VariationalEM", "adam"]

AnyProgram = Callable[..., Any]
OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
ROLES = ("model", "guide")


def adam(lr: float = 1e-3, **options: Any) -> OptimizerFactory:
    """The default optimizer: Adam, fused where torch can (one kernel a step instead of many)."""
    return lambda params: torch.optim.Adam(params, lr=lr, fused=True, **options)


@dataclass(frozen=True)
class Joint:
    """Both roles step on every batch: auto-encoding variational Bayes.

    Source: Kingma & Welling (2014), arXiv:1312.6114, Algorithm 1.
    """


@dataclass
class StepRecord:
    """What one step saw.

    Attributes:
        elbo: The true bound, nats a datum.
        objective: What was maximized, nats a datum.
        size: B, the number of data in the step.
        grad_norm: Euclidean norm of the gradient of all parameters, before clipping.
    """

    elbo: Tensor
    objective: Tensor
    size: int
    grad_norm: Tensor | None = None


class NotFinite(FloatingPointError):
    """A step was refused because a number was not finite.

    `rows` are the rows of its batch that caused it, as far as they are known.
    """

    def __init__(self, message: str, rows: list[int] | None = None) -> None:
        super().__init__(message)
        self.rows = rows or []


class VariationalEM:
    """Train a model and a guide, each by its own optimizer, in a parameter store of their own.

    Args:
        model: A Pyro program p(x, z).
        guide: A Pyro program q(z|x).
        objective: A pyrovae objective, or Pyro's ``Trace_ELBO``, ``TraceMeanField_ELBO``,
            ``TraceGraph_ELBO`` or ``TraceEnum_ELBO``; by default ``ELBO()``.
        e_optimizer: ``params -> torch.optim.Optimizer`` for the guide's parameters.
        m_optimizer: The same for the model's. By default the same callable, called once for the
            parameters of both roles, since :class:`Joint` steps them alike.
        schedule: Which role steps when; :class:`Joint` by default.
        data_size: N, the number of data; sets N/B where the plate does not subsample by itself.
        clip_norm: Clip the joint gradient of both roles at this Euclidean norm.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.models.VAE(data_shape=4, latent=2, hidden=8)
        >>> em = pv.VariationalEM(vae.model, vae.guide, pv.ELBO())
        >>> record = em.step(torch.ones(3, 4))
        >>> record.elbo.shape
        torch.Size([])
    """

    def __init__(
        self,
        model: AnyProgram,
        guide: AnyProgram,
        objective: pyro.infer.ELBO | None = None,
        e_optimizer: OptimizerFactory | None = None,
        m_optimizer: OptimizerFactory | None = None,
        schedule: Joint | None = None,
        *,
        data_size: int | None = None,
        clip_norm: float | None = None,
    ) -> None:
        if schedule is not None and not isinstance(schedule, Joint):
            raise TypeError(f"VariationalEM: schedule must be pv.Joint(), got {schedule!r}.")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"VariationalEM: clip_norm must be positive, got {clip_norm}.")
        _check_objective(objective)
        self.model, self.guide = model, guide
        self.objective = ELBO() if objective is None else objective
        self.schedule = schedule or Joint()
        self.data_size = data_size
        self.clip_norm = clip_norm
        self.scope = ParamScope()
        self.params: dict[str, dict[str, Tensor]] = {}  # role -> name -> unconstrained leaf
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._leaves: list[Tensor] = []
        e_optimizer = e_optimizer or adam()
        self._factories = {"guide": e_optimizer, "model": m_optimizer or e_optimizer}
        self.observed: dict[str, Site] = {}  # the model's observed sites on the first batch
        self.thorough = False  # validate every step, not only the first
        self._checked = False
        self._frozen = False
        self._plate: DataPlate

    # What the programs own ---------------------------------------------------------------------

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Find the programs' parameters by one run without training, and make the optimizers."""
        if not self.params:
            self.find_params(args, kwargs)

    def find_params(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], known: Collection[str] | None = None
    ) -> None:
        """:meth:`prepare`; `known` names the undeclared parameters of a saved run."""
        modules = modules_of(self.model, self.guide)
        self._frozen = any(not p.requires_grad for m in modules for p in m.parameters())
        with self._in_force():
            _, guided, modelled = self._probe(args, kwargs)
            declared = {"model": modelled.params, "guide": guided.params}
            undeclared = self._undeclared(modelled.params | guided.params, args, kwargs, known)
        self.observed = {name: site for name, site in modelled.sites.items() if site.is_observed}
        self._plate = data_plate_of(modelled, getattr(self.objective, "data_plate", None))
        params = {role: declared[role] | undeclared[role] for role in ROLES}
        # what both use belongs to the model
        theirs = {id(leaf) for leaf in params["model"].values()}
        params["guide"] = {n: p for n, p in params["guide"].items() if id(p) not in theirs}
        self.params = params
        self._leaves = [leaf for leaves in params.values() for leaf in leaves.values()]
        if not self._leaves:
            raise ValueError(
                "the programs own no trainable parameter. Expected: pyro.module, pyro.param, "
                "a PyroModule, or a network with requires_grad in a closure. "
                "Try: register the networks with pyro.module."
            )
        self.optimizers = self._make_optimizers()

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Make one optimizer a role, or a single one where both roles always step alike."""
        factories = self._factories
        if factories["model"] is factories["guide"]:
            return {"joint": factories["model"](self._leaves)}
        leaves = {role: list(self.params[role].values()) for role in ROLES}
        return {role: factories[role](found) for role, found in leaves.items() if found}

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """The run's own parameters in force; no warnings about parameters frozen on purpose."""
        with self.scope:
            if not self._frozen:
                yield
                return
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*was not registered in the param store"
                )
                yield

    def _probe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return probe(self.model, self.guide, args, kwargs)
        except (RuntimeError, IndexError) as error:
            shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
            raise RuntimeError(
                f"the programs could not be run on a batch with arguments of shapes {shapes}: "
                f"{error}\nExpected: data [B, ...] of the shape the networks were built for. "
                f"Try: run guide(x), then model(x), on one batch; compare the size that the first "
                f"layer expects with x.shape."
            ) from error

    def _undeclared(
        self,
        declared: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: Collection[str] | None,
    ) -> dict[str, dict[str, Tensor]]:
        """Trainable parameters of networks that the programs use but never declare to Pyro."""
        known = {id(leaf) for leaf in declared.values()}
        found: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
        for role in ROLES:
            for i, module in enumerate(modules_of(getattr(self, role))):
                for name, parameter in module.named_parameters():
                    if parameter.requires_grad and id(parameter) not in known:
                        known.add(id(parameter))
                        found[role][f"{role}.{i}.{name}"] = parameter
        candidates = [p for leaves in found.values() for p in leaves.values()]
        if not candidates:
            return found
        if names is not None:
            used = {id(p) for ps in found.values() for n, p in ps.items() if n in names}
        elif isinstance(self.objective, Objective):
            frozen = frozen_buffers(self.model, self.guide)
            with torch.enable_grad(), torch.random.fork_rng(), frozen:
                loss = self.objective.differentiable_loss(self.model, self.guide, *args, **kwargs)
                grads = torch.autograd.grad(loss, candidates, allow_unused=True)
            used = {id(p) for p, g in zip(candidates, grads, strict=True) if g is not None}
        else:
            # Pyro's losses may have no differentiable_loss; an unused parameter never moves anyway
            used = {id(p) for p in candidates}
        return {
            r: {n: p for n, p in leaves.items() if id(p) in used} for r, leaves in found.items()
        }

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Every buffer of the networks (BatchNorm's statistics, ...), by a stable name."""
        return {
            f"{i}.{name}": buffer
            for i, module in enumerate(modules_of(self.model, self.guide))
            for name, buffer in module.named_buffers()
        }

    # Steps -------------------------------------------------------------------------------------

    def step(self, *args: Any, batches: Iterable[Any] | None = None, **kwargs: Any) -> StepRecord:
        """One step on one batch, the arguments of both programs.

        Args:
            *args: The batch.
            batches: Fresh batches for the inner E-steps of a schedule that has them.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The record of the step, with the true ELBO in nats a datum.

        Raises:
            FloatingPointError: The objective or a gradient is not finite; no weight has moved.
        """
        self.prepare(*args, **kwargs)
        checks = self.thorough or not self._checked
        validate = checks and pyro.poutine.util.is_validation_enabled()
        with self._in_force(), torch.enable_grad(), pyro.validation_enabled(validate):
            record = self._joint_step(args, kwargs)
        self._checked = True
        return record

    def _joint_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepRecord:
        self._zero_grad()
        try:
            if isinstance(self.objective, Objective):
                record = self._backward(self.objective, args, kwargs)
            else:
                record = self._pyro_backward(args, kwargs)
            record.grad_norm = self._checked_norm(record)
            for optimizer in self.optimizers.values():
                optimizer.step()
        finally:
            self._zero_grad()
        return record

    def _backward(self, objective: Objective, args: Any, kwargs: Any) -> StepRecord:
        terms = objective.terms(self.model, self.guide, *args, **kwargs)
        plate, scale = terms.plate, self.scale_of(terms.plate)
        total = objective.unscaled_of(terms, scale)
        total.backward(total.new_full((), -1 / plate.size))
        with torch.no_grad():
            elbo = maximized = total / plate.size
            if not objective.is_bound(terms):
                elbo = objective.bound_of(terms, scale * plate.size).mean()
        if not torch.isfinite(maximized):
            raise _which_datum(objective, terms)
        return StepRecord(elbo, maximized, plate.size)

    def _pyro_backward(self, args: Any, kwargs: Any) -> StepRecord:
        programs, size = self._scaled_programs(args, kwargs)
        loss = torch.as_tensor(self.objective.loss_and_grads(*programs, *args, **kwargs))
        if not torch.isfinite(loss):
            raise NotFinite(f"{type(self.objective).__name__}: the loss is {loss.item()}.")
        return StepRecord(-loss, -loss, size)

    def _scaled_programs(self, args: Any, kwargs: Any) -> tuple[list[AnyProgram], int]:
        """Both programs for Pyro's losses: N/B where the plate lacks it, and all of it over N."""
        plate = self._plate
        size = self._plate_size(args, kwargs)
        own = plate.full_size != plate.size  # the plate subsamples by itself
        total = plate.full_size if own else (self.data_size or size)
        factor = 1.0 if own else total / size
        return [
            with_data_scale(program, plate.name, factor, 1 / total)
            for program in (self.model, self.guide)
        ], size

    def _plate_size(self, args: Any, kwargs: Any) -> int:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() > 0:
                return value.shape[0]
        return self._plate.size

    def scale_of(self, plate: DataPlate) -> float:
        """N/B: the plate's own where it subsamples, else N over the plate's size."""
        if plate.full_size != plate.size or self.data_size is None:
            return plate.scale
        return self.data_size / plate.size

    def _checked_norm(self, record: StepRecord) -> Tensor:
        leaves = [leaf for leaf in self._leaves if leaf.grad is not None]
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(leaves, self.clip_norm)
        else:
            norm = _norm([leaf.grad for leaf in leaves])
        if torch.isfinite(norm):
            return norm
        bad = [
            name
            for params in self.params.values()
            for name, leaf in params.items()
            if leaf.grad is not None and not torch.isfinite(leaf.grad).all()
        ]
        if not bad:  # only the norm is too large for its format
            return norm
        raise NotFinite(
            f"the gradient of parameter(s) {bad[:5]} is not finite "
            f"(the objective is {record.objective.item():.6g}). No weight has moved. "
            f"Try: a smaller learning rate, clip_norm=, or a bounded scale in the network's "
            f"head (pyrovae.nn.Head)."
        )

    def _zero_grad(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None

    def end_epoch(self, valid: Any = None) -> None:
        """Tell the schedule that an epoch has ended; `valid` is its validation data."""

    def evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int = 1000) -> float:
        """The true bound on given data, nats a datum, in evaluation mode.

        The noise is the same at every call.
        """
        size = self._plate_size(args, kwargs)
        total = 0.0
        with self._in_force(), evaluating(self.model, self.guide), torch.random.fork_rng():
            torch.manual_seed(0)
            for start in range(0, size, rows):
                part = slice(start, start + rows)
                batch = tuple(x[part] for x in args), {k: x[part] for k, x in kwargs.items()}
                if isinstance(self.objective, Objective):
                    terms = self.objective.terms(self.model, self.guide, *batch[0], **batch[1])
                    data_size = self.scale_of(terms.plate) * terms.plate.size
                    bound = self.objective.bound_of(terms, data_size)
                    total += bound.double().mean().item() * min(rows, size - start)
                else:
                    scaled, count = self._scaled_programs(*batch)
                    loss = self.objective.loss(*scaled, *batch[0], **batch[1])
                    total -= float(loss) * count
        return total / size

    # State -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers and optimizers: nested dictionaries of tensors and plain values."""
        return {
            "params": {role: dict(leaves) for role, leaves in self.params.items()},
            "buffers": self.buffers,
            "optimizers": {role: o.state_dict() for role, o in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state into the parameters found by :meth:`prepare`, in place.

        Raises:
            ValueError: The saved parameters are not those of these programs.
        """
        self.load_params(state["params"], state["buffers"])
        for role, saved in state["optimizers"].items():
            self.optimizers[role].load_state_dict(saved)

    def load_params(
        self, params: dict[str, dict[str, Tensor]], buffers: dict[str, Tensor]
    ) -> None:
        """Put saved parameters and buffers in place, without the optimizers."""
        own = {
            f"{role}: {n}": p for role, leaves in self.params.items() for n, p in leaves.items()
        }
        own |= {f"buffer: {n}": b for n, b in self.buffers.items()}
        saved = {f"{role}: {n}": p for role, leaves in params.items() for n, p in leaves.items()}
        saved |= {f"buffer: {n}": b for n, b in buffers.items()}
        wrong = [n for n in own.keys() & saved.keys() if own[n].shape != saved[n].shape]
        if own.keys() != saved.keys() or wrong:
            missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
            raise ValueError(
                f"the saved state does not fit the programs: missing {missing[:3]}, "
                f"foreign {extra[:3]}, of another shape {wrong[:3]}. "
                f"Expected: the model and guide that were trained, built with the same sizes."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])


SUPPORTED = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO")


def _check_objective(objective: Any) -> None:
    """Refuse losses of Pyro's that would be scaled inside a logarithm, or are no ELBO at all."""
    if objective is None or isinstance(objective, Objective):
        return
    if type(objective).__name__ not in SUPPORTED:
        raise TypeError(
            f"VariationalEM: objective {type(objective).__name__} is not supported. Expected: an "
            f"objective of pyrovae, or one of Pyro's {', '.join(SUPPORTED)}. Try: pv.IWAE or "
            f"pv.Renyi for multi-sample bounds (N/B would stand inside RenyiELBO's logarithm)."
        )


def _norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm of all of them, a scalar, in one quick pass over memory."""
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients)
    squares = [torch.dot(g, g) for g in (gradient.flatten() for gradient in gradients)]
    return torch.stack([square.double() for square in squares]).sum().sqrt()


def _which_datum(objective: Objective, terms: Terms) -> NotFinite:
    with torch.no_grad():
        bound = objective.bound_of(terms)
    rows = (~torch.isfinite(bound)).nonzero().flatten().tolist()
    parts = {"log p(x|z)": terms.log_likelihood} | {
        f"log p of '{s.name}'": s.log_prior for s in terms.local_latents
    }
    parts |= {f"log q of '{s.name}'": s.log_posterior for s in terms.local_latents}
    bad = [name for name, value in parts.items() if not torch.isfinite(value).all()]
    return NotFinite(
        f"{type(objective).__name__} is not finite at row(s) {rows[:5]} "
        f"of the batch{f', in {bad[0]}' if bad else ''}. No weight has moved. "
        f"Try: check those rows; a guide or prior whose support fits; "
        f"a smaller learning rate; clip_norm=.",
        rows,
    )
