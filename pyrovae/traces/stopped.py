"""The density of a posterior with its own parameters held constant.

Sticking the landing (Roeder, Wu & Duvenaud 2017, arXiv:1703.09194) and the doubly reparameterized
gradient (Tucker et al. 2019, arXiv:1810.04152) differentiate log q(z) through the draw z only.
Torch distributions have no ``detach``, but all of their state is tensors, distributions and
transforms, so a copy is easily made.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

__all__ = ["stop_parameters"]


def stop_parameters(fn: Any, name: str = "") -> Any:
    """A copy of distribution `fn` in which every parameter is detached.

    Args:
        fn: The distribution; in recursion also a transform, a tensor or a list of these.
        name: The site, for the error message.

    Raises:
        NotImplementedError: The distribution keeps parameters in a network (a normalizing flow).
    """
    if isinstance(fn, Tensor):
        return fn.detach()
    if isinstance(fn, (list, tuple)):
        return type(fn)(stop_parameters(item, name) for item in fn)
    if isinstance(fn, torch.nn.Module) and any(True for _ in fn.parameters()):
        raise NotImplementedError(
            f"site '{name}': {type(fn).__name__} keeps its parameters in a network, "
            f"which cannot be held constant. "
            f'Expected: a distribution whose parameters are tensors. Try: estimator="iwae".'
        )
    if not isinstance(fn, (Distribution, Transform)):
        return fn
    stopped = copy.copy(fn)
    for key, value in vars(fn).items():
        if key in ("_cached_x_y", "_cached_log_prob"):
            continue
        stopped.__dict__[key] = stop_parameters(value, name)
    return stopped
