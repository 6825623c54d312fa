"""Which parameters a program owns, and where Pyro keeps them.

Pyro has one global parameter store. A second model whose names collide silently trains the first
one's weights; an exception inside ``scope()`` loses what was trained; buffers are not in it at
all. Here a run owns a :class:`ParamScope`, a store of its own that is in force only inside a
``with`` block and that keeps what happened in it whatever ends the block.

Ownership is found by looking: the parameters a program *declares* are those of its ``pyro.param``,
``pyro.module`` and ``PyroModule`` statements in one run; networks a program merely holds (in a
closure, an attribute, a ``partial``, a global) are found by walking what it refers to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

__all__ = ["ParamScope", "Scoped", "evaluating", "frozen_buffers", "modules_of"]


class ParamScope:
    """A parameter store of one's own, in force inside ``with scope:``.

    Scopes nest, and what happened in one survives an exception.
    """

    def __init__(self) -> None:
        self._params: dict[str, Tensor] = {}
        self._names: dict[Tensor, str] = {}
        self._constraints: dict[str, Any] = {}
        self._outer: list[tuple[Any, Any, Any]] = []

    def __enter__(self) -> ParamScope:
        store = pyro.get_param_store()
        self._outer.append((store._params, store._param_to_name, store._constraints))
        store._params, store._param_to_name = self._params, self._names
        store._constraints = self._constraints
        return self

    def __exit__(self, *exception: object) -> None:
        store = pyro.get_param_store()
        # a clear_param_store() inside the block rebinds the dictionaries: keep what is there now
        self._params, self._names = store._params, store._param_to_name
        self._constraints = store._constraints
        store._params, store._param_to_name, store._constraints = self._outer.pop()

    def __len__(self) -> int:
        return len(self._params)

    def __bool__(self) -> bool:
        return True

    @property
    def unconstrained(self) -> dict[str, Tensor]:
        """Name -> unconstrained leaf, as Pyro stores it."""
        return dict(self._params)

    @property
    def constraints(self) -> dict[str, Any]:
        """Name -> constraint."""
        return dict(self._constraints)

    def export(self) -> None:
        """Put this scope's parameters into the store now in force, replacing same names."""
        store = pyro.get_param_store()
        for name, value in self._params.items():
            store._params[name] = value
            store._param_to_name[value] = name
            store._constraints[name] = self._constraints[name]


class Scoped:
    """A program that carries its parameters with it: each call runs in its scope."""

    def __init__(self, program: Callable[..., Any], scope: ParamScope) -> None:
        functools.update_wrapper(self, program, updated=())
        self.program, self.scope = program, scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with its own parameters in force."""
        with self.scope:
            return self.program(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Scoped({self.program!r})"


def modules_of(*programs: Any) -> list[nn.Module]:
    """The outermost networks that programs hold, in a fixed order.

    They may be in a bound ``self``, a closure, a partial's arguments or a global.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    for program in programs:
        for module in _walk(program, seen):
            found.setdefault(id(module), module)
    inner = {id(m) for outer in found.values() for m in outer.modules() if m is not outer}
    return [module for key, module in found.items() if key not in inner]


def _walk(thing: Any, seen: set[int], depth: int = 0) -> Iterator[nn.Module]:
    if (
        depth > 6
        or thing is None
        or id(thing) in seen
        or isinstance(thing, (str, int, float, Tensor))
    ):
        return
    if isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    for part in _parts(thing):
        yield from _walk(part, seen, depth + 1)


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set)):
        return list(thing)
    if isinstance(thing, Scoped):
        return [thing.program]
    parts: list[Any] = []
    if getattr(thing, "__self__", None) is not None:
        parts.append(thing.__self__)
    function = getattr(thing, "__func__", thing)
    code = getattr(function, "__code__", None)
    if code is not None:
        for cell in function.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # an empty cell: the name is not bound yet
                continue
        named = [function.__globals__.get(n) for n in sorted(_names_in(code))]
        kinds = (nn.Module, dict, list, tuple)
        parts += [v for v in named if isinstance(v, kinds) or _is_user_function(v, function)]
        parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    wrapped = getattr(thing, "__wrapped__", None) or getattr(thing, "fn", None)
    if wrapped is not None:  # functools.wraps, and Pyro's handlers
        parts.append(wrapped)
    elif code is None and hasattr(thing, "__dict__"):
        parts += list(vars(thing).values())
    return parts


def _names_in(code: Any) -> set[str]:
    """Names of globals that a function, or one defined inside of it, may look up."""
    inner = [_names_in(c) for c in code.co_consts if hasattr(c, "co_names")]
    return set(code.co_names).union(*inner)


def _is_user_function(value: Any, caller: Any) -> bool:
    return getattr(value, "__module__", None) == caller.__module__ and hasattr(value, "__code__")


@contextmanager
def frozen_buffers(*programs: Any) -> Iterator[None]:
    """Put back every buffer of the programs' networks (BatchNorm's statistics, ...) at the end."""
    buffers = [b for module in modules_of(*programs) for b in module.buffers()]
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """No gradients, and every network in evaluation mode; the modes come back at the end."""
    modes = [(m, m.training) for outer in modules_of(*programs) for m in outer.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
