r"""Tail integrals by Gauss-Legendre nodes, and functions whose derivatives are written down.

Every function of this package is a ratio of the same kind. In a coordinate y in which the density
f is log-concave (log z for Gamma, logit x for Beta, log \|t\| for Student's t), the tail beyond y
seen from y itself is

.. math:: \frac{1}{f(y)} \int_0^{V} h(y \mp v)\, f(y \mp v)\,dv,

with h = 1 for the cdf and :math:`h = \partial_\theta \log f` for its derivative in a parameter.
On the side where the tail falls, the integrand is smooth, of one sign, and has dropped to
:math:`e^{-L}` at a V that is known in closed form. So a fixed number of nodes gives the cdf, its
logarithm and every derivative to a relative accuracy that does not depend on how far in the tail
y lies, in every regime of the parameters; where small parameters make the tail long, one step of
the recurrence in the parameter shortens it first.

:func:`known` makes a differentiable function of a value and its partial derivatives. The partials
are differentiable torch code again, so second derivatives are right; the interval V is a constant
to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.distributions.fused import can_look, with_slopes

__all__ = [
    "FINE",
    "MEDIUM",
    "ROUGH",
    "Rule",
    "in_chunks",
    "integrate",
    "known",
    "nodes",
    "result_dtype",
]

Partials = Callable[..., tuple[Tensor, ...]]


def _legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return nodes and weights of the Gauss-Legendre rule on [0, 1], by Newton's method."""
    points, weights = [], []
    for k in range(n):
        x = math.cos(math.pi * (k + 0.75) / (n + 0.5))
        for _ in range(8):
            before, now = 1.0, x
            for j in range(2, n + 1):
                before, now = now, ((2 * j - 1) * x * now - (j - 1) * before) / j
            slope = n * (x * now - before) / (x * x - 1)
            x -= now / slope
        points.append((1 - x) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return tuple(points), tuple(weights)


def _clustered(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the rule after v = s (1 + s) / 2, whose nodes are denser where the tail is high."""
    points, weights = _legendre(n)
    return (
        tuple(s * (1 + s) / 2 for s in points),
        tuple(w * (0.5 + s) for s, w in zip(points, weights, strict=True)),
    )


class Rule:
    """How many nodes, and the exponent L at which the tail is cut; nodes and weights are kept."""

    def __init__(self, count: int, drop: float) -> None:
        self.count, self.drop = count, drop
        self.points, weights = _clustered(count)
        first = tuple(w * v for w, v in zip(weights, self.points, strict=True))
        self.weights = weights, first


ROUGH = Rule(12, 17.0)  # relative error below 1e-5: gradients in float32
MEDIUM = Rule(25, 29.0)  # below 1e-10: gradients in float64
FINE = Rule(32, 40.0)  # near 1e-15


def nodes(rule: Rule, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes on [0, 1], `[K, 1, ...]`, and the weights times 1 and v, `[2, K]`."""
    t = torch.tensor(rule.points, dtype=like.dtype, device=like.device)
    w = torch.tensor(rule.weights, dtype=like.dtype, device=like.device)
    return t.view((rule.count,) + (1,) * like.dim()), w


def integrate(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sums over the nodes: `[M, K]` and `[K, ...]` to `[M, ...]`."""
    flat = weights.to(values.dtype) @ values.reshape(values.shape[0], -1)
    return flat.view(weights.shape[:1] + values.shape[1:])


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of the result: the arguments' own, or the default for integers."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def in_chunks(
    fn: Callable[..., tuple[Tensor, ...]], count: int, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Apply an elementwise `fn` in pieces small enough for the cache, and for the allocator.

    On a CPU a temporary has at most 256 KiB: larger ones are given back to the system each time,
    and their pages cost more than the work. A graph that is being captured, mapped or
    differentiated gets it whole.

    Args:
        fn: takes as many tensors as are given, returns a tuple of tensors.
        count: how many numbers `fn` holds at once for each element, nodes of a rule for example.
        tensors: of one shape.
    """
    size = tensors[0].numel()
    most = 1 << 30 if tensors[0].is_cuda else 1 << 18  # bytes
    piece = max(most // (count * tensors[0].element_size()), 256)
    if (
        size <= piece
        or not can_look()
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    ):
        return fn(*tensors)
    shape = tensors[0].shape
    flat = [t.reshape(-1) for t in tensors]
    results: list[Tensor] = []
    for i in range(0, size, piece):
        parts = fn(*(t[i : i + piece] for t in flat))
        if not results:
            results = [part.new_empty(size) for part in parts]
        for result, part in zip(results, parts, strict=True):
            result[i : i + piece] = part
    return tuple(result.view(shape) for result in results)


def _count(rule: Rule | None) -> int:
    return rule.count if rule else 8


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert, with the largest number of the dtype in the place of what is beyond it."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


class _Known(torch.autograd.Function):
    """A value with given partials: `partials(needed, output, *inputs)`, differentiable again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Callable[..., Tensor],
        partials: Partials,
        rules: tuple[Rule | None, Rule | None],
        dtype: torch.dtype,
        *inputs: Tensor,
    ) -> Tensor:
        def piece(*inputs: Tensor) -> tuple[Tensor]:
            return (value(*(t.double() for t in inputs)).to(dtype),)

        return in_chunks(piece, _count(rules[0]), *inputs)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.partials, ctx.rule = inputs[1], inputs[2][1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, *inputs[4:])
        ctx.save_for_forward(output, *inputs[4:])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[4:])
        if g is None:
            return (None,) * (4 + len(needed))

        def piece(g: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            slopes = ctx.partials(tuple(needed), *(t.double() for t in tensors))
            needed[:] = [n and s is not None for n, s in zip(needed, slopes, strict=True)]
            pairs = zip(needed, slopes, tensors[1:], strict=True)
            return tuple(_narrow(g.double() * s, t.dtype) for n, s, t in pairs if n)

        grads = iter(in_chunks(piece, _count(ctx.rule), g, *ctx.saved_tensors))
        return (None,) * 4 + tuple(next(grads) if n else None for n in needed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        output, *inputs = ctx.saved_tensors
        needed = tuple(t is not None for t in tangents[4:])
        slopes = ctx.partials(needed, *(t.double() for t in (output, *inputs)))
        total = torch.zeros_like(output)
        for tangent, slope, n in zip(tangents[4:], slopes, needed, strict=True):
            if n and slope is not None:
                total = total + (tangent.double() * slope).to(output.dtype)
        return total


def known(
    value: Callable[..., Tensor],
    partials: Partials,
    *inputs: Tensor,
    rules: tuple[Rule | None, Rule | None] = (None, None),
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return `value(*inputs)` with these derivatives; inputs are broadcast, and met in float64.

    Args:
        value: the function, of tensors of one shape; nothing in it is recorded.
        partials: `partials(needed, output, *inputs)` returns one tensor for each input; where
            `needed` is False anything may stand, and None for a derivative that is zero. It is
            differentiated for second derivatives.
        inputs: tensors of any shapes that broadcast.
        rules: the rules of integration that value and partials use, to size the pieces by.
        dtype: of the result.
    """
    inputs = torch.broadcast_tensors(*inputs)
    if torch.compiler.is_compiling():  # which does not know autograd Functions of functions
        return _in_graph(value, partials, dtype, inputs)
    return _Known.apply(value, partials, rules, dtype, *inputs)


def _in_graph(
    value: Callable[..., Tensor],
    partials: Partials,
    dtype: torch.dtype,
    inputs: tuple[Tensor, ...],
) -> Tensor:
    """Return the value with its first derivatives."""
    needed = tuple(x.requires_grad for x in inputs)
    with torch.no_grad():
        wide = tuple(x.detach().double() for x in inputs)
        out = value(*wide).to(dtype)
        slopes = partials(needed, out.double(), *wide) if any(needed) else (None,) * len(inputs)
        slopes = tuple(
            _narrow(s, dtype) if n and s is not None else None
            for n, s in zip(needed, slopes, strict=True)
        )
    return with_slopes(out, inputs, slopes)
