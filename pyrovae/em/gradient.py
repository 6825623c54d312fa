r"""An M-step without a closed form: gradient steps that never end lower than they began.

With :math:`q = p(z \mid x; \theta_t)` held still, any :math:`\theta` with

.. math::

    \sum_n E_{q_n}[\log p(x_n, z_n; \theta)] \ge \sum_n E_{q_n}[\log p(x_n, z_n; \theta_t)]

has at least the log p(x) of :math:`\theta_t`: it need not be the maximum. That is generalized EM
(Dempster, Laird & Rubin 1977). The first gradient step is a step up log p(x) itself, since
:math:`\nabla \log p(x) = E_{p(z|x)} \nabla \log p(x, z)`; the following ones reuse the
posterior, and what they save is E-steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.em.variational import OptimizerFactory, adam

__all__ = ["GradientMStep"]


class GradientMStep:
    """An M-step without a closed form: steps of an optimizer on E log p(x, z), never downhill.

    With an exact E-step this is generalized EM, and log p(x) still never falls: where the steps
    end lower than they began, the parameters go back, the learning rate is halved for good, and
    the steps are taken anew.

    Args:
        optimizer: ``params -> torch.optim.Optimizer``; Adam with learning rate 1e-2 by default.
        steps: Steps of the optimizer an M-step, on all data.

    Example:
        >>> import torch, pyrovae as pv
        >>> x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> mixture = pv.models.NeuralMixture(3, classes=2, hidden=8)
        >>> em = pv.EM(mixture, m_step=pv.GradientMStep(steps=5)).fit(x, iterations=3)
        >>> em.history[-1].log_px > em.history[0].log_px
        True
    """

    HALVINGS = 20

    def __init__(self, optimizer: OptimizerFactory | None = None, steps: int = 10) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"GradientMStep: steps must be a whole number of at least 1, got {steps!r}. "
                "Try: steps=10."
            )
        self.factory = optimizer or adam(1e-2)
        self.steps = steps
        self.optimizer: torch.optim.Optimizer | None = None
        self._params: list[Tensor] = []

    def __call__(self, model: Any, x: Any, posterior: Distribution) -> None:
        """Take the steps for `model`; gradients are left clear."""
        params = self._prepare(model)
        kept = [p.detach().clone() for p in params]
        start = self._objective(model, x, posterior).item()
        for _ in range(self.HALVINGS):
            self._ascend(model, x, posterior)
            with torch.no_grad():
                if self._objective(model, x, posterior).item() >= start:
                    return
                for p, value in zip(params, kept, strict=True):
                    p.copy_(value)
            self._halve()

    def reset(self) -> None:
        """Forget the optimizer and its state: a new start."""
        self.optimizer = None

    def _prepare(self, model: Any) -> list[Tensor]:
        params = [p for p in model.parameters() if p.requires_grad]
        if not params:
            raise ValueError(
                f"GradientMStep: {type(model).__name__} has no parameter that requires a gradient."
                " Expected: something to train. Try: requires_grad_(True), or the model's own "
                "m_step."
            )
        if self.optimizer is None or [*map(id, params)] != [*map(id, self._params)]:
            self.optimizer, self._params = self.factory(params), params
        return params

    def _objective(self, model: Any, x: Any, posterior: Distribution) -> Tensor:
        return model.expected_log_joint(x, posterior).mean()

    def _ascend(self, model: Any, x: Any, posterior: Distribution) -> None:
        with torch.enable_grad():
            for _ in range(self.steps):
                self.optimizer.zero_grad()
                (-self._objective(model, x, posterior)).backward()
                self.optimizer.step()
        self.optimizer.zero_grad()

    def _halve(self) -> None:
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, or nothing before the first step."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def load_state_dict(self, model: Any, state: dict[str, Any]) -> None:
        """Put a saved state in place, for the parameters of `model`."""
        self.reset()
        if state:
            self._prepare(model)
            self.optimizer.load_state_dict(state)
