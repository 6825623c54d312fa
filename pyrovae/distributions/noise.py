"""Uniforms that are never 0 and exponentials that follow, for the whole of this package.

torch's uniforms can be 0, once in 2^24 draws of float32, where a logit or a quantile is infinite.
These lie in the open interval. Exponentials are made from uniforms of 53 bits: they keep both
tails of what is built from them in float32, and cost a third of `exponential_`.
"""

from __future__ import annotations

import torch
from torch import Size, Tensor

__all__ = ["exponential", "uniform", "wide_uniform"]


def uniform(shape: Size, like: Tensor) -> Tensor:
    """Draw uniforms in (0, 1) in the dtype of `like`; a zero stands for the middle of its cell."""
    eps = torch.finfo(like.dtype).eps
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp_(eps / 4, 1 - eps / 2)


def wide_uniform(shape: Size, like: Tensor) -> Tensor:
    """Draw uniforms in (0, 1) in float64, on the device of `like`."""
    return torch.rand(shape, dtype=torch.float64, device=like.device).clamp_min_(2.0**-54)


def exponential(shape: Size, like: Tensor) -> Tensor:
    """Draw standard exponentials, never zero, in the dtype of `like`."""
    wide = torch.rand(shape, dtype=torch.float64, device=like.device).neg_().log1p_()
    return wide.to(like.dtype).neg_().clamp_min_(2.0**-54)
