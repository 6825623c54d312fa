r"""Variational EM: which parameters step when.

A latent-variable model p(x, z; theta) and its guide q(z|x; phi) climb the same bound
:math:`\mathcal L(\theta, \phi) \le \log p(x; \theta)`: the E-step in phi, the M-step in theta.
Auto-encoding variational Bayes takes both at once; :mod:`pyrovae.em.schedules` has the others.

:class:`VariationalEM` owns what a run needs and Pyro's global store does not give: the parameters
of each role, found by running the programs; a store of the run's own
(:class:`~pyrovae.traces.ParamScope`); one torch optimizer a role; gradients that are fresh at
every step; a refusal to move when a number is not finite.

It offers three moves, :meth:`~VariationalEM.e_step`, :meth:`~VariationalEM.m_step` and
:meth:`~VariationalEM.joint_step`; the schedule says which of them a ``step`` consists of.

Source: Kingma & Welling (2014), arXiv:1312.6114, Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyrovae.em.roles import ROLES, check_optimizers, owned
from pyrovae.em.schedules import Joint, Schedule, SemiAmortized
from pyrovae.em.steps import Batch, NotFinite, StepRecord, batches_from
from pyrovae.objectives import ELBO, Objective
from pyrovae.traces import (
    DataPlate,
    Held,
    ParamScope,
    Site,
    Terms,
    data_plate_of,
    evaluating,
    modules_of,
    probe,
    with_data_scale,
)
from pyrovae.traces.refine import Refinement

__all__ = ["OptimizerFactory", "VariationalEM", "adam"]

AnyProgram = Callable[..., Any]
OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def adam(lr: float = 1e-3, **options: Any) -> OptimizerFactory:
    """The default optimizer: Adam, fused where torch can (one kernel a step instead of many)."""
    return lambda params: torch.optim.Adam(params, lr=lr, fused=True, **options)


class VariationalEM:
    """Train a model and a guide, each by its own optimizer, in a parameter store of their own.

    Args:
        model: A Pyro program p(x, z).
        guide: A Pyro program q(z|x).
        objective: A pyrovae objective, or Pyro's ``Trace_ELBO``, ``TraceMeanField_ELBO``,
            ``TraceGraph_ELBO`` or ``TraceEnum_ELBO``; by default ``ELBO()``.
        e_optimizer: ``params -> torch.optim.Optimizer`` for the guide's parameters.
        m_optimizer: The same for the model's. By default the same callable: called once for the
            parameters of both roles if the schedule is :class:`Joint`, which steps them alike,
            else once for each role.
        schedule: Which role steps when; :class:`Joint` by default.
        data_size: N, the number of data; sets N/B where the plate does not subsample by itself.
        clip_norm: Clip the gradient of the parameters that step at this Euclidean norm.

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
        schedule: Schedule | None = None,
        *,
        data_size: int | None = None,
        clip_norm: float | None = None,
    ) -> None:
        if schedule is not None:
            check_schedule(schedule, "VariationalEM")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"VariationalEM: clip_norm must be positive, got {clip_norm}.")
        self.schedule = schedule or Joint()
        self.schedule_state = self.schedule.start()  # plain values, saved with the run
        _check_objective(objective, self.schedule)
        self.model, self.guide = model, guide
        self.objective = ELBO() if objective is None else objective
        if isinstance(self.objective, Objective):
            self.objective.begin()
        self.data_size = data_size
        self.clip_norm = clip_norm
        self.scope = ParamScope()
        self.params: dict[str, dict[str, Tensor]] = {}  # role -> name -> unconstrained leaf
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._leaves: dict[str, list[Tensor]] = {}  # "joint" and each role -> its leaves
        self._programs: tuple[AnyProgram, AnyProgram] = (model, guide)
        self._source: tuple[Any, Iterator[Batch]] | None = None
        e_optimizer = e_optimizer or adam()
        self._factories = {"guide": e_optimizer, "model": m_optimizer or e_optimizer}
        self.observed: dict[str, Site] = {}  # the model's observed sites on the first batch
        self.thorough = False  # validate every step, not only the first
        self._checked = False
        self._frozen = False
        self._plate: DataPlate
        self._stored: set[str] = set()  # names in the store on the first batch

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
            programs = {"model": self.model, "guide": self.guide}
            declared = {"model": modelled.params, "guide": guided.params}
            separate = None if isinstance(self.schedule, Joint) else repr(self.schedule)
            params = owned(programs, declared, args, kwargs, known, separate)
        self.observed = {name: site for name, site in modelled.sites.items() if site.is_observed}
        self._plate = data_plate_of(modelled, getattr(self.objective, "data_plate", None))
        self._leaves = {role: list(params[role].values()) for role in ROLES}
        self._leaves["joint"] = self._leaves["model"] + self._leaves["guide"]
        if not self._leaves["joint"]:
            raise ValueError(
                "the programs own no trainable parameter. Expected: pyro.module, pyro.param, "
                "a PyroModule, or a network with requires_grad in a closure. "
                "Try: register the networks with pyro.module."
            )
        self.params = params
        self._stored = set(self.scope.unconstrained)
        self.optimizers = self._make_optimizers()
        check_optimizers(self.optimizers, params)
        if "joint" not in self.optimizers:
            self._programs = (Held(self.model), Held(self.guide))

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Make one optimizer a role, or a single one where both roles always step alike."""
        factories = self._factories
        if factories["model"] is factories["guide"] and isinstance(self.schedule, Joint):
            return {"joint": _made(factories["model"], self._leaves["joint"])}
        moved = [role for role in ROLES if self._leaves[role]]
        return {role: _made(factories[role], self._leaves[role]) for role in moved}

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
        except (RuntimeError, IndexError, ValueError) as error:
            if isinstance(error, ValueError) and not _is_of_a_layer(error):
                raise
            tensors = [a for a in args if isinstance(a, Tensor)]
            shapes = [tuple(a.shape) for a in tensors]
            whole = [a.dtype for a in tensors if not a.is_floating_point()]
            cast = f" If layers expect real numbers: x.float(), x is {whole[0]}." if whole else ""
            raise RuntimeError(
                f"the programs could not be run on a batch with arguments of shapes {shapes}: "
                f"{error}\nExpected: data [B, ...] of the shape the networks were built for. "
                f"Try: run guide(x), then model(x), on one batch; compare the size that the first "
                f"layer expects with x.shape.{cast}"
            ) from error

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
        """One step of the schedule on one batch, the arguments of both programs.

        Args:
            *args: The batch.
            batches: Fresh batches for the inner E-steps of a schedule that has them: an iterator,
                or something that is gone through again and again. Each item is one argument, a
                tuple of arguments or a dict of keyword arguments.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The record of the step, with the true ELBO in nats a datum.

        Raises:
            FloatingPointError: The objective or a gradient is not finite; no weight has moved
                in the move that met it.
        """
        self.prepare(*args, **kwargs)
        fresh = self._fresh(batches)
        record = self.schedule.step(self, Batch(args, kwargs), fresh, self.schedule_state)
        if isinstance(self.objective, Objective):
            self.objective.advance(record.figures.get("kl"))
        return record

    def e_step(self, *args: Any, **kwargs: Any) -> StepRecord:
        """Move the guide once on a batch; the model's weights, gradients and buffers stay."""
        return self.take("guide", Batch(args, kwargs))

    def m_step(self, *args: Any, **kwargs: Any) -> StepRecord:
        """Move the model once on a batch; the guide's weights, gradients and buffers stay."""
        return self.take("model", Batch(args, kwargs))

    def joint_step(self, *args: Any, **kwargs: Any) -> StepRecord:
        """Move both roles once on a batch."""
        return self.take("joint", Batch(args, kwargs))

    def take(
        self,
        role: str,
        batch: Batch,
        *,
        clip_both: bool = False,
        move_buffers: bool = False,
        terms: Callable[[], Terms] | None = None,
    ) -> StepRecord:
        """One move: a gradient of the bound, checked, and a step of one optimizer or of both.

        Args:
            role: "guide", "model" or "joint".
            batch: The data.
            clip_both: Clip the gradient of both roles together though one moves, which costs the
                other's gradient; without ``clip_norm`` it changes nothing.
            move_buffers: Let the buffers of the role that stays move too.
            terms: Runs the programs, if not in the usual way.
        """
        self.prepare(*batch.args, **batch.kwargs)
        if role not in self.optimizers and role != "joint":
            raise ValueError(
                f"a step of the {role} alone needs an optimizer of its own; under {self.schedule} "
                f"there is {list(self.optimizers)}. Try: schedule=pv.Alternating(1, 1)."
            )
        both = role == "joint" or (clip_both and self.clip_norm is not None)
        leaves = self._leaves["joint" if both else role]
        checks = self.thorough or not self._checked
        validate = checks and pyro.poutine.util.is_validation_enabled()
        with self._in_force(), torch.enable_grad(), pyro.validation_enabled(validate):
            self._zero_grad()
            try:
                with self._holding(role, both, not move_buffers):
                    record = self._backward(batch, None if both else leaves, terms)
                self._check_owned()
                record.grad_norm = self._checked_norm(record, leaves, role)
                record.role = role
                for name, optimizer in self.optimizers.items():
                    if role in ("joint", name):
                        optimizer.step()
            finally:
                self._zero_grad()
        self._checked = True
        return record

    def _check_owned(self) -> None:
        """Raise where a program has made a parameter that was not there on the first batch."""
        if len(self.scope) == len(self._stored):
            return
        new = sorted(set(self.scope.unconstrained) - self._stored)
        if new:
            raise ValueError(
                f"parameter(s) {new[:5]} appeared after the first batch, so that they are owned "
                f"by neither role and no optimizer would train them. Expected: the same "
                f"pyro.param and pyro.module statements on every batch. Try: names that do not "
                f"depend on the batch."
            )

    @contextmanager
    def _holding(self, role: str, both: bool, buffers: bool) -> Iterator[None]:
        """The program of the role that stays, held still."""
        if role == "joint":
            yield
            return
        model, guide = self._programs
        with ExitStack() as stack:
            if role == "guide":
                stack.enter_context(model.held(buffers))
            else:
                stack.enter_context(guide.held(buffers, gradient=not both))
            yield

    def _fresh(self, batches: Iterable[Any] | None) -> Iterator[Batch] | None:
        """The batches that follow; where they are given again, from where they were left."""
        if batches is None:
            return None
        if self._source is None or self._source[0] is not batches:
            self._source = (batches, batches_from(batches))
        return self._source[1]

    def refine(self, batch: Batch, steps: int, lr: float, **options: Any) -> Refinement:
        """Posteriors of the batch's data, each with parameters of its own, improved by steps.

        Neither role moves. `options` are those of
        :meth:`pyrovae.traces.refine.Refinement.climb`.
        """
        self.prepare(*batch.args, **batch.kwargs)
        objective, (model, guide) = self.objective, self._programs

        def bound(terms: Terms) -> Tensor:
            value = objective.objective(terms)
            if not torch.isfinite(value).all():
                raise _which_datum(objective, terms)
            return value

        with self._in_force(), torch.enable_grad(), pyro.validation_enabled(False):
            if objective.particles > 1:
                self._check_particles(batch)
            # with a graph through the steps, the guide's run in here is the one of the step
            with model.held(), guide.held(buffers=not options.get("create_graph", False)):
                refinement = Refinement(
                    model,
                    guide,
                    batch.args,
                    batch.kwargs,
                    particles=objective.particles,
                    data_plate=objective.data_plate,
                )
                refinement.climb(bound, steps, lr, **options)
        return refinement

    def _check_particles(self, batch: Batch) -> None:
        objective: Any = self.objective
        if objective._plan(*self._programs, batch.args, batch.kwargs).loop:
            raise NotImplementedError(
                f"refinement with {objective.particles} particles needs programs that carry a "
                f"particle dimension on the left, and these cannot. Try: particles=1; or networks "
                f"that fold leading dimensions, as those of pyrovae.nn do."
            )

    def _backward(
        self,
        batch: Batch,
        leaves: list[Tensor] | None,
        run: Callable[[], Terms] | None = None,
    ) -> StepRecord:
        """Gradients of the objective, for these leaves only (None: for all)."""
        if not isinstance(self.objective, Objective):
            return self._pyro_backward(batch.args, batch.kwargs, leaves)
        objective = self.objective
        if run is not None:
            terms = run()
        else:
            terms = objective.terms(*self._programs, *batch.args, **batch.kwargs)
        plate, scale = terms.plate, self.scale_of(terms.plate)
        total = objective.unscaled_of(terms, scale)
        total.backward(total.new_full((), -1 / plate.size), inputs=leaves)
        with torch.no_grad():
            elbo = maximized = total / plate.size
            if not objective.is_bound(terms):
                elbo = objective.bound_of(terms, scale * plate.size).mean()
        if not torch.isfinite(maximized):
            raise _which_datum(objective, terms)
        figures = objective.figures(terms, scale * plate.size)
        return StepRecord(elbo, maximized, plate.size, figures=figures)

    def _pyro_backward(self, args: Any, kwargs: Any, leaves: list[Tensor] | None) -> StepRecord:
        programs, size = self._scaled_programs(args, kwargs)
        if leaves is None:
            loss = torch.as_tensor(self.objective.loss_and_grads(*programs, *args, **kwargs))
        else:
            loss = self.objective.differentiable_loss(*programs, *args, **kwargs)
            loss.backward(inputs=leaves)
            loss = loss.detach()
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
            with_data_scale(program, plate.name, factor, 1 / total) for program in self._programs
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

    def _checked_norm(self, record: StepRecord, leaves: list[Tensor], role: str) -> Tensor:
        leaves = [leaf for leaf in leaves if leaf.grad is not None]
        if not leaves:
            raise self._nothing_moves(role)
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

    def _nothing_moves(self, role: str) -> ValueError:
        names = [name for r in ROLES if role in ("joint", r) for name in self.params[r]]
        return ValueError(
            f"a step of {'both roles' if role == 'joint' else f'the {role}'} has nothing to move: "
            f"{type(self.objective).__name__} does not depend on parameter(s) {names[:5]}. "
            f"Expected: a parameter that the program's densities are made of. Try: use it in a "
            f"pyro.sample statement; remove .detach() or torch.no_grad() on the way; or, where "
            f"there is nothing to train, another schedule."
        )

    def _zero_grad(self) -> None:
        for leaf in self._leaves["joint"]:
            leaf.grad = None

    def end_epoch(self, valid: Any = None) -> dict[str, Any]:
        """Tell the schedule that an epoch has ended.

        Args:
            valid: Held-out data, if the schedule judges by them: an argument, a tuple of
                arguments, a dict of keyword arguments, or a data set.

        Returns:
            What the schedule has to say of the epoch, for the history.
        """
        if valid is not None and hasattr(valid, "realize"):
            valid = Batch(*valid.realize())
        batch = None if valid is None else Batch.of(valid)
        with self._in_force():
            return self.schedule.end_epoch(self, batch, self.schedule_state)

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
                    terms = self.objective.terms(*self._programs, *batch[0], **batch[1])
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
        """Parameters, buffers, optimizers, what schedule and objective remember.

        Nested dictionaries of tensors and plain values.
        """
        pyrovaes = isinstance(self.objective, Objective)
        return {
            "objective": self.objective.state_dict() if pyrovaes else {},
            "params": {role: dict(leaves) for role, leaves in self.params.items()},
            "buffers": self.buffers,
            "optimizers": {role: o.state_dict() for role, o in self.optimizers.items()},
            "schedule": dict(self.schedule_state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state into the parameters found by :meth:`prepare`, in place.

        Raises:
            ValueError: The saved parameters are not those of these programs, or the saved
                optimizers serve other roles.
        """
        saved, own = sorted(state["optimizers"]), sorted(self.optimizers)
        if saved != own:
            raise ValueError(
                f"the saved state has optimizers for {saved}, this run for {own}. Expected: one "
                f"optimizer for both roles, or one for each, as in the run that was saved. "
                f"Try: the same optimizer= and schedule= as there."
            )
        self.load_params(state["params"], state["buffers"])
        for role, saved in state["optimizers"].items():
            self.optimizers[role].load_state_dict(saved)
        self.schedule_state = self.schedule_state | dict(state.get("schedule", {}))
        if isinstance(self.objective, Objective):
            self.objective.load_state_dict(state.get("objective", {}))

    def load_params(
        self, params: dict[str, dict[str, Tensor]], buffers: dict[str, Tensor]
    ) -> None:
        """Put saved parameters and buffers in place, without the optimizers."""
        own = {n: p for leaves in self.params.values() for n, p in leaves.items()}
        own |= {f"buffer: {n}": b for n, b in self.buffers.items()}
        saved = {n: p for leaves in params.values() for n, p in leaves.items()}
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


def _is_of_a_layer(error: BaseException) -> bool:
    """Whether an error was raised inside a layer of torch's, not by a program or its checks."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.startswith("torch.nn.")


def check_schedule(schedule: Any, where: str) -> None:
    """Refuse what is no schedule: a class in place of an instance, a command line's text."""
    if isinstance(schedule, Schedule):
        return
    tries = "pv.Joint(), pv.Alternating(5, 1), pv.Converge(), pv.Aggressive()"
    if isinstance(schedule, type):
        tries = f"schedule=pv.{schedule.__name__}(), an instance of the class"
    elif isinstance(schedule, str):
        tries = f"{tries}; pv.em.parse_schedule({schedule!r}) reads the command line's spelling"
    raise TypeError(f"{where}: schedule must be one of pyrovae's, got {schedule!r}. Try: {tries}.")


def _made(factory: Any, leaves: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of these leaves; refuses what is no factory of torch optimizers."""
    if isinstance(factory, pyro.optim.PyroOptim):
        got = "one of pyro.optim, which steps the global parameter store"
    elif isinstance(factory, torch.optim.Optimizer):
        got = f"an instance of torch.optim.{type(factory).__name__}"
    elif not callable(factory):
        got = repr(factory)
    else:
        made = factory(leaves)
        if isinstance(made, torch.optim.Optimizer):
            return made
        got = f"one that returns {type(made).__name__}"
    raise TypeError(
        f"VariationalEM: optimizer must be a callable, params -> torch.optim.Optimizer; got "
        f"{got}. Try: pv.adam(lr=1e-3); or lambda params: torch.optim.Adam(params, lr=1e-3)."
    )


def _check_objective(objective: Any, schedule: Schedule) -> None:
    """Refuse losses of Pyro's that would be scaled inside a logarithm, or are no ELBO at all."""
    if objective is None or isinstance(objective, Objective):
        return
    if isinstance(schedule, SemiAmortized):
        raise TypeError(
            f"VariationalEM: {schedule!r} refines the bound of each datum, which "
            f"{type(objective).__name__} sums over. Expected: an objective of pyrovae. "
            f"Try: pv.ELBO(); pv.ELBO(analytic_kl=False) is Trace_ELBO's estimator."
        )
    if type(objective).__name__ == "TraceGraph_ELBO" and not isinstance(schedule, Joint):
        raise TypeError(
            f"VariationalEM: TraceGraph_ELBO computes the gradients of both roles at once, so "
            f"{schedule!r} cannot step one of them. Expected: a loss with differentiable_loss. "
            f"Try: pv.ELBO(), Trace_ELBO(), or schedule=pv.Joint()."
        )
    if isinstance(objective, type) and issubclass(objective, pyro.infer.ELBO):
        raise TypeError(
            f"VariationalEM: objective is the class {objective.__name__}. Expected: an instance. "
            f"Try: {objective.__name__}()."
        )
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
