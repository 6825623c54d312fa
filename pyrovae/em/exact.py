r"""Exact EM: the posterior is known, so every iteration climbs log p(x).

For any distribution q over z (Neal & Hinton 1998),

.. math::

    \mathcal L(q, \theta) = E_q[\log p(x, z; \theta)] + H(q)
    = \log p(x; \theta) - \mathrm{KL}(q \,\|\, p(z \mid x; \theta)).

The E-step sets :math:`q = p(z \mid x; \theta)`: the KL becomes 0, the bound touches log p(x). The
M-step raises the bound in :math:`\theta`; log p(x) rises at least as much, and the bound comes off
it again, because the posterior has moved and q has not. So log p(x) never falls. That argument
needs the exact posterior; where a network stands between z and x there is none, and
:class:`pyrovae.VariationalEM` takes over.

:class:`EM` takes any model that can take the two steps. It measures log p(x), the bound and the KL
after each half-step, each by a formula of its own, and stops where the argument above is broken.

Source: Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39; Neal & Hinton (1998), "A view of
the EM algorithm that justifies incremental, sparse, and other variants".
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, OneHotCategorical, kl_divergence

from pyrovae.em.gradient import GradientMStep

__all__ = ["EM", "ExactModel", "HalfStep"]


@runtime_checkable
class ExactModel(Protocol):
    """What :class:`EM` asks of a model.

    Besides the methods here it uses, where a model has them:

    * ``m_step(x, posterior)``: sets the parameters, in place, to those that maximize the sum of
      E log p(x, z) under the posterior. Required, unless `EM(..., m_step=)` gives it;
    * ``expected_log_joint(x, posterior) -> [N]``: E log p(x, z) under any posterior. With it the
      bound is computed by itself, and a wrong E-step is found out; without it the bound is
      log p(x) - KL by definition. Required by :class:`GradientMStep`;
    * ``penalty(x, posterior) -> scalar``: what the M-step maximizes beside the sum of E log p(x,
      z), if it is regularized;
    * ``check(x)``: raises for data that the model cannot take;
    * ``initialize(x, how, seed)``: starts the parameters from data, for `init` and `restarts`;
    * ``state_dict()``, ``load_state_dict()``: those of a torch module, for `restarts`.
    """

    def e_step(self, x: Any) -> Distribution:
        """Return p(z | x), of batch shape `[N]` and with an entropy and a KL known to torch."""
        ...

    def log_px(self, x: Any) -> Tensor:
        """Return log p(x) of each datum, `[N]`, nats."""
        ...


MStep = Callable[[Any, Any, Distribution], None]


@dataclass(frozen=True)
class HalfStep:
    """What is true after one half of an iteration; means over data, nats a datum.

    Attributes:
        iteration: 1 for the first.
        half: "E" or "M".
        log_px: log p(x).
        elbo: E_q[log p(x, z)] + H(q), by itself.
        kl: KL(q || p(z|x)), by itself: 0 after E, positive after M.
        penalty: What a regularized M-step maximizes beside the bound; 0 otherwise.
    """

    iteration: int
    half: Literal["E", "M"]
    log_px: float
    elbo: float
    kl: float
    penalty: float = 0.0

    @property
    def gap(self) -> float:
        """What the identity leaves over: log p(x) - ELBO - KL, 0 but for rounding."""
        return self.log_px - self.elbo - self.kl


class EM:
    """Climb log p(x) of a model whose posterior is known.

    Args:
        model: Any object with ``e_step``, ``m_step`` and ``log_px`` (:class:`ExactModel`).
        m_step: ``m_step(model, x, posterior)``, instead of the model's own; a
            :class:`GradientMStep` where there is no closed form.
        init: How the first step starts the parameters: a name that the model's ``initialize``
            knows ("kmeans", "data", "random", ...); "given": as they stand; None: the model's
            default if it has ``initialize``, else "given".
        restarts: Starts that :meth:`fit` makes, with seeds `seed`, `seed + 1`, ...; the one with
            the highest log p(x) is kept.
        seed: Of the start.
        falls: "raise", "warn" or "ignore" when an M-step lowers what it should raise, or an E-step
            leaves the bound below log p(x), by more than rounding.

    Attributes:
        history: One :class:`HalfStep` a half-step, of the start that was kept.
        converged: The last iteration of :meth:`fit` gained less than its tolerance.
        tried: log p(x) that each of several starts reached, nats a datum.

    Raises:
        TypeError: The model lacks a method.
        ValueError: An impossible setting.

    Example:
        >>> import torch, pyrovae as pv
        >>> x = torch.tensor([[-2.0], [-1.8], [2.0], [2.2]])
        >>> em = pv.EM(pv.models.GaussianMixture(features=1, classes=2), init="data").fit(x)
        >>> [step.half for step in em.history[:4]], em.converged
        (['E', 'M', 'E', 'M'], True)

        A model of one's own, two exponentials with rates 1 and `rate`:

        >>> class TwoRates:
        ...     rate = torch.tensor(5.0)
        ...     def log_joint(self, x):
        ...         rates = torch.stack([torch.tensor(1.0), self.rate])
        ...         return torch.distributions.Exponential(rates).log_prob(x[:, None]) - 0.6931472
        ...     def e_step(self, x):
        ...         return torch.distributions.Categorical(logits=self.log_joint(x))
        ...     def m_step(self, x, posterior):
        ...         self.rate = posterior.probs[:, 1].sum() / (posterior.probs[:, 1] @ x)
        ...     def log_px(self, x):
        ...         return self.log_joint(x).logsumexp(-1)
        >>> e, m = pv.EM(TwoRates()).step(torch.tensor([0.1, 0.2, 0.3, 2.0]))
        >>> e.kl == 0 and m.kl > 0 and m.log_px > e.log_px
        True
    """

    def __init__(
        self,
        model: Any,
        *,
        m_step: MStep | None = None,
        init: str | None = None,
        restarts: int = 1,
        seed: int = 0,
        falls: Literal["raise", "warn", "ignore"] = "raise",
    ) -> None:
        _check_model(model, m_step)
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise ValueError(
                f"EM: restarts must be a whole number of at least 1, got {restarts!r}. "
                "Try: restarts=10 to look for better optima."
            )
        if falls not in ("raise", "warn", "ignore"):
            raise ValueError(
                f"EM: falls must be 'raise', 'warn' or 'ignore', got {falls!r}. Try: 'raise'."
            )
        _check_start(model, init, restarts)
        self.model, self.m_step, self.init = model, m_step, init
        self.restarts, self.seed, self.falls = restarts, seed, falls
        self.history: list[HalfStep] = []
        self.converged = False
        self.tried: list[float] = []
        self._started = False

    @property
    def iteration(self) -> int:
        """How many iterations have been done."""
        return self.history[-1].iteration if self.history else 0

    @property
    def log_px(self) -> float:
        """The last log p(x) of the history, nats a datum."""
        return self.history[-1].log_px if self.history else float("nan")

    # Steps -------------------------------------------------------------------------------------

    def step(self, x: Any) -> tuple[HalfStep, HalfStep]:
        """One E-step and one M-step on data x.

        Returns:
            What is true after each.

        Raises:
            ArithmeticError: The M-step has lowered what it should raise, or the E-step is not
                exact (with ``falls="raise"``).
            FloatingPointError: log p(x) of a datum is not finite.
        """
        self._check(x)
        self._start(x, self.seed)
        self._iterate(x, self.model.e_step(x))
        return self.history[-2], self.history[-1]

    def fit(self, x: Any, iterations: int = 200, tolerance: float = 1e-6) -> EM:
        """Iterate until log p(x) changes by less than `tolerance`, from each start.

        A second call goes on from where the first one ended.

        Args:
            x: The data, whatever the model takes.
            iterations: At most so many in this call, a start.
            tolerance: Nats a datum; 0 takes all iterations.

        Returns:
            Itself; the model is left with the parameters of the best start.

        Raises:
            ArithmeticError, FloatingPointError: As :meth:`step`.
        """
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(
                f"EM.fit: iterations must be a whole number of at least 1, got {iterations!r}. "
                "Try: iterations=200."
            )
        if not 0 <= tolerance < float("inf"):
            raise ValueError(
                f"EM.fit: tolerance must be finite and at least 0 nats, got {tolerance!r}. "
                "Try: tolerance=1e-6."
            )
        self._check(x)
        if not self._started and self.restarts > 1:
            self._try_starts(x, iterations, tolerance)
        else:
            self._start(x, self.seed)
            self._climb(x, iterations, tolerance)
        return self

    def _try_starts(self, x: Any, iterations: int, tolerance: float) -> None:
        tried: list[float] = []
        best: dict[str, Any] = {}
        for restart in range(self.restarts):
            self._started, self.history = False, []
            self._start(x, self.seed + restart)
            self._climb(x, iterations, tolerance)
            tried.append(self.log_px)
            if self.log_px == max(tried):
                best = copy.deepcopy(self.state_dict())
        self.load_state_dict(best)
        self.tried = tried

    def _start(self, x: Any, seed: int) -> None:
        if not self._started and self.init != "given" and hasattr(self.model, "initialize"):
            how = {} if self.init is None else {"how": self.init}
            self.model.initialize(x, seed=seed, **how)
            if hasattr(self.m_step, "reset"):
                self.m_step.reset()
        self._started = True

    def _climb(self, x: Any, iterations: int, tolerance: float) -> None:
        posterior = self.model.e_step(x)
        self.converged = False
        for _ in range(iterations):
            before = len(self.history)
            posterior = self._iterate(x, posterior)
            e, m = self.history[before:]
            if abs(m.log_px - e.log_px) < tolerance:
                self.converged = True
                return

    def _iterate(self, x: Any, posterior: Distribution) -> Distribution:
        """Record the E-step that gave `posterior`, take the M-step; return the next posterior."""
        iteration = self.iteration + 1
        e = self._measure(x, iteration, "E", posterior, posterior)
        self._check_tight(e, x)
        self.history.append(e)
        if self.m_step is None:
            self.model.m_step(x, posterior)
        else:
            self.m_step(self.model, x, posterior)
        exact = self.model.e_step(x)
        m = self._measure(x, iteration, "M", posterior, exact)
        self._check_risen(e, m, x)
        self.history.append(m)
        return exact

    @torch.no_grad()
    def _measure(
        self, x: Any, iteration: int, half: Any, q: Distribution, exact: Distribution
    ) -> HalfStep:
        log_px = _per_datum("log_px", self.model.log_px(x))
        if not bool(log_px.isfinite().all()):
            rows = (~log_px.isfinite()).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"EM: iteration {iteration}, after {half}: log p(x) is {log_px[rows[0]].item()} "
                f"at row(s) {rows[:5]}. Expected finite numbers. Try: look at those rows; "
                "another start; a regularized M-step (reg_covar)."
            )
        kl = _per_datum("KL(q || p(z|x))", _kl(q, exact), len(log_px)).mean().item()
        if hasattr(self.model, "expected_log_joint"):
            joint = self.model.expected_log_joint(x, q)
            elbo = _per_datum("expected_log_joint", joint, len(log_px))
            elbo = (elbo + _per_datum("the entropy", q.entropy(), len(log_px))).mean().item()
        else:
            elbo = log_px.mean().item() - kl
        penalty = 0.0
        if hasattr(self.model, "penalty"):
            penalty = float(self.model.penalty(x, q)) / len(log_px)
        return HalfStep(iteration, half, log_px.mean().item(), elbo, kl, penalty)

    # What must hold ----------------------------------------------------------------------------

    def _check(self, x: Any) -> None:
        if hasattr(self.model, "check"):
            self.model.check(x)

    def _check_tight(self, e: HalfStep, x: Any) -> None:
        if abs(e.log_px - e.elbo) > _rounding(e.log_px, x):
            self._complain(
                f"EM: iteration {e.iteration}: after the E-step the bound is {e.elbo:.10g} and "
                f"log p(x) is {e.log_px:.10g} nats a datum. Expected: equal, since q is p(z|x). "
                "Try: compare e_step with the normalized joint density on a grid of z; check that "
                "log_px and expected_log_joint keep every constant."
            )

    def _check_risen(self, e: HalfStep, m: HalfStep, x: Any) -> None:
        rounding = _rounding(e.log_px, x)
        fell = (e.elbo + e.penalty) - (m.elbo + m.penalty)
        if fell > rounding:
            self._complain(
                f"EM: iteration {m.iteration}: the M-step has lowered E log p(x, z)"
                f"{' + penalty' if m.penalty else ''} by {fell:.3g} nats a datum. Expected: "
                "higher or equal, since it maximizes it. Try: check m_step's formulas one "
                "parameter at a time; a method penalty(x, posterior) if it is regularized; a "
                "smaller learning rate if it follows a gradient."
            )
        elif m.penalty == 0 and e.log_px - m.log_px > rounding:
            self._complain(
                f"EM: iteration {m.iteration}: log p(x) has fallen by {e.log_px - m.log_px:.3g} "
                "nats a datum. Expected: EM never lowers it. Try: check log_px against a grid or "
                "a sum over z; check e_step and m_step."
            )

    def _complain(self, message: str) -> None:
        if self.falls == "raise":
            raise ArithmeticError(message)
        if self.falls == "warn":
            warnings.warn(message, stacklevel=4)

    # State -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Parameters, history and the M-step's optimizer: tensors and plain values.

        Raises:
            TypeError: The model has no ``state_dict``.
        """
        if not hasattr(self.model, "state_dict"):
            raise _no_state(self.model)
        own = getattr(self.m_step, "state_dict", dict)
        return {
            "model": dict(self.model.state_dict()),
            "m_step": own(),
            "history": [asdict(step) for step in self.history],
            "converged": self.converged,
            "tried": list(self.tried),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, to the last bit."""
        if not hasattr(self.model, "load_state_dict"):
            raise _no_state(self.model)
        self.model.load_state_dict(state["model"])
        if hasattr(self.m_step, "load_state_dict"):
            self.m_step.load_state_dict(self.model, state["m_step"])
        self.history = [HalfStep(**step) for step in state["history"]]
        self.converged, self.tried = state["converged"], list(state["tried"])
        self._started = True

    def __repr__(self) -> str:
        reached = f", log_px={self.log_px:.4f} nats" if self.history else ""
        return f"EM({type(self.model).__name__}, iterations={self.iteration}{reached})"


CLASSES = (Categorical, OneHotCategorical)


# Checks ----------------------------------------------------------------------------------------


def _check_model(model: Any, m_step: MStep | None) -> None:
    wanted = ["e_step", "log_px"]
    if m_step is None:
        wanted.append("m_step")
    elif isinstance(m_step, GradientMStep):
        wanted += ["expected_log_joint", "parameters"]
    elif not callable(m_step):
        raise TypeError(
            f"EM: m_step must be callable as m_step(model, x, posterior), got {m_step!r}. "
            "Try: pv.GradientMStep()."
        )
    if isinstance(model, type):
        raise TypeError(
            f"EM: the model is the class {model.__name__}. Expected: an instance. "
            f"Try: {model.__name__}(...)."
        )
    missing = [name for name in wanted if not callable(getattr(model, name, None))]
    if missing:
        raise TypeError(
            f"EM: {type(model).__name__} has no method {', '.join(missing)}. Expected an object "
            f"with {', '.join(wanted)} (pyrovae.em.ExactModel). Try: pv.EM(vae) is not possible, "
            "pv.VariationalEM(model, guide) is; m_step=pv.GradientMStep() where only the M-step "
            "has no closed form."
        )


def _check_start(model: Any, init: str | None, restarts: int) -> None:
    can = hasattr(model, "initialize")
    if init not in (None, "given") and not can:
        raise ValueError(
            f"EM: init={init!r}, but {type(model).__name__} has no initialize(x, how, seed). "
            "Expected init='given'. Try: set the parameters before, or write that method."
        )
    if restarts > 1 and (init == "given" or not can):
        raise ValueError(
            f"EM: restarts={restarts} from given parameters would be {restarts} times the same. "
            "Expected a random start. Try: init='data' or 'random', and a model with "
            "initialize(x, how, seed)."
        )
    if restarts > 1 and not hasattr(model, "load_state_dict"):
        raise _no_state(model)


def _no_state(model: Any) -> TypeError:
    return TypeError(
        f"EM: {type(model).__name__} has no state_dict and load_state_dict. Expected both, to "
        "keep and put back parameters. Try: make it a torch.nn.Module; restarts=1."
    )


def _per_datum(what: str, value: Any, size: int | None = None) -> Tensor:
    """The value as float64 `[N]`, or an error that names it."""
    shape = tuple(getattr(value, "shape", ()))
    if not isinstance(value, Tensor) or len(shape) != 1 or (size is not None and shape != (size,)):
        raise ValueError(
            f"EM: {what} has shape {list(shape)}. Expected [{size or 'N'}], a number for each "
            "datum. Try: a posterior of batch shape [N] (.to_event(1) on independent latents); no "
            "sum over data."
        )
    return value.detach().double()


def _kl(q: Distribution, exact: Distribution) -> Tensor:
    if isinstance(q, CLASSES) and isinstance(exact, CLASSES):
        # in logarithms: torch's own is infinite where a probability underflows
        terms = q.probs * (q.logits - exact.logits)
        return terms.masked_fill(q.probs == 0, 0.0).sum(-1)
    try:
        return kl_divergence(q, exact)
    except NotImplementedError:
        raise TypeError(
            f"EM: torch knows no KL of {type(q).__name__} from {type(exact).__name__}. Expected a "
            "posterior whose KL is known (Categorical, Normal, MultivariateNormal, ...). Try: one "
            "of those, or torch.distributions.register_kl for the class."
        ) from None


def _rounding(log_px: float, x: Any) -> float:
    """What rounding can do to a mean of log p(x), nats a datum, with room to spare."""
    dtype = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else torch.float32
    return 1e3 * torch.finfo(dtype).eps * (1 + abs(log_px))
