"""Who owns which parameter: the model (theta) or the guide (phi).

A program says what is its own by ``pyro.param``, ``pyro.module`` and ``PyroModule``, but not
always: networks are held in closures and never declared, or one object declares all of its
networks in both programs. What a program's densities depend on decides then, found by one gradient
(:func:`pyrovae.traces.uses`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.traces import modules_of, uses

__all__ = ["ROLES", "check_optimizers", "owned"]

AnyProgram = Callable[..., Any]
Leaves = dict[str, Tensor]  # name -> unconstrained leaf
ROLES = ("model", "guide")


def owned(
    programs: Mapping[str, AnyProgram],
    declared: Mapping[str, Leaves],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    known: Collection[str] | None,
    separate: str | None,
) -> dict[str, Leaves]:
    """Each role's trainable leaves by name.

    Args:
        programs: The two programs by role.
        declared: The leaves that each declared to Pyro in one run.
        args: A batch.
        kwargs: Keyword arguments of it.
        known: Names of the undeclared leaves of a saved run; by default those that are used.
        separate: The schedule's name where roles step one at a time: each leaf is then checked to
            belong to one role. None: what both use belongs to the model.

    Raises:
        ValueError: A shared leaf, named; a role without a leaf, where roles step separately.
    """
    undeclared = _undeclared(programs, declared)
    twice = declared["model"].keys() & declared["guide"].keys()
    doubtful = bool(separate or twice or (known is None and any(undeclared.values())))
    if not doubtful:
        return {
            role: declared[role]
            | {n: p for n, p in undeclared[role].items() if n in (known or ())}
            for role in ROLES
        }
    everywhere = declared["guide"] | declared["model"]  # one may use what the other declares
    leaves = {role: declared[role] | everywhere | undeclared[role] for role in ROLES}
    unique = {id(leaf): leaf for role in ROLES for leaf in leaves[role].values()}
    used = dict(
        zip(ROLES, uses(*programs.values(), args, kwargs, list(unique.values())), strict=True)
    )
    if separate:
        _check_unshared(leaves, used["model"] & used["guide"], separate)
    found: dict[str, Leaves] = {}
    taken: set[int] = set()
    for role in ROLES:
        other = used["guide" if role == "model" else "model"]
        found[role] = {}
        for name, leaf in leaves[role].items():
            own = id(leaf) in used[role]
            idle = name in declared[role] and id(leaf) not in other  # declared, used by neither
            if known is not None and name in undeclared[role]:
                own = name in known
            if id(leaf) not in taken and (own or idle):
                found[role][name] = leaf
                taken.add(id(leaf))
    if separate:
        _check_both(found, separate)
    return found


def _undeclared(
    programs: Mapping[str, AnyProgram], declared: Mapping[str, Leaves]
) -> dict[str, Leaves]:
    """Trainable parameters of networks that a program holds but neither declares to Pyro."""
    known = {id(leaf) for leaves in declared.values() for leaf in leaves.values()}
    return {
        role: {
            f"{role}.{i}.{name}": parameter
            for i, module in enumerate(modules_of(program))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) not in known
        }
        for role, program in programs.items()
    }


def _check_unshared(leaves: Mapping[str, Leaves], shared: set[int], schedule: str) -> None:
    if not shared:
        return
    names = [n for role in ROLES for n, p in leaves[role].items() if id(p) in shared]
    raise ValueError(
        f"{schedule}: guide and model share parameter(s) {sorted(set(names))[:5]}. Expected: each "
        f"parameter in one role, since an E-step moves the guide and leaves the model as it is. "
        f"Try: pv.Joint(), which steps both at once; or a copy of the network for each program."
    )


def _check_both(found: Mapping[str, Leaves], schedule: str) -> None:
    for role, step in (("guide", "E-step"), ("model", "M-step")):
        if not found[role]:
            other = "model" if role == "guide" else "guide"
            raise ValueError(
                f"{schedule}: the {role} owns no trainable parameter, so an {step} has nothing to "
                f"move (the {other} owns {len(found[other])}). Expected: parameters in both "
                f"programs. Try: pv.Joint(); pyro.module or pyro.param in the {role}; "
                f"requires_grad_(True) on its networks."
            )


def check_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer], params: Mapping[str, Leaves]
) -> None:
    """Raise where an optimizer holds a parameter that is not its role's.

    Raises:
        ValueError: It is the other role's (named), or owned by neither program.
    """
    owner = {id(p): (role, n) for role, leaves in params.items() for n, p in leaves.items()}
    for role, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for leaf in group["params"]:
                if id(leaf) not in owner:
                    raise ValueError(
                        f"the optimizer of the {role} holds a parameter of shape "
                        f"{tuple(leaf.shape)} that is owned by neither program. Expected: the "
                        f"parameters it is called with. Try: lambda params: "
                        f"torch.optim.Adam(params, lr=1e-3); use the network in the model or "
                        f"the guide, so that it is found."
                    )
                if role != "joint" and owner[id(leaf)][0] != role:
                    raise ValueError(
                        f"the optimizer of the {role} holds the {owner[id(leaf)][0]}'s parameter "
                        f"'{owner[id(leaf)][1]}'. Expected: the parameters it is called with. "
                        f"Try: lambda params: torch.optim.Adam(params, lr=1e-3)."
                    )
