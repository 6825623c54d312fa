"""Tables over data and classes, `[N, k]`: log-densities by parts, and means under posteriors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["log_table", "mean_over_classes"]

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
