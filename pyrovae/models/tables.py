"""What models with a latent class share: the two programs, and tables `[N, k]` over classes."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

__all__ = ["LatentClass", "log_table", "mean_over_classes"]

SUMMED_OUT = {"enumerate": "parallel"}
ENTRIES = 2**22  # numbers in memory at once, over data, classes and features


def log_table(each: Any, x: Tensor) -> Tensor:
    """Return log p(x_n | z = j), `[N, k]`, where `each` holds the k laws as its batch.

    The data are taken in parts, so that N * k * D numbers need not fit in memory.
    """
    rows = max(1, ENTRIES // (each.batch_shape.numel() * math.prod(x.shape[1:])))
    return torch.cat([each.log_prob(part[:, None]) for part in x.split(rows)])


def mean_over_classes(shares: Tensor, table: Tensor) -> Tensor:
    """Return the mean of a table under probabilities of the classes, `[N]`; 0 times -inf is 0."""
    return (shares * table.masked_fill(shares == 0, 0.0)).sum(-1)


class LatentClass(nn.Module):
    r"""A model of k classes, :math:`p(x) = \sum_j \pi_j\, p(x | z = j)`, and its exact posterior.

    A subclass has the parameter `logits` `[k]` and the laws of the classes, `given`.
    """

    logits: nn.Parameter

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        """Run the generative program: draw a class, then score x by that class's law.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("mixture", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", Categorical(logits=self.logits), infer=SUMMED_OUT)
            return pyro.sample("x", self.given(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Run the exact posterior: z from the responsibilities of x.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        posterior = self.e_step(x)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", posterior, infer=SUMMED_OUT)

    # -- their parts ------------------------------------------------------------------------------

    def given(self, z: Tensor) -> Any:
        """Return p(x | z) for classes z of any shape: that is its batch shape."""
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        """Raise unless x is a batch for this model."""
        raise NotImplementedError

    @property
    def weights(self) -> Tensor:
        r"""The probabilities :math:`\pi` of the classes, `[k]`."""
        return self.logits.softmax(-1)

    # -- closed forms -----------------------------------------------------------------------------

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, z = j) for every datum and class, `[N, k]`, nats."""
        self._check(x)
        each = self.given(torch.arange(len(self.logits), device=x.device))
        return log_table(each, x) + self.logits.log_softmax(-1)

    def log_px(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, `[N]`, nats: the exact sum over classes."""
        return self.log_joint(x).logsumexp(-1)

    @torch.no_grad()
    def e_step(self, x: Tensor) -> Categorical:
        """Return p(z | x), a Categorical of batch shape `[N]`: `.probs` are responsibilities."""
        return Categorical(logits=self.log_joint(x))

    def expected_log_joint(self, x: Tensor, posterior: Categorical) -> Tensor:
        """Return E log p(x, z) under any posterior over classes, `[N]`, nats; differentiable."""
        return mean_over_classes(posterior.probs, self.log_joint(x))
