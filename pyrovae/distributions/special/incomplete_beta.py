r"""Regularized incomplete beta functions: both tails, all three derivatives, logs and inverses.

With :math:`f(y) = x^a (1 - x)^b / B(a, b)`, the density of :math:`y = \mathrm{logit}\,x`,
:math:`x \sim \mathrm{Beta}(a, b)`, and :math:`L(v) = \log(1 + x(e^{-v} - 1))`,

.. math::

    \frac{I_x}{f} = \int_0^V e^{-a v - (a + b) L(v)}\,dv, \quad
    \frac{\partial_a I_x}{f} = \int_0^V (\log x - v - L - \psi(a) + \psi(a + b))\, e^{\cdots}\,dv,

and for b with :math:`\log(1 - x) - L - \psi(b) + \psi(a + b)`. The other side is the same with
x, a against 1 - x, b. One step of :math:`I(a, b) = I(a + 1, b) + f/a` shortens the tail before it
is integrated. The pathwise derivatives of y are :math:`-\partial I / f` from either side.

Accuracy: as `incomplete_gamma`; the tests state it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrovae.distributions.fused import at_work, can_look, scratch
from pyrovae.distributions.special import surfaces
from pyrovae.distributions.special.incomplete_gamma import draw_log_gamma
from pyrovae.distributions.special.quadrature import (
    FINE,
    MEDIUM,
    ROUGH,
    Rule,
    in_chunks,
    integrate,
    known,
    nodes,
    result_dtype,
)
from pyrovae.distributions.special.stirling import (
    digamma_difference,
    lgamma_difference,
    log_ratio_minus,
    stirling,
)

__all__ = [
    "attach_logit_beta",
    "betainc",
    "betaincc",
    "betainccinv",
    "betaincinv",
    "density_of_ratios",
    "log_beta_density",
    "log_betainc",
    "log_betaincc",
    "logit_beta_slope",
    "logit_beta_slopes",
    "sample_logit_beta",
]


def _log_density(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return log f(y), the log-density of y = logit x; float64."""
    x, rest = torch.sigmoid(y), torch.sigmoid(-y)
    return density_at(a, b, x, rest, logsigmoid(y), logsigmoid(-y))


def density_at(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    rest: Tensor,
    log_x: Tensor,
    log_rest: Tensor,
    quick: bool = False,
) -> Tensor:
    """Return :math:`a log x + b log(1 - x) - log B(a, b)`, from x, 1 - x and their logs."""
    miss = x * b - rest * a
    first, second = log_x + torch.log1p(b / a), log_rest + torch.log1p(a / b)
    return density_of_ratios(a, b, (first, miss / a), (second, -miss / b), quick)


def density_of_ratios(
    a: Tensor,
    b: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    quick: bool = False,
) -> Tensor:
    """Return the same from x and 1 - x over their means: (log r, r - 1) of each ratio r."""
    bends = a * log_ratio_minus(*first, quick) + b * log_ratio_minus(*second, quick)
    norm = 0.5 * (a * b / (2 * math.pi * (a + b))).log()
    return bends + norm - (stirling(a, quick) + stirling(b, quick) - stirling(a + b, quick))


def _on_right(a: Tensor, b: Tensor, x: Tensor, rest: Tensor) -> Tensor:
    """Whether the upper tail is the near one: x is above (a + 1)/(a + b + 2), or above 1/2."""
    some = (torch.maximum(a, b) >= 1).to(a.dtype)
    return torch.addcmul(x, x, b * some) > torch.addcmul(rest, rest, a * some)


def _end(
    a: Tensor, b: Tensor, y: Tensor, x: Tensor, rest: Tensor, log_rest: Tensor, drop: float
) -> Tensor:
    """Return a V at which a v + (a + b) L(v) is at least `drop`: the least of three bounds."""
    n = a + b
    lean = torch.addcmul(a * rest, b, x, value=-1).clamp_min(0.0)
    both = torch.addcmul(lean, n, x * rest)
    half = 2 * lean - drop
    end = torch.addcmul(half * half, both, torch.full_like(y, 8 * drop)).sqrt().sub(half)
    end = torch.minimum(end / (2 * both), (drop - n * log_rest) / a)
    odds = y.clamp_max(600.0).exp() * (2 / n)
    for _ in range(2):
        grow = torch.log1p((drop + b * end) * odds)
        end = torch.where(grow <= y, torch.minimum(end, grow), end)
    return end


def _left(
    a: Tensor, b: Tensor, y: Tensor, rule: Rule, want: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """Return I/f and, as wanted, its derivatives' -dI/da / f and -dI/db / f, on the left side."""
    c, n = a + 1, a + b
    x, log_x, log_rest = torch.sigmoid(y), logsigmoid(y), logsigmoid(-y)
    with torch.no_grad():
        end = _end(c, b, y, x, torch.sigmoid(-y), log_rest, rule.drop)
    total, *parts = in_chunks(
        lambda *at: _integrals(*at, rule=rule, want=want), rule.count, c, b, y, end, log_rest
    )
    shift = x * n / a
    ratio = 1 / a + shift * total
    if not parts:
        return (ratio,)
    ahead, behind = _digamma_steps(a, b, rule)
    results = [ratio]
    if want[0]:
        centre = log_x + ahead
        part = parts[0] - centre * total
        results.append(shift * part - (centre - 1 / n) / a)
    if want[1]:
        results.append(parts[-1] - behind * ratio)
    return tuple(results)


def _integrals(
    c: Tensor,
    b: Tensor,
    y: Tensor,
    end: Tensor,
    log_rest: Tensor,
    rule: Rule,
    want: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    r"""Return the integral over v of :math:`g = e^{-c(v + L) - b L}`, and as wanted two more.

    They are those of g times v + L, and of :math:`g\,e^{v + L}` times the logarithm of 1 - x at v.

    v + L and L are the logarithms of x and of 1 - x here over what they are there; the smaller
    of x and 1 - x gives the one, and v the other, so that neither cancels.
    """
    t, w = nodes(rule, y)
    low = (y <= 0).to(y.dtype)
    edge, both, lean = torch.sigmoid(-y.abs()), c + b, torch.lerp(b, -c, low) * end
    signed = end - 2 * low * end
    least = torch.finfo(y.dtype).eps / 16
    if at_work(c, b, y, end):
        fall, arg, log, weight = scratch((4, rule.count, *y.shape), y)
        torch.mul(signed, t, out=fall).expm1_()
        torch.mul(fall, edge, out=arg)
        torch.log1p(arg, out=log)  # L where x is small, v + L where it is not
        torch.mul(log, both, out=weight).neg_().addcmul_(lean, t).exp_()
        results = [integrate(w, weight)]
        if want[1]:  # before log is written over
            growth = fall.mul_(low).add_(1).clamp_min_(least).reciprocal_().mul_(arg.add_(1))
            growth.mul_(weight)
            rest = torch.sub(log, log_rest, out=arg).addcmul_(end * (1 - low), t, value=-1)
            results.append(integrate(w[:1], growth.mul_(rest))[0])
        if want[0]:
            results.insert(1, integrate(w[:1], weight.mul_(log))[0])
    else:
        fall = torch.expm1(signed * t)
        arg = edge * fall
        log = torch.log1p(arg)
        weight = torch.exp(torch.addcmul(lean * t, log, both, value=-1))
        results = [integrate(w, weight)]
        if want[0]:
            results.append(integrate(w[:1], weight * log)[0])
        if want[1]:
            rest = torch.addcmul(log - log_rest, end * (1 - low), t, value=-1)
            growth = (arg + 1) / (fall * low + 1).clamp_min(least)
            results.append(integrate(w[:1], weight * growth * rest)[0])
    sums = results[0]
    results[0] = sums[0]
    if want[0]:
        results[1] = torch.addcmul(results[1], low * end, sums[1])
    return tuple(result * end for result in results)


def _digamma_steps(a: Tensor, b: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\psi(a + 1 + b) - \psi(a + 1)` and :math:`\psi(a + b) - \psi(b)`."""
    if rule is FINE:
        return digamma_difference(a + 1, b), digamma_difference(b, a)
    dtype, a, b = a.dtype, a.double(), b.double()
    n = a + b
    shapes = torch.stack((a, b, n))
    rest_a, rest_b, rest_n = surfaces.digamma_rest(shapes, rule is ROUGH).unbind(0)
    ahead = torch.log1p(b / (1 + a)) + (rest_n - rest_a)
    behind = torch.log1p(a / (1 + b)) + (rest_n - rest_b) + a / (b * n)
    return ahead.to(dtype), behind.to(dtype)


def _near(
    a: Tensor, b: Tensor, y: Tensor, rule: Rule, want: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, ...]:
    """Return the near tail over f, dy/da, dy/db (zeros where not wanted), whether it is upper."""
    right = _on_right(a, b, torch.sigmoid(y), torch.sigmoid(-y))
    first, second = torch.where(right, b, a), torch.where(right, a, b)
    both = (want[0] or want[1],) * 2
    ratio, *slopes = _left(first, second, torch.where(right, -y, y), rule, both)
    if not slopes:
        return ratio, torch.zeros_like(y), torch.zeros_like(y), right
    near, far = slopes
    none = torch.zeros_like(y) if not all(want) else y
    per_a = torch.where(right, -far, near) if want[0] else none
    return ratio, per_a, torch.where(right, -near, far) if want[1] else none, right


def _log_tails(a: Tensor, b: Tensor, y: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return log I and log(1 - I); float64."""
    ratio, _, _, right = _near(a, b, y, rule, (False, False))
    near = (_log_density(a, b, y) + ratio.log()).clamp_max(0.0)
    first, second = torch.where(right, b, a), torch.where(right, a, b)
    tiny = (first < 1) & (near > -0.7)
    small = _small_far(first, second, torch.where(right, -y, y), tiny)
    far = torch.where(tiny, small, torch.log1p(-torch.where(tiny, -1.0, near).exp()))
    near = torch.where(tiny, torch.log1p(-small.exp()), near)
    return torch.where(right, far, near), torch.where(right, near, far)


def _small_far(a: Tensor, b: Tensor, y: Tensor, where: Tensor) -> Tensor:
    r"""Return log(1 - I) for a < 1 on the left side, where I is near 1.

    :math:`I = x^a\,\Gamma(a + b)/(\Gamma(a + 1)\Gamma(b))\,
    (1 + a \sum_{n \ge 1} (1 - b)_n x^n / (n!\,(a + n)))`.
    """
    a, b, y = (torch.where(where, t, s) for t, s in ((a, 0.5), (b, 1.0), (y, -1.0)))
    x = torch.sigmoid(y)
    total, power = torch.zeros_like(x), torch.ones_like(x)
    for n in range(1, 51):
        power = power * ((n - b) / n * x)
        total = total + power / (a + n)
    one = torch.ones_like(a)
    lead = a * logsigmoid(y) + lgamma_difference(b, a) - lgamma_difference(one, a)
    return (-torch.expm1(lead) - lead.exp() * a * total).clamp_min(5e-324).log()


def _logit(x: Tensor) -> Tensor:
    inside = x.clamp(1e-320, 1 - 2**-53)
    return inside.log() - torch.log1p(-inside)


def _tail_function(
    a: Tensor, b: Tensor, x: Tensor, log: bool, lower: bool, logit: bool = False
) -> Tensor:
    """Return a tail at x, or at logit x, with its derivatives."""
    dtype = result_dtype(a, b, x)
    ends = (-math.inf, math.inf) if logit else (0.0, 1.0)

    def coordinate(x: Tensor) -> Tensor:
        return x.clamp(-1e5, 1e5) if logit else _logit(x)

    def value(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        logs = _log_tails(a, b, coordinate(x), FINE)[0 if lower else 1]
        none, all_ = (x <= ends[0], x >= ends[1]) if lower else (x >= ends[1], x <= ends[0])
        logs = logs.masked_fill(none, -math.inf).masked_fill(all_, 0.0)
        logs = logs.masked_fill(x.isnan(), math.nan)
        return logs if log else logs.exp()

    def partials(needed: tuple[bool, ...], out: Tensor, a: Tensor, b: Tensor, x: Tensor) -> tuple:
        inside = (x > ends[0]) & (x < ends[1])
        y = coordinate(x)
        _, per_a, per_b, _ = _near(a, b, y, MEDIUM, (needed[0], needed[1]))
        scale = torch.exp(_log_density(a, b, y) - (out if log else 0.0))
        scale = torch.where(inside, scale if lower else -scale, 0.0)
        s = torch.where(inside, x, 0.5)
        return -scale * per_a, -scale * per_b, scale if logit else scale / (s * (1 - s))

    return known(value, partials, a, b, x, rules=(FINE, MEDIUM)).to(dtype)


def betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`I_x(a, b)`, the cdf of Beta(a, b), with derivatives in a, b and x.

    >>> betainc(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.5))
    tensor(0.2500)
    """
    return _tail_function(a, b, x, False, True)


def betaincc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`1 - I_x(a, b)`, accurate where it is small."""
    return _tail_function(a, b, x, False, False)


def log_betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\log I_x(a, b)`."""
    return _tail_function(a, b, x, True, True)


def log_betaincc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - I_x(a, b))`."""
    return _tail_function(a, b, x, True, False)


def _solve(a: Tensor, b: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return logit x with log I = log_p, log(1 - I) = log_q, by Halley's method; float64."""
    upper = log_q < log_p
    c, d = torch.where(upper, b, a), torch.where(upper, a, b)
    target = torch.minimum(log_p, log_q)
    y = _start(c, d, target)
    for _ in range(14):
        logs = _log_tails(c, d, y, FINE)[0]
        hazard = torch.exp(_log_density(c, d, y) - logs)
        newton = (target - logs) / hazard
        bend = 0.5 * newton * (c * torch.sigmoid(-y) - d * torch.sigmoid(y) - hazard)
        step = newton / (1 + bend.clamp(-0.5, 1.0))
        most = 40 / torch.minimum(c, d) + 2
        y = y + torch.where(step.isfinite(), torch.minimum(torch.maximum(step, -most), most), 0.0)
    return torch.where(upper, -y, y)


def _start(a: Tensor, b: Tensor, log_p: Tensor) -> Tensor:
    """Return a first guess for the lower half: a power law at the edge, or a normal in logit x."""
    edge = (log_p + a.log() + torch.lgamma(a) - lgamma_difference(b, a)) / a
    edge = torch.where(edge < -0.1, edge - torch.log(-torch.expm1(edge.clamp_max(-0.1))), 2.0)
    s, t = a.clamp_min(0.3), b.clamp_min(0.3)
    spread = (torch.polygamma(1, s) + torch.polygamma(1, t)).sqrt()
    normal = torch.special.ndtri(log_p.clamp_min(-700).exp())
    middle = torch.digamma(s) - torch.digamma(t) + spread * normal
    return torch.where(edge < a.log() - b.log() - 1.5, edge, middle)


def _inverse(a: Tensor, b: Tensor, u: Tensor, lower: bool, logit: bool = False) -> Tensor:
    """Return the quantile x, or logit x, with its derivatives."""
    dtype = result_dtype(a, b, u)

    def value(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
        inner = u.clamp(5e-324, 1.0)
        logs = inner.log(), torch.log1p(-inner).clamp_min(-800.0)
        y = _solve(a, b, *(logs if lower else logs[::-1]))
        low, high = (u == 0, u == 1) if lower else (u == 1, u == 0)
        y = y.masked_fill(low, -math.inf).masked_fill(high, math.inf)
        y = y.masked_fill((u < 0) | (u > 1) | u.isnan(), math.nan)
        return y if logit else torch.sigmoid(y)

    def partials(needed: tuple[bool, ...], x: Tensor, a: Tensor, b: Tensor, u: Tensor) -> tuple:
        y = x.clamp(-1e5, 1e5) if logit else _logit(x)
        _, per_a, per_b, _ = _near(a, b, y, MEDIUM, (needed[0], needed[1]))
        jacobian = 1.0 if logit else x * (1 - x)
        per_u = jacobian * torch.exp(-_log_density(a, b, y))
        return jacobian * per_a, jacobian * per_b, per_u if lower else -per_u

    return known(value, partials, a, b, u, rules=(FINE, MEDIUM)).to(dtype)


def betaincinv(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    r"""Return the x with :math:`I_x(a, b) = p`, the quantile of Beta(a, b).

    >>> betaincinv(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.25))
    tensor(0.5000)
    """
    return _inverse(a, b, p, True)


def betainccinv(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    r"""Return the x with :math:`1 - I_x(a, b) = q`."""
    return _inverse(a, b, q, False)


def log_beta_density(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`a\log x + b\log(1 - x) - \log B(a, b)`, the log-density of y = logit x."""
    dtype = result_dtype(a, b, y)

    def partials(needed: tuple[bool, ...], out: Tensor, a: Tensor, b: Tensor, y: Tensor) -> tuple:
        per_a = logsigmoid(y) + digamma_difference(a, b) if needed[0] else None
        per_b = logsigmoid(-y) + digamma_difference(b, a) if needed[1] else None
        return per_a, per_b, a * torch.sigmoid(-y) - b * torch.sigmoid(y)

    return known(_log_density, partials, a, b, y, dtype=dtype)


def logit_beta_slopes(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the pathwise derivatives dy/da, dy/db of y = logit x, x ~ Beta(a, b).

    Relative error below 1e-6 in float32 and 1e-11 in float64, for a, b in [1e-2, 1e4].
    """
    return _slopes(a, b, y, (True, True))


def _slopes(a: Tensor, b: Tensor, y: Tensor, want: tuple[bool, bool]) -> tuple[Tensor, ...]:
    dtype = result_dtype(a, b, y)
    rule = slope_rule(dtype)

    def piece(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if rule is ROUGH and _small(a, b):
            found = _narrow_slopes(a.float(), b.float(), y.float(), want)
        else:
            found = _near(a.double(), b.double(), y.double(), rule, want)[1:3]
        return tuple(slope.to(dtype) for slope, w in zip(found, want, strict=True) if w)

    return in_chunks(piece, 8, *torch.broadcast_tensors(a, b, y))


def _small(a: Tensor, b: Tensor) -> bool:
    """Whether float32 keeps 1e-5 of the slopes, as far as one can look."""
    if not can_look() or not a.numel():
        return False
    return max(a.amax().item(), b.amax().item()) < 300.0


def _narrow_slopes(
    a: Tensor, b: Tensor, y: Tensor, want: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return dy/da and dy/db; where x or 1 - x is below e^-60, they are linear in y."""
    core = y.clamp(-60.0, 60.0)
    per_a, per_b = _near(a, b, core, ROUGH, want)[1:3]
    beyond = y - core
    if want[0]:
        per_a = torch.addcdiv(per_a, beyond.clamp_max(0.0), a, value=-1)
    if want[1]:
        per_b = torch.addcdiv(per_b, beyond.clamp_min(0.0), b, value=-1)
    return per_a, per_b


def slope_rule(dtype: torch.dtype) -> Rule:
    """Return the rule for gradients of draws of this dtype."""
    return MEDIUM if dtype == torch.float64 else ROUGH


def logit_beta_slope(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    r"""Return dy/da alone."""
    return _slopes(a, b, y, (True, False))[0]


def attach_logit_beta(y: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the draw y = logit x with its implicit gradient, as often as wanted; float64."""
    rule = slope_rule(dtype)

    def partials(needed: tuple[bool, ...], y: Tensor, a: Tensor, b: Tensor, draw: Tensor) -> tuple:
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (y, a, b))
        exact = MEDIUM if recorded else rule
        return *_near(a, b, y, exact, (needed[0], needed[1]))[1:3], None

    return known(lambda a, b, y: y.clone(), partials, a, b, y, rules=(None, rule))


def sample_logit_beta(a: Tensor, b: Tensor) -> Tensor:
    r"""Draw :math:`y = \mathrm{logit}\,x`, x ~ Beta(a, b), with its implicit gradient; float64.

    The difference of two log-Gammas: no concentration piles the draws up at 1/2, 0 or 1.
    """
    dtype = result_dtype(a, b)
    a, b = torch.broadcast_tensors(a, b)
    parts = draw_log_gamma(torch.stack((a.detach(), b.detach())).to(dtype)).double()
    return attach_logit_beta(parts[0] - parts[1], a, b, dtype)
