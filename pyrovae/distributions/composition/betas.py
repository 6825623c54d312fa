r"""Beta, Dirichlet and FisherSnedecor: ratios of Gammas, drawn as differences of log-Gammas.

.. math::

    \mathrm{logit}\,x = \log G(a) - \log G(b), \qquad
    \log x = \mathrm{log\,softmax}(\log G(\alpha_1), \dots, \log G(\alpha_K)), \qquad
    F = \frac{G(d_1/2)/d_1}{G(d_2/2)/d_2}.

Their gradients are implicit ones: for Beta :math:`-\partial_\theta I_x / f`, and for Dirichlet
:math:`\partial\log x_j/\partial\alpha_i = (\delta_{ij} - x_i)\,D_i` with D_i the derivative of
logit x_i in its margin, Beta(alpha_i, the sum of the others). Source: Figurnov et al. (2018),
arXiv 1805.08498.
"""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch import distributions as td
from torch.autograd import forward_ad
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyrovae.distributions.base import EMPTY
from pyrovae.distributions.composition.contract import (
    Checked,
    Univariate,
    check_arguments,
    clamp_inside,
    refuse_half,
)
from pyrovae.distributions.composition.gammas import bend_of, log_norm, plain_score
from pyrovae.distributions.fused import can_look, fused, in_pieces
from pyrovae.distributions.inverse_cdf import within
from pyrovae.distributions.special import (
    digamma_difference,
    logit_beta_slope,
    logit_beta_slopes,
    sample_logit_beta,
    stirling,
    stirling_slope,
    surfaces,
)
from pyrovae.distributions.special import incomplete_beta as beta
from pyrovae.distributions.special.incomplete_gamma import draw_log_gamma
from pyrovae.distributions.special.quadrature import known, result_dtype

__all__ = ["Beta", "Dirichlet", "FisherSnedecor"]


def _log_density(a: Tensor, b: Tensor, x: Tensor, quick: bool) -> Tensor:
    """Return the log-density of Beta(a, b) at x, its limits at 0 and 1; float64."""
    inside = (x > 0) & (x < 1)
    s = torch.where(inside, x, 0.5)
    log_x, log_rest = s.log(), torch.log1p(-s)
    body = beta.density_at(a, b, s, 1 - s, log_x, log_rest, quick) - log_x - log_rest
    at_zero = torch.where(a == 1, b.log(), torch.where(a < 1, math.inf, -math.inf))
    at_one = torch.where(b == 1, a.log(), torch.where(b < 1, math.inf, -math.inf))
    rest = torch.where(x == 0, at_zero, torch.where(x == 1, at_one, -math.inf))
    return torch.where(inside, body, torch.where(x.isnan(), x, rest))


def _score_slopes(needed: tuple[bool, ...], out: Tensor, a: Tensor, b: Tensor, x: Tensor) -> tuple:
    s = torch.where((x > 0) & (x < 1), x, 0.5)
    per_a = s.log() + digamma_difference(a, b) if needed[0] else None
    per_b = torch.log1p(-s) + digamma_difference(b, a) if needed[1] else None
    return per_a, per_b, (a - 1) / s - (b - 1) / (1 - s)


def _plain_draw(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return sigmoid(y), inside the format, with the implicit gradient of y."""
    dtype = a.dtype
    info = torch.finfo(dtype)

    def value(y: Tensor) -> Tensor:
        return torch.sigmoid(y).to(dtype).clamp(info.tiny, 1 - info.eps / 2)

    def partials(needed: tuple[bool, ...], x: Tensor, y: Tensor) -> tuple:
        return (torch.sigmoid(y) * torch.sigmoid(-y),)

    return known(value, partials, beta.attach_logit_beta(y, a, b, dtype), dtype=dtype)


def _fast_draw(needed: tuple[bool, ...], y: Tensor, a: Tensor, b: Tensor) -> tuple:
    info = torch.finfo(y.dtype)
    x = torch.sigmoid(y).clamp_(info.tiny, 1 - info.eps / 2)
    per_a, per_b = logit_beta_slopes(a, b, y)
    spread = torch.sigmoid(-y).mul_(x)
    return x, None, per_a.mul_(spread), per_b.mul_(spread)


def _plain_score(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    dtype = result_dtype(a, x)

    def density(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return _log_density(a, b, x, dtype == torch.float32)

    return known(density, _score_slopes, a, b, x, dtype=dtype)


def _fast_score(needed: tuple[bool, ...], x: Tensor, a: Tensor, b: Tensor) -> tuple | None:
    r"""Return the log-density, and its slopes.

    With :math:`n = a + b`, :math:`r = x\,(1 + n)/(1 + a)`, :math:`q = (1 - x)(1 + n)/(1 + b)` and
    N of :func:`~pyrovae.distributions.special.surfaces.log_norm`, nothing large is left in
    :math:`a\ell(r) + b\ell(q) + 1 - r - q - N(a) - N(b) + N(n) + \log\frac{ab}{n\,x(1 - x)}`,
    where :math:`\ell(r) = \log r - (r - 1)`.
    """
    if not within(x, 0.0, 1.0):
        return None
    dtype, quick = x.dtype, x.dtype == torch.float32
    if not can_look():
        info = torch.finfo(dtype)
        x = x.clamp(info.tiny, 1 - info.eps / 2)
    a, b = a.double(), b.double()
    shapes = torch.stack((a, b, a + b))
    norms, slopes = surfaces.log_norm(shapes, quick)
    x = x.double()
    sides = torch.stack((x, 1 - x))
    ratio = sides * (shapes[2] + 1) / (shapes[:2] + 1)  # r, q
    log_ratio = ratio.log()
    value = (bend_of(ratio, log_ratio, quick) * shapes[:2] - ratio).sum(0)
    value = value + (norms[2] - norms[0] - norms[1] + 1)
    value = value + (shapes[0] * shapes[1] / (shapes[2] * sides[0] * sides[1])).log()
    inverse = shapes.reciprocal()
    per = log_ratio + (inverse[:2] - inverse[2]) + (slopes[2] - slopes[:2])
    pull = (shapes[:2] - 1) / sides
    per = per.to(dtype)
    return value.to(dtype), (pull[0] - pull[1]).to(dtype), per[0], per[1]


def _remainder(a: Tensor) -> Tensor:
    """Return the part of the entropies that belongs to one concentration; float64."""
    return stirling(a) - a * stirling_slope(a)


class Beta(Univariate, dist.Beta):
    r"""Beta(a, b): :math:`q(x) \propto x^{a - 1} (1 - x)^{b - 1}`.

    Args:
        concentration1: a > 0.
        concentration0: b > 0.

    >>> Beta(2.0, 1.0).cdf(torch.tensor(0.5))
    tensor(0.2500)
    """

    def __init__(
        self,
        concentration1: Number | Tensor,
        concentration0: Number | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        given = {"concentration1": concentration1, "concentration0": concentration0}
        refuse_half("Beta", **given)
        check_arguments(Beta, validate_args, **given)
        super().__init__(concentration1, concentration0, validate_args=validate_args)

    def _logit_draw(self, sample_shape: Size | tuple[int, ...]) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        return sample_logit_beta(self.concentration1.expand(shape), self.concentration0)

    def rsample_logit(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw logit x, whole where x itself would round to 0 or 1."""
        return self._logit_draw(sample_shape).to(self.concentration1.dtype)

    def log_rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw log x, whole where x underflows; near 1, `rsample_logit` has the digits."""
        return logsigmoid(self._logit_draw(sample_shape)).to(self.concentration1.dtype)

    def rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        a, b = self.concentration1.expand(shape), self.concentration0.expand(shape)
        logits = draw_log_gamma(torch.stack((a.detach(), b.detach())))
        return fused(_plain_draw, _fast_draw, logits[0] - logits[1], a, b, compiles=True)

    def _score(self, value: Tensor) -> Tensor:
        a, b = self.concentration1, self.concentration0
        score = fused(_plain_score, _fast_score, value, a, b, compiles=True)
        if can_look():
            return score
        return torch.where((value >= 0) & (value <= 1), score, -math.inf)

    def _tail(self, value: Tensor, log: bool, lower: bool) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return beta._tail_function(a, b, value, log, lower)

    def _quantile(self, u: Tensor, lower: bool) -> Tensor:
        return beta._inverse(self.concentration1, self.concentration0, u, lower)

    @property
    def mode(self) -> Tensor:
        """The mode; NaN where both concentrations are at most 1: two ends, or none."""
        a, b = self.concentration1 - 1, self.concentration0 - 1
        top, bottom = a.clamp_min(0), a.clamp_min(0) + b.clamp_min(0)
        edge = torch.where(a < b, 0.0, 1.0).to(a.dtype)
        flat = torch.where((a == b) | ((a < 0) & (b < 0)), math.nan, edge)
        return torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, 1.0), flat)

    def entropy(self) -> Tensor:
        """Return the differential entropy; nothing cancels at large concentrations."""
        a, b = self.concentration1.double(), self.concentration0.double()
        n = a + b
        whole = 0.5 * (a.log() + b.log() - 3 * n.log() + math.log(2 * math.pi)) + 0.5
        parts = _remainder(a) + _remainder(b) - _remainder(n)
        ends = stirling_slope(a) - 0.5 / a + stirling_slope(b) - 0.5 / b
        return (whole + parts + ends - 2 * stirling_slope(n) + 1 / n).to(self.concentration1.dtype)


class Dirichlet(Checked, dist.Dirichlet):
    r"""Dirichlet: :math:`q(x) \propto \prod_i x_i^{\alpha_i - 1}` on the simplex.

    Args:
        concentration: alpha > 0, `[*batch, K]`.

    >>> Dirichlet(torch.tensor([1.0, 2.0])).mean
    tensor([0.3333, 0.6667])
    """

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        refuse_half("Dirichlet", concentration=concentration)
        check_arguments(Dirichlet, validate_args, concentration=concentration)
        super().__init__(concentration, validate_args=validate_args)

    def _alpha(self, sample_shape: Size | tuple[int, ...]) -> Tensor:
        return self.concentration.expand(self._extended_shape(Size(sample_shape)))

    def log_rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw log x, which neither underflows nor piles up at any concentration."""
        alpha = self._alpha(sample_shape)
        return torch.log_softmax(_attach(draw_log_gamma(alpha.detach()), alpha), -1)

    def rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        alpha = self._alpha(sample_shape)
        if torch.compiler.is_compiling():
            return _draw_in_graph(alpha)
        if can_look() and not torch.jit.is_tracing() and forward_ad._current_level < 0:
            return _Draw.apply(alpha)
        return _plain_vectors(draw_log_gamma(alpha.detach()), alpha)

    def _score(self, value: Tensor) -> Tensor:
        alpha = self.concentration
        score = fused(
            _plain_score_of_vectors,
            _fast_score_of_vectors,
            value,
            alpha,
            compiles=True,
            vectors=True,
        )
        if not (self._validate_args and can_look()):
            miss = value.double().sum(-1) - 1
            inside = (value >= 0).all(-1) & (miss.abs() < 1e-4)
            score = torch.where(inside | miss.isnan(), score, -math.inf)
        return score

    @property
    def mode(self) -> Tensor:
        """The mode; NaN where no concentration exceeds 1: several corners, or none."""
        excess = (self.concentration - 1).clamp_min(0)
        return excess / excess.sum(-1, keepdim=True)

    def entropy(self) -> Tensor:
        """Return the differential entropy; nothing cancels at large concentrations."""
        a = self.concentration.double()
        n, k = a.sum(-1), a.shape[-1]
        terms = 0.5 * a.log() + stirling(a) + (a - 1) * (0.5 / a - stirling_slope(a))
        whole = 0.5 * (k - 1) * math.log(2 * math.pi) - (k - 0.5) * n.log() - stirling(n)
        rest = (n - k) * (0.5 / n - stirling_slope(n))
        return (terms.sum(-1) + whole - rest).to(self.concentration.dtype)


# -- vectors: draws -------------------------------------------------------------------------------


class _Draw(torch.autograd.Function):
    r"""A draw and the D_i of its components, in one step.

    .. math:: \bar\alpha_i = D_i x_i\,\big(\bar x_i - \sum_j x_j \bar x_j\big).
    """

    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> Tensor:
        def piece(alpha: Tensor) -> tuple[Tensor | None, ...]:
            parts = draw_log_gamma(alpha)
            x, slopes = _draw_and_slopes(parts, alpha, ctx.needs_input_grad[0])
            return x, slopes, parts

        x, slopes, parts = in_pieces(piece, (alpha,), vectors=True)
        if slopes is not None:
            ctx.save_for_backward(alpha, parts, x, slopes)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        alpha, parts, x, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            again = _plain_vectors(parts, alpha)
            return torch.autograd.grad(again, alpha, g, create_graph=True)[0]
        own = g * x
        return torch.addcmul(own, x, own.sum(-1, keepdim=True), value=-1).mul_(slopes)


def _draw_and_slopes(parts: Tensor, alpha: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
    """Return x from its log-Gammas, and the derivative of each logit in its margin.

    The logit of the greatest comes from the others; where they are nothing beside it in the
    format, D no longer depends on how small they are.
    """
    tiny = torch.finfo(parts.dtype).tiny
    top, where = parts.max(-1, keepdim=True)
    shifted = parts - top
    weights = shifted.exp()
    others = weights.scatter(-1, where, 0.0).sum(-1, keepdim=True)
    total = others + 1
    x = (weights / total).clamp_min_(tiny)
    if not needed:
        return x, None
    rest = (total - weights).scatter(-1, where, others.clamp_min(tiny))
    logit = shifted.clamp_min(-1e5).sub_(rest.log_())
    whole = alpha.double()
    behind = (whole.sum(-1, keepdim=True) - whole).to(alpha.dtype)
    return x, logit_beta_slope(alpha, behind, logit)


def _draw_in_graph(alpha: Tensor) -> Tensor:
    """Return the draw with its first derivatives, in operations that any graph knows."""
    with torch.no_grad():
        parts = draw_log_gamma(alpha.detach())
        x, slopes = _draw_and_slopes(parts, alpha.detach(), alpha.requires_grad)
    if slopes is None:
        return x
    none = (alpha - alpha.detach()) * slopes  # zero, but for autograd
    return x + x * (none - (x * none).sum(-1, keepdim=True))


def _plain_vectors(parts: Tensor, alpha: Tensor) -> Tensor:
    """Return x from its log-Gammas, differentiable as often as wanted."""
    x = torch.softmax(_attach(parts, alpha), -1)
    return clamp_inside(x, torch.finfo(x.dtype).tiny)


def _attach(parts: Tensor, alpha: Tensor) -> Tensor:
    """Return the log-Gammas with the derivative D_i of each logit in its margin."""
    dtype = alpha.dtype
    rule = beta.slope_rule(dtype)
    whole = alpha.double()
    others = whole.sum(-1, keepdim=True) - whole

    def partials(
        needed: tuple[bool, ...], out: Tensor, alpha: Tensor, parts: Tensor, *margin: Tensor
    ) -> tuple:
        return beta._near(alpha, *margin, rule, (True, False))[1], None, None, None

    def attach(logit: Tensor) -> Tensor:
        inputs = (alpha, parts, others, logit)
        return known(lambda a, p, r, y: p.clone(), partials, *inputs, rules=(None, rule))

    # the second pass gives the derivative of the derivative; the first is cheap until then
    logit = _logits(torch.log_softmax(parts, -1))
    twice = torch.is_grad_enabled() and alpha.requires_grad
    first = _logits(torch.log_softmax(attach(logit), -1)) if twice else logit
    return attach(first).to(dtype)


def _logits(log_x: Tensor) -> Tensor:
    """Return logit x of every component, from the others where x is near 1."""
    top = log_x > -math.log(2)
    others = torch.logsumexp(log_x.masked_fill(top, -math.inf), -1, keepdim=True)
    low = torch.log1p(-torch.where(top, -1.0, log_x).exp())
    return (log_x - torch.where(top, others, low)).clamp(-1e5, 1e5)


# -- vectors: log-density -------------------------------------------------------------------------


def _plain_score_of_vectors(x: Tensor, alpha: Tensor) -> Tensor:
    """Sum the densities of Gamma(alpha_i, n), n the sum of all: a constant is missing."""
    total = alpha.sum(-1)
    terms = plain_score(x, alpha, total.unsqueeze(-1))
    miss = x.double().sum(-1) - 1
    score = terms.double().sum(-1) + total * miss - log_norm(total, torch.float64)
    return score.to(result_dtype(alpha, x))


def _fast_score_of_vectors(needed: tuple[bool, ...], x: Tensor, alpha: Tensor) -> tuple | None:
    r"""Return the log-density, and its slopes.

    With :math:`n = \sum_i \alpha_i`, :math:`r_i = x_i (1 + n)/(1 + \alpha_i)` and
    :math:`\ell(r) = \log r - (r - 1)`, nothing large is left in
    :math:`\sum_i (\alpha_i \ell(r_i) - r_i + \log(\alpha_i / x_i) - N(\alpha_i)) + N(n) - \log n
    + 1 + (1 + n)(\sum_i x_i - 1)`.
    """
    if not within(x, 0.0, math.inf):
        return None
    info = torch.finfo(x.dtype)
    if not can_look():
        x = x.clamp_min(info.tiny)
    dtype, quick = x.dtype, x.dtype == torch.float32
    wide, wide_x = alpha.double(), x.double()
    total = wide.sum(-1, keepdim=True)
    norms, slopes = surfaces.log_norm(torch.cat((alpha, total.to(dtype)), -1))
    ratio = wide_x * (1 + total) / (1 + wide)
    log_ratio = ratio.log()
    terms = bend_of(ratio, log_ratio, quick).mul_(wide).sub_(ratio)
    norm, slope = norms[..., -1], slopes[..., -1:]
    terms.add_(alpha.log()).sub_(x.log()).sub_(norms[..., :-1])
    total_1 = total.squeeze(-1)
    miss = wide_x.sum(-1) - 1
    value = terms.sum(-1) + (norm - total_1.log()) + torch.addcmul(miss + 1, total_1, miss)
    per_alpha = None
    if needed[1]:
        per_alpha = (log_ratio.to(dtype) + (slope - 1 / total).to(dtype)).sub_(slopes[..., :-1])
        per_alpha.add_(1 / alpha)
    per_x = (alpha - 1).div_(x).clamp_(-info.max, info.max)
    return value.to(dtype), per_x, per_alpha


def _f_parts(z: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    r"""Return m/(m + n), n/(m + n), their mean u of z and 1, and log u.

    x = z m/(mz + n), which is z/u times its mean, is never taken: near its mean log x has lost
    what log z and log u keep.
    """
    share, rest = m / (m + n), n / (m + n)
    u, w = share * z + rest, share * (z - 1)
    small = w.abs() < 0.5
    log_u = torch.where(small, torch.log1p(torch.where(small, w, 0.0)), u.log())
    return share, rest, u, log_u


def _f_density(z: Tensor, m: Tensor, n: Tensor) -> Tensor:
    """Return the log-density of FisherSnedecor(m, n) at z > 0; float64."""
    share, rest, u, log_u = _f_parts(z, m, n)
    log_z, away = z.log(), (z - 1) / u
    ratios = (log_z - log_u, rest * away), (-log_u, -share * away)
    return beta.density_of_ratios(m / 2, n / 2, *ratios) - log_z


def _f_slopes(needed: tuple[bool, ...], out: Tensor, z: Tensor, m: Tensor, n: Tensor) -> tuple:
    share, rest, u, log_u = _f_parts(z, m, n)
    pull = 0.5 * n * share * (1 - z) / u  # z times the slope of the log-density of log z
    per_m = per_n = None
    if needed[1]:
        log_x = z.log() + share.log() - log_u
        per_m = 0.5 * (log_x + digamma_difference(m / 2, n / 2)) + pull / m
    if needed[2]:
        per_n = 0.5 * (rest.log() - log_u + digamma_difference(n / 2, m / 2)) - pull / n
    return (pull - 1) / z, per_m, per_n


class FisherSnedecor(Univariate, dist.FisherSnedecor):
    r"""Fisher-Snedecor F: :math:`x = (\chi^2_{d_1}/d_1) / (\chi^2_{d_2}/d_2)`.

    Args:
        df1: degrees of freedom of the numerator.
        df2: degrees of freedom of the denominator.

    >>> FisherSnedecor(2.0, 2.0).cdf(torch.tensor(1.0))
    tensor(0.5000)
    """

    def __init__(
        self, df1: Number | Tensor, df2: Number | Tensor, validate_args: bool | None = None
    ) -> None:
        refuse_half("FisherSnedecor", df1=df1, df2=df2)
        check_arguments(FisherSnedecor, validate_args, df1=df1, df2=df2)
        self.df1, self.df2 = broadcast_all(df1, df2)
        self._gamma1 = dist.Gamma(self.df1 / 2, self.df1, validate_args=False)
        self._gamma2 = dist.Gamma(self.df2 / 2, self.df2, validate_args=False)
        # past torch's constructor, whose inner Gammas are validated come what may
        super(td.FisherSnedecor, self).__init__(self.df1.shape, validate_args=validate_args)

    def _shift(self) -> Tensor:
        return self.df2.double().log() - self.df1.double().log()

    def _log_draw(self, sample_shape: Size | tuple[int, ...]) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        return sample_logit_beta(self.df1.expand(shape) / 2, self.df2 / 2) + self._shift()

    def log_rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw log x, which neither underflows nor overflows."""
        return self._log_draw(sample_shape).to(self.df1.dtype)

    def rsample(self, sample_shape: Size | tuple[int, ...] = EMPTY) -> Tensor:
        """Draw x, held where its slopes, of the order of x log x/df^2, are in the format too."""
        info = torch.finfo(self.df1.dtype)
        log_x = self._log_draw(sample_shape)
        least = torch.minimum(self.df1, self.df2).detach().double()
        high = math.log(info.max) - math.log(1e4) - 2 * torch.log1p(1 / least)
        log_x = torch.minimum(log_x, high).clamp_min(math.log(info.tiny) + 1e-4)
        return log_x.exp().to(self.df1.dtype)

    def _logit(self, value: Tensor) -> Tensor:
        safe = torch.where(value > 0, value, 1.0).double()
        return torch.where(value > 0, safe.log() - self._shift(), -math.inf)

    def _score(self, value: Tensor) -> Tensor:
        inside = (value > 0) & (value < math.inf)
        safe = torch.where(inside, value, 1.0)
        dtype = result_dtype(self.df1, value)
        score = known(_f_density, _f_slopes, safe, self.df1, self.df2, dtype=dtype)
        edge = torch.where(self.df1 < 2, math.inf, -math.inf)
        outside = torch.where(value == 0, torch.where(self.df1 == 2, 0.0, edge), -math.inf)
        outside = torch.where(value.isnan(), math.nan, outside)
        return torch.where(inside, score, outside).to(dtype)

    def _tail(self, value: Tensor, log: bool, lower: bool) -> Tensor:
        y = self._logit(value)
        tail = beta._tail_function(self.df1 / 2, self.df2 / 2, y, log, lower, logit=True)
        return tail.to(result_dtype(self.df1, value))

    def _quantile(self, u: Tensor, lower: bool) -> Tensor:
        y = beta._inverse(self.df1 / 2, self.df2 / 2, u.double(), lower, logit=True)
        return torch.exp(y + self._shift()).to(result_dtype(self.df1, u))

    @property
    def mean(self) -> Tensor:
        """The mean; infinite where df2 <= 2."""
        finite = self.df2 > 2
        return torch.where(finite, self.df2 / torch.where(finite, self.df2 - 2, 1.0), math.inf)

    @property
    def variance(self) -> Tensor:
        """The variance; infinite where 2 < df2 <= 4, undefined (NaN) below."""
        d1, d2 = self.df1, torch.where(self.df2 > 4, self.df2, 5.0)
        inner = 2 * (d2 / (d2 - 2)).square() * (d1 + d2 - 2) / (d1 * (d2 - 4))
        rest = torch.where(self.df2 > 2, math.inf, math.nan).to(inner.dtype)
        return torch.where(self.df2 > 4, inner, rest)

    @property
    def mode(self) -> Tensor:
        return (1 - 2 / self.df1).clamp_min(0) * self.df2 / (self.df2 + 2)

    def entropy(self) -> Tensor:
        """Return the differential entropy, torch has none."""
        a, b = self.df1.double() / 2, self.df2.double() / 2
        n = a + b
        whole = 0.5 * (n.log() - a.log() - b.log() + math.log(2 * math.pi)) + 0.5
        ratio = stirling_slope(a) - 0.5 / a - stirling_slope(b) + 0.5 / b
        parts = _remainder(a) + _remainder(b) - _remainder(n)
        return (whole + parts + ratio).to(self.df1.dtype)
