"""The few handlers that Pyro does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

__all__ = ["with_data_scale"]


class _DataScale(Messenger):
    """Multiply every site's scale by `everywhere`, and those in plate `name` also by `factor`."""

    def __init__(self, name: str, factor: float, everywhere: float) -> None:
        super().__init__()
        self.name, self.factor, self.everywhere = name, factor, everywhere

    def _pyro_sample(self, msg: Any) -> None:
        scale = self.everywhere
        if any(frame.name == self.name for frame in msg["cond_indep_stack"]):
            scale = scale * self.factor
        msg["scale"] = msg["scale"] * scale


def with_data_scale(
    program: Callable[..., Any], plate: str, factor: float, everywhere: float = 1.0
) -> Callable[..., Any]:
    """`program` with its sites in `plate` scaled by the missing N/B, `factor`.

    All of its sites are scaled by `everywhere` too.
    """
    return _DataScale(plate, factor, everywhere)(program)
