r"""The contract test of a distribution, for our families and for yours.

:func:`check_distribution` asks of a distribution everything that inference relies on: shapes,
`expand`, `to_event`, `mask`, dtypes, copies; draws inside the support that follow the density;
a pathwise gradient that is the gradient of the expectation; tails and quantiles that invert each
other at both ends; moments that are those of the draws; errors that name what is wrong. What a
distribution does not define (`NotImplementedError`) is not asked for.

Statistical checks have both error rates stated. With n draws the empirical cdf leaves the band of
half-width :math:`\epsilon = \sqrt{\log(2 / \alpha) / 2n}` around the true one with probability at
most :math:`\alpha = 10^{-9}` (Dvoretzky, Kiefer and Wolfowitz 1956, Massart 1990), and stays in it
although the cdf is wrong by :math:`2 \epsilon` somewhere with at most the same probability: at
40,000 draws, 0.016 and 0.033. Means are compared in bands of 6.5 standard errors (false alarm
:math:`10^{-10}` each where the central limit holds).
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.distributions.testing.gof import auto_goodness_of_fit
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions import map_tensors
from pyrovae.nn import is_circle

__all__ = ["check_distribution"]

_ALPHA = 1e-9
_BAND = 6.5


def check_distribution(
    d: Any, oracle: Any = None, *, samples: int = 40_000, seed: int = 0
) -> None:
    """Check that a distribution keeps the contract; the random state is left as it was.

    Args:
        d: a distribution with `rsample`, of any small batch shape.
        oracle: a frozen `scipy.stats` distribution, or any object with some of `logpdf`, `cdf`,
            `sf`, `ppf`, `mean` and `var`: values of d are compared with its.
        samples: number of draws of the statistical checks.
        seed: of the draws.

    Raises:
        AssertionError: the first thing that failed, with numbers.

    >>> from pyrovae.distributions import Logistic
    >>> check_distribution(Logistic(0.5, 2.0))
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.no_grad():
            z = d.sample((samples,))
        case = _Case(d, z, oracle)
        for check in _CHECKS:
            check(case)


@dataclass
class _Case:
    """What is checked: the distribution, draws of it, and what to compare it with."""

    d: Any
    z: Tensor
    oracle: Any
    univariate: bool = field(init=False)
    angle: bool = field(init=False)
    eps: float = field(init=False)

    def __post_init__(self) -> None:
        self.univariate = len(self.d.event_shape) == 0
        self.angle = is_circle(self.d.support)  # both ends are one point
        self.eps = torch.finfo(self.z.dtype).eps

    def fail(self, what: str) -> None:
        raise AssertionError(f"{self.d!r}: {what}")

    def true(self, good: Any, what: str) -> None:
        if not bool(torch.as_tensor(good).all()):
            self.fail(what)

    def close(self, a: Tensor, b: Any, what: str, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Demand a = b; NaN equals NaN, infinities equal themselves."""
        b = torch.as_tensor(b, device=a.device).to(a)
        a, b = torch.broadcast_tensors(a, b)
        same = (a == b) | (a.isnan() & b.isnan())
        good = same | ((a - b).abs() <= atol + rtol * b.abs())
        if not bool(good.all()):
            i = int((~good).flatten().nonzero()[0])
            self.fail(f"{what}: {a.flatten()[i].item():.9g}, not {b.flatten()[i].item():.9g}")

    def ask(self, name: str, *args: Any) -> Any:
        """Return what a method or property gives, None where the distribution has none."""
        try:
            found = getattr(self.d, name)
            return found(*args) if callable(found) else found
        except (NotImplementedError, AttributeError):
            return None

    def within(self, values: Tensor, expected: Any, what: str, size: Tensor | None = None) -> None:
        """Demand that the mean of draws `[n, ...]` is `expected`, in a band of 6.5 errors.

        Rounding is allowed for relative to `size`, the terms that the values were made of.
        """
        n = values.shape[0]
        error = values.std(0) / n**0.5
        size = values if size is None else size
        slack = _BAND * error + 100 * self.eps * size.abs().mean(0)
        expected = torch.as_tensor(expected, device=values.device).to(values)
        off = (values.mean(0) - expected).abs()
        bad = off > slack
        if bool(bad.any()):
            worst = int(torch.where(bad, off / error, 0.0).flatten().argmax())
            got, band = values.mean(0).flatten()[worst], slack.flatten()[worst]
            self.fail(
                f"{what}: {expected.expand(off.shape).flatten()[worst].item():.6g}, but draws "
                f"give {got.item():.6g} +- {band.item():.2g}"
            )


def _shapes(c: _Case) -> None:
    d, shape = c.d, c.d.batch_shape + c.d.event_shape
    c.true(tuple(d.rsample().shape) == tuple(shape), f"rsample() has not shape {tuple(shape)}")
    z = d.rsample((2, 3))
    c.true(z.shape == (2, 3, *shape), f"rsample((2, 3)) has shape {tuple(z.shape)}")
    lead = (2, 3, *d.batch_shape)
    c.true(d.log_prob(z).shape == lead, f"log_prob has shape {tuple(d.log_prob(z).shape)}")
    for name in ("mean", "mode", "variance", "stddev"):
        value = c.ask(name)
        if value is not None and value.shape != shape:
            c.fail(f"{name} has shape {tuple(value.shape)}, not {tuple(shape)}")
    entropy = c.ask("entropy")
    if entropy is not None and entropy.shape != d.batch_shape:
        c.fail(f"entropy() has shape {tuple(entropy.shape)}, not {tuple(d.batch_shape)}")
    for name in ("cdf", "sf", "log_cdf", "log_sf") if c.univariate else ():
        value = c.ask(name, z)
        if value is not None and value.shape != lead:
            c.fail(f"{name} has shape {tuple(value.shape)}, not {lead}")


def _expand(c: _Case) -> None:
    d = c.d
    wide = d.expand((4, *d.batch_shape))
    z = wide.sample()
    c.true(wide.batch_shape == (4, *d.batch_shape), "expand gives another batch shape")
    c.true(z.shape == wide.batch_shape + wide.event_shape, "expand draws another shape")
    tol = {"rtol": 50 * c.eps, "atol": 50 * c.eps}
    c.close(wide.log_prob(z), d.log_prob(z), "log_prob after expand", **tol)
    event = wide.to_event(len(wide.batch_shape))
    c.close(event.log_prob(z), wide.log_prob(z).sum(), "log_prob after to_event", rtol=1e3 * c.eps,
            atol=1e3 * c.eps)  # fmt: skip
    c.close(wide.mask(False).log_prob(z), 0.0, "log_prob after mask(False)")
    mean, wide_mean = c.ask("mean"), _Case(wide, z, None).ask("mean")
    if mean is not None and wide_mean is not None:
        c.close(wide_mean, mean.expand(z.shape), "the mean after expand")


def _copies(c: _Case) -> None:
    """Copies, and what a pickle needs: a state that is rebuilt and a class found by its name."""
    z = c.z[:5]
    expected = c.d.log_prob(z)
    c.close(copy.deepcopy(c.d).log_prob(z), expected, "log_prob of a deep copy")
    c.close(copy.copy(c.d).log_prob(z), expected, "log_prob of a copy")
    family = type(c.d)
    found: Any = sys.modules[family.__module__]
    for part in family.__qualname__.split("."):
        if part != "<locals>":  # a class made inside a function is not asked for
            found = getattr(found, part, family)
    c.true(
        found is family, f"pickling fails: {family.__module__}.{family.__qualname__} is another"
    )
    if family.__name__ not in repr(c.d):
        c.fail("repr does not name the class")


def _draws(c: _Case) -> None:
    d, z = c.d, c.z
    c.true(z.isfinite(), f"{int((~z.isfinite()).sum())} of {z.numel()} numbers drawn not finite")
    inside = d.support.check(z)
    c.true(inside, f"{int((~inside).sum())} of {inside.numel()} draws are outside {d.support}")
    score = d.log_prob(z)
    c.true(score.isfinite(), f"{int((~score.isfinite()).sum())} draws have no finite log_prob")
    both = c.ask("rsample_and_log_prob", (500,))
    if both is not None:
        scale = d.log_prob(both[0])
        tol = 1e4 * c.eps
        c.close(both[1], scale, "the score that came with a draw", rtol=tol, atol=tol)
    single = map_tensors(d, lambda t: t.float() if t.is_floating_point() else t)
    few = single.sample((100,))
    c.true(few.dtype == torch.float32, f"draws in float32 have dtype {few.dtype}")
    c.true(few.isfinite(), "draws in float32 are not finite")
    c.true(single.log_prob(few).dtype == torch.float32, "log_prob in float32 changes the dtype")


def _follows(c: _Case) -> None:
    """The draws follow the density: by the cdf where there is one, else by Pyro's gof."""
    d, z, n = c.d, c.z, c.z.shape[0]
    cdf = c.ask("cdf", z) if c.univariate else None
    if cdf is not None:
        u = cdf.reshape(n, -1).sort(0).values
        grid = torch.arange(n, dtype=u.dtype, device=u.device)[:, None]
        off = torch.maximum((u - grid / n).abs(), (u - (grid + 1) / n).abs()).amax(0)
        band = math.sqrt(math.log(2 / _ALPHA) / (2 * n))
        c.true(off < band, f"the draws' cdf is {off.max().item():.3g} away, band {band:.3g}")
        return
    if len(d.event_shape) > 1:
        return
    few = min(n, 20_000)
    flat = z[:few].reshape(few, -1, *d.event_shape)
    probs = d.log_prob(z[:few]).exp().reshape(few, -1)
    if isinstance(d.support, type(constraints.simplex)):
        flat = flat[..., :-1]
        flat = flat[..., 0] if flat.shape[-1] == 1 else flat
    surface = isinstance(d.support, type(pyro_constraints.sphere))  # of one dimension less
    dim = d.event_shape[0] - 1 if surface else None
    for i in range(min(flat.shape[1], 4)):
        p = auto_goodness_of_fit(flat[:, i], probs[:, i], dim=dim)
        c.true(torch.as_tensor(p > _ALPHA), f"draws do not follow log_prob: p = {float(p):.2g}")


def _arguments(d: Any) -> dict[str, Any]:
    """Return what the constructor was given, as far as it can be seen."""
    names = [n for n in signature(type(d)).parameters if n != "validate_args"]
    held = {n: d.__dict__[n] for n in names if n in d.__dict__}
    if not set(held) & set(d.arg_constraints):  # parameters that are properties: Beta, LogNormal
        held.update({n: getattr(d, n) for n in names if n in d.arg_constraints})
    return held


def _rebuild(d: Any, **changes: Any) -> Any:
    """Construct a distribution of this class anew, with some arguments changed."""
    return type(d)(**{**_arguments(d), **changes})


def _leaves(d: Any, n: int) -> tuple[Any, list[Tensor]]:
    """Return d with n copies of each parameter as leaves, and the leaves."""
    wide = d.expand((n, *d.batch_shape))
    found: list[Tensor] = []

    def leaf(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_floating_point() or t.shape[:1] != (n,):
            return t
        found.append(t.detach().clone().requires_grad_())
        return found[-1]

    given = {k: map_tensors(v, leaf) for k, v in _arguments(wide).items()}
    if found:
        return type(d)(**given), found
    return map_tensors(wide, leaf), found


def _moves(d: Any) -> bool:
    """Whether the support depends on the parameters."""
    support = d.support
    ends = (getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))
    return any(isinstance(end, Tensor) for end in ends)


def _pathwise(c: _Case) -> None:
    """The gradient through a draw is that of the expectation, of a bounded f.

    Against the score function where the support is fixed; against -dF/dtheta / q, its conditional
    expectation, where it moves and the score function's boundary terms are missing.
    """
    n = min(c.z.shape[0], 20_000)
    d, leaves = _leaves(c.d, n)
    if not leaves:
        return
    centre, spread = c.z.median(0).values, (c.z.quantile(0.75, 0) - c.z.quantile(0.25, 0))
    z = d.rsample()
    if not z.requires_grad:
        c.fail("rsample() is not differentiable in the parameters")
    away = torch.sin(z - centre) if c.angle else z - centre  # of an angle, a periodic function
    f = torch.tanh(away / spread.clamp_min(1e-30) + 0.5)  # not odd: a scale shows too
    path = torch.autograd.grad(f.sum(), leaves, allow_unused=True, retain_graph=True)
    at = z.detach()
    if not _moves(c.d):
        per_draw = f.detach().reshape(*d.batch_shape, -1).sum(-1)
        target = (per_draw * d.log_prob(at)).sum()
        other = torch.autograd.grad(target, leaves, allow_unused=True)
    else:
        if c.ask("sf", c.z[:1]) is None:
            return
        slope = (1 - f.detach().square()) / spread.clamp_min(1e-30)
        upper = d.cdf(at).detach() > 0.5
        share = torch.where(upper, d.sf(at), -d.cdf(at))
        target = (slope / d.log_prob(at).detach().exp() * share).sum()
        other = torch.autograd.grad(target, leaves, allow_unused=True)
    for a, b, leaf in zip(path, other, leaves, strict=True):
        if a is None and b is None:
            continue
        a = torch.zeros_like(leaf) if a is None else a
        b = torch.zeros_like(leaf) if b is None else b
        c.true(a.isfinite(), "a pathwise gradient is not finite")
        c.true(b.isfinite(), "a gradient of log_prob or of a tail is not finite")
        size = a.abs() + b.abs()
        if size.dim() > 1 + len(c.d.batch_shape):  # elements of a vector: logits have a common sum
            size = size.amax(-1, keepdim=True).expand(size.shape)
        c.within(a - b, 0.0, "pathwise minus score-function gradient", size)


_TAIL = [1e-30, 1e-12, 1e-6, 1e-3, 0.1, 0.4, 0.5, 0.7, 0.99]


def _quantiles(c: _Case) -> None:
    """Quantiles and tails invert each other, at both ends; the cdf's slope is the density."""
    d = c.d
    if not c.univariate or c.ask("icdf", c.z[:1] * 0 + 0.5) is None:
        return
    shape = (-1,) + (1,) * len(d.batch_shape)
    u = torch.tensor(_TAIL, dtype=c.z.dtype).reshape(shape).expand(-1, *d.batch_shape)
    for quantile, tail, log_tail in (("icdf", "cdf", "log_cdf"), ("isf", "sf", "log_sf")):
        z = c.ask(quantile, u)
        if z is None:
            continue
        ordered = z.diff(dim=0) >= 0 if quantile == "icdf" else z.diff(dim=0) <= 0
        c.true(ordered, f"{quantile} is not monotone")
        good = d.support.check(z) & z.isfinite() & (z.abs() > torch.finfo(z.dtype).tiny)
        for end in ("lower_bound", "upper_bound"):  # on an end the digits of u are gone
            good = good & (z != getattr(d.support, end, math.nan))
        z = torch.where(good, z, c.z[0])
        for name, expected in ((tail, u), (log_tail, u.log())):
            back = c.ask(name, z)
            if back is None:
                continue
            # a rounding of z moves the tail by z q(z), of loc - z by more
            size = z.abs() + c.z.abs().amax(0)
            loose = 64 * c.eps * (1 + size * d.log_prob(z).exp() / u)
            slack = loose * (u if name == tail else 1.0) + 64 * c.eps * expected.abs()
            known = good & (loose < 1)  # else one rounding of z is worth the whole tail
            off = torch.where(known, (back - expected).abs() - slack, -1.0)
            if bool((off > 0).any()):
                i = int(off.flatten().argmax())
                c.fail(
                    f"{name}({quantile}({u.flatten()[i].item():.3g})) is "
                    f"{back.flatten()[i].item():.9g}, not {expected.flatten()[i].item():.9g}"
                )
    ends = torch.tensor([0.0, 1.0], dtype=c.z.dtype).reshape(shape).expand(2, *d.batch_shape)
    c.true(~d.icdf(ends).isnan(), "icdf is NaN at 0 or 1")
    z = c.z[:50].clone().requires_grad_()
    cdf = c.ask("cdf", z)
    if cdf is not None:
        (slope,) = torch.autograd.grad(cdf.sum(), z)
        tol = 1e6 * c.eps
        c.close(slope, d.log_prob(c.z[:50]).exp(), "d cdf / dz, the density", rtol=tol, atol=tol)


def _moments(c: _Case) -> None:
    d, z = c.d, c.z
    mean, variance, mode, entropy = (c.ask(n) for n in ("mean", "variance", "mode", "entropy"))
    score = d.log_prob(z)
    if c.angle and mean is not None and variance is not None:
        c.within(torch.sin(z - mean), 0.0, "the sine of an angle from the mean")
        c.within(1 - torch.cos(z - mean), variance, "the circular variance")
    elif mean is not None and variance is not None:
        known = mean.isfinite() & variance.isfinite()
        c.within(torch.where(known, z, 0.0), torch.where(known, mean, 0.0), "the mean")
        squares = torch.where(known, (z - mean).square(), 0.0)
        light = squares.amax(0) < 0.01 * squares.sum(0)  # else a fourth moment may be missing
        if bool(light.all()):
            c.within(squares, torch.where(known, variance, 0.0), "the variance")
        stddev = c.ask("stddev")
        c.close(stddev, variance.sqrt(), "stddev, the root of the variance", rtol=1e3 * c.eps)
    if entropy is not None:
        c.within(-score, entropy, "the entropy")
    if mode is not None and bool(mode.isfinite().all()) and bool(d.support.check(mode).all()):
        highest = d.log_prob(mode)
        c.true(highest >= score - 1e-6 - 1e3 * c.eps * score.abs(), "a draw is above the mode")


def _refuses(c: _Case, make: Callable[[], Any], wanted: str, what: str) -> None:
    try:
        make()
    except (ValueError, TypeError) as error:
        if wanted not in str(error):
            c.fail(f"{what}: the error does not say {wanted!r}: {error}")
        return
    c.fail(f"{what} is accepted")


def _validation(c: _Case) -> None:
    d = c.d
    for name in [n for n in d.arg_constraints if isinstance(d.__dict__.get(n), Tensor)]:
        value = getattr(d, name)
        if not value.is_floating_point():
            continue
        bad = torch.full_like(value, math.nan)
        change = {name: bad, "validate_args": True}
        _refuses(c, lambda change=change: _rebuild(d, **change), name, f"{name} = NaN")
        if d.arg_constraints[name] is constraints.positive:
            change = {name: -value, "validate_args": True}
            _refuses(c, lambda change=change: _rebuild(d, **change), name, f"a negative {name}")
        if hasattr(d, "rsample_and_log_prob"):
            half = {name: value.to(torch.bfloat16)}
            _refuses(c, lambda half=half: _rebuild(d, **half), "bfloat16", f"{name} in bfloat16")
    checked, unchecked = copy.copy(d), copy.copy(d)
    checked._validate_args, unchecked._validate_args = True, False
    nan = torch.full_like(c.z[0], math.nan)
    _refuses(c, lambda: checked.log_prob(nan), "within the support", "a value of NaN")
    if not c.univariate:
        return
    for name, step in (("lower_bound", -1.0), ("upper_bound", 1.0)):
        bound = getattr(d.support, name, None)
        if bound is None:
            continue
        out = torch.as_tensor(bound).to(c.z) + step * torch.ones_like(c.z[0])
        out = out + step * out.abs() * 1e-3
        _refuses(c, lambda out=out: checked.log_prob(out), "within the support", "a value outside")
        if hasattr(d, "rsample_and_log_prob"):
            c.true(unchecked.log_prob(out) == -math.inf, "log_prob outside the support not -inf")


def _against_oracle(c: _Case) -> None:
    if c.oracle is None:
        return
    d = c.d
    z = c.z[:200]
    grid = z.double().cpu().numpy()
    tol = max(1e6 * c.eps, 1e-9)
    for ours, theirs in (("log_prob", "logpdf"), ("cdf", "cdf"), ("sf", "sf")):
        value = c.ask(ours, z) if hasattr(c.oracle, theirs) else None
        if value is not None:
            expected = torch.as_tensor(getattr(c.oracle, theirs)(grid))
            c.close(value, expected, f"{ours}, against the oracle's {theirs}", tol, tol)
    if c.univariate and hasattr(c.oracle, "ppf"):
        u = torch.linspace(0.01, 0.99, 25, dtype=z.dtype)
        u = u.reshape((-1,) + (1,) * len(d.batch_shape)).expand(-1, *d.batch_shape)
        value = c.ask("icdf", u)
        if value is not None:
            expected = torch.as_tensor(c.oracle.ppf(u.double().cpu().numpy()))
            tol = max(100 * c.eps, 1e-7)
            c.close(value, expected, "icdf, against the oracle's ppf", tol, tol)
    for ours, theirs in (("mean", "mean"), ("variance", "var")):
        value = c.ask(ours) if hasattr(c.oracle, theirs) else None
        if value is not None:
            found = getattr(c.oracle, theirs)  # a method, for scipy's vectors an array
            expected = torch.as_tensor(found() if callable(found) else found)
            known = value.isfinite() & expected.to(value).isfinite()
            value, expected = torch.where(known, value, 0.0), torch.where(known, expected, 0.0)
            c.close(value, expected, f"{ours}, against the oracle's", 1e-6, 1e-9)


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _shapes,
    _expand,
    _copies,
    _draws,
    _follows,
    _quantiles,
    _moments,
    _pathwise,
    _validation,
    _against_oracle,
)
