"""The few handlers that Pyro does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

__all__ = ["with_data_scale"]


class _DataScale(Messenger):
    """Multiply the scale of every site by `everywhere`, and of those in plate `name` by `factor` too."""

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
    """`program` with N/B = `factor` on the sites in `plate`, which it left out, and a common factor on all."""
    return _DataScale(plate, factor, everywhere)(program)
