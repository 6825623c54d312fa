r"""One node of the graph for a whole formula: its value and its slopes in one pass.

Eager torch pays for a formula of n elementary functions with n kernels, n nodes of the autograd
graph and about 2n kernels in the backward pass, every one of them through memory. A closed form
and its partial derivatives share nearly all of their subexpressions, so :func:`fused` computes
them together, in pieces that stay in the cache, keeps the slopes, and multiplies them by what
comes back:

.. math:: \bar x_i = \bar f \, \partial f / \partial x_i .

Where that is not wanted (in a graph that is being captured, under `torch.func`, for second
derivatives) the plain formula is taken, which autograd differentiates itself. Both are the same
function; the tests compare them.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import mode_stack_state_for_pre_dispatch
from torch.autograd import forward_ad

__all__ = ["PIECE", "Fast", "at_work", "can_look", "fused", "in_pieces", "scratch", "with_slopes"]

Fast = Callable[..., "tuple[Tensor | None, ...] | None"]
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # of make_fx
PIECE = 1 << 14  # elements of a piece: its dozen of temporaries fit in a core's cache
MOST_KEPT = 1 << 23  # bytes


def can_look() -> bool:
    """Whether Python may branch on a tensor's value: not in a graph, not under `torch.func`."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_dispatch_mode(_PROXY) is not None
        or mode_stack_state_for_pre_dispatch().get(0) is not None
    )


def at_work(*tensors: Tensor) -> bool:
    """Whether the plain work is all there is: nothing recorded, captured or mapped."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return not recorded and can_look() and not torch.jit.is_tracing()


_SCRATCH = threading.local()


def scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor to work in, of this shape; what it holds is lost at the next call.

    The C library gives temporaries above 64 KiB back to the system, and asks for their pages
    anew, one fault for every 4 KiB: that costs more than the work in them. So one is kept, for
    each thread and dtype, on the CPU.
    """
    size = math.prod(shape)
    if not like.is_cpu:
        return like.new_empty(shape)
    kept = getattr(_SCRATCH, str(like.dtype), None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=like.dtype)
        if kept.nbytes <= MOST_KEPT:
            setattr(_SCRATCH, str(like.dtype), kept)
    return kept[:size].view(shape)


class _Fused(torch.autograd.Function):
    """The value of `fast`, with its slopes; `plain` is differentiated for second derivatives."""

    @staticmethod
    def forward(
        ctx: Any, plain: Callable[..., Tensor], fast: Fast, vectors: bool, *inputs: Tensor
    ) -> Tensor:
        needed = ctx.needs_input_grad[3:]

        def piece(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            value, *slopes = fast(needed, *inputs) or _by_autograd(plain, needed, *inputs)
            return value, *(s if n else None for s, n in zip(slopes, needed, strict=True))

        value, *slopes = in_pieces(piece, _alike(inputs), vectors)
        ctx.plain, ctx.has, ctx.vectors = plain, [s is not None for s in slopes], vectors
        ctx.save_for_backward(*inputs, *(s for s in slopes if s is not None))
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.has)
        inputs, slopes = ctx.saved_tensors[:n], iter(ctx.saved_tensors[n:])
        if torch.is_grad_enabled():
            return None, None, None, *_through(ctx.plain, inputs, g)
        grads: list[Tensor | None] = [None, None, None]
        g = g.unsqueeze(-1) if ctx.vectors else g
        for x, has in zip(inputs, ctx.has, strict=True):
            grad = g * next(slopes) if has else None
            if grad is not None and grad.shape != x.shape:
                grad = grad.sum_to_size(x.shape)
            grads.append(grad if grad is None or grad.dtype is x.dtype else grad.to(x.dtype))
        return tuple(grads)


def _through(
    plain: Callable[..., Tensor], inputs: tuple[Tensor, ...], g: Tensor
) -> list[Tensor | None]:
    """Return the gradients of the plain formula, to be differentiated again."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(plain(*inputs), wanted, g, create_graph=True, allow_unused=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _alike(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs in one shape and one dtype."""
    first = inputs[0]
    if all(x.shape == first.shape and x.dtype is first.dtype for x in inputs[1:]):
        return inputs
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in inputs))
    return torch.broadcast_tensors(*(x.to(dtype) for x in inputs))


def in_pieces(
    piece: Callable[..., tuple[Tensor | None, ...]], inputs: tuple[Tensor, ...], vectors: bool
) -> tuple[Tensor | None, ...]:
    """Apply a function of several results, to large inputs piece by piece.

    It is elementwise, or one of vectors, whose first result has no last dimension. A result that
    is None for some pieces only is zero there.
    """
    first = inputs[0]
    if first.numel() <= 2 * PIECE or first.is_cuda:
        return piece(*inputs)
    event = first.shape[-1:] if vectors else ()
    flat = [x.reshape(-1, *event) for x in inputs]
    size, step = len(flat[0]), max(PIECE // max(math.prod(event), 1), 1)
    results: list[Tensor | None] = []
    for i in range(0, size, step):
        parts = piece(*(x[i : i + step] for x in flat))
        results = results or [None] * len(parts)
        for j, part in enumerate(parts):
            if part is not None and results[j] is None:
                make = part.new_zeros if i else part.new_empty
                results[j] = make(size, *part.shape[1:])
            if results[j] is not None:
                results[j][i : i + step] = 0.0 if part is None else part
    batch = first.shape[: first.dim() - len(event)]
    return tuple(None if r is None else r.view(batch + r.shape[1:]) for r in results)


def _by_autograd(
    plain: Callable[..., Tensor], needed: tuple[bool, ...], *inputs: Tensor
) -> tuple[Tensor | None, ...]:
    """Return what `fast` would, from the plain formula: for arguments it was not written for."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(n) for x, n in zip(inputs, needed, strict=True)]
        value = plain(*leaves)
        wanted = [x for x in leaves if x.requires_grad]
        ones = torch.ones_like(value)
        found = iter(torch.autograd.grad(value, wanted, ones, allow_unused=True))
    return value.detach(), *(next(found) if n else None for n in needed)


def with_slopes(
    value: Tensor,
    inputs: tuple[Tensor, ...],
    slopes: tuple[Tensor | None, ...],
    vectors: bool = False,
) -> Tensor:
    """Return the value with these first derivatives, in operations that any graph knows."""
    for x, slope in zip(inputs, slopes, strict=True):
        if slope is not None and x.requires_grad:
            none = (x - x.detach()) * slope  # zero, but for autograd
            value = value + (none.sum(-1) if vectors else none).to(value.dtype)
    return value


def _in_graph(fast: Fast, inputs: tuple[Tensor, ...], vectors: bool) -> Tensor | None:
    needed = tuple(x.requires_grad for x in inputs)
    with torch.no_grad():
        found = fast(needed, *_alike(tuple(x.detach() for x in inputs)))
    return None if found is None else with_slopes(found[0], inputs, found[1:], vectors)


def fused(
    plain: Callable[..., Tensor],
    fast: Fast,
    *inputs: Tensor,
    compiles: bool = False,
    vectors: bool = False,
) -> Tensor:
    """Return `plain(*inputs)`, an elementwise function, with its derivatives in one step.

    Args:
        plain: the formula, differentiable by autograd as often as wanted.
        fast: `fast(needed, *inputs)` returns the value, of the broadcast shape, and for each
            input its slope, or None where it is not `needed` or is zero; or None altogether for
            arguments it was not written for. Nothing in it is recorded, so it may work in place
            on what it made itself.
        inputs: tensors of shapes that broadcast.
        compiles: `fast` does not look at values where `can_look()` is false, and `torch.compile`
            should take it, for first derivatives; for a `plain` that is more than a closed form.
        vectors: the function takes vectors, in the last dimension, to one number each.
    """
    if compiles and torch.compiler.is_compiling():
        found = _in_graph(fast, inputs, vectors)
        if found is not None:
            return found
    if (
        not torch.is_grad_enabled()
        or not any(x.requires_grad for x in inputs)
        or not can_look()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
    ):
        return plain(*inputs)
    return _Fused.apply(plain, fast, vectors, *inputs)
