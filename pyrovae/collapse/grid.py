r"""The guide's posterior mean beside the true one, where z has one or two dimensions.

On a grid of points :math:`z_k` the true posterior is known up to quadrature,

.. math:: E[z|x] = \frac{\sum_k w_k z_k \, p(x, z_k)}{\sum_k w_k \, p(x, z_k)},
    \qquad \log p(x) = \log \sum_k w_k \, p(x, z_k),

with the weights of the trapezoidal rule. The distance of the guide's mean from it shows an
inference network that lags behind the model (He et al. 2019, arXiv:1901.05534, figure 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.traces import Latent, Terms, evaluating, frozen_buffers
from pyrovae.traces.batches import Batches, derived_seed
from pyrovae.traces.blocks import Blocks, Draws
from pyrovae.traces.units import centre

__all__ = ["PosteriorMeans", "posterior_means_on_grid"]

WHO = "posterior_means_on_grid"
OUTSIDE, COARSE = 1e-3, 0.5  # share of the posterior at the border; at a single point
DRAWS = 1001  # where a guide's mean or median is not known


@dataclass
class PosteriorMeans:
    """Posterior means of each datum, by the guide and by the model.

    Attributes:
        guide_mean: Mean of q(z|x) `[B, D]` (median where there is none).
        model_mean: Mean of p(z|x) `[B, D]`, by quadrature.
        log_px: log p(x) `[B]`, nats, by the same quadrature.
        at_border: Share of p(z|x) in the outermost points of the grid `[B]`.
        at_point: Largest share of p(z|x) in a single point of the grid `[B]`.
    """

    guide_mean: Tensor
    model_mean: Tensor
    log_px: Tensor
    at_border: Tensor
    at_point: Tensor

    @property
    def distance(self) -> Tensor:
        """Euclidean distance between the two means `[B]`."""
        return (self.guide_mean - self.model_mean).norm(dim=-1)


def posterior_means_on_grid(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    low: float | Sequence[float] = -10.0,
    high: float | Sequence[float] = 10.0,
    points: int | Sequence[int] = 201,
    batch_size: int = 100,
    chunk: int = 20_000,
    seed: int = 0,
    data_plate: str | None = None,
    **kwargs: Any,
) -> PosteriorMeans:
    """The mean of q(z|x) and of the true posterior p(z|x) of each datum, for one or two latents.

    Networks are in evaluation mode; no weight, buffer or random state of the caller moves. Warns
    where the grid is too narrow or too coarse for some datum.

    Args:
        model: A Pyro program p(x, z) with a single latent site of one or two units.
        guide: A Pyro program q(z|x).
        *args: Arguments of both programs, for all data, or a :class:`pyrovae.datasets.Dataset`.
        low: Lower end of the grid, one number or one a dimension.
        high: Upper end, likewise.
        points: Points of the grid in each dimension, likewise.
        batch_size: Data a batch.
        chunk: Most pairs of datum and point given to the model at once.
        seed: Of draws, where the guide's mean has to be estimated.
        data_plate: Name of the plate over data.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: Another number of latents; a grid that is none.

    Source: He et al. (2019), arXiv:1901.05534.

    Example:
        >>> import torch, pyro, pyrovae as pv, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0 * x, 1.0))
        >>> pv.posterior_means_on_grid(model, guide, torch.tensor([2.0])).distance
        tensor([1.])
    """
    if chunk < 1:
        raise ValueError(f"{WHO}: chunk must be at least 1, got {chunk}.")
    batches = Batches(args, kwargs, batch_size, WHO)
    blocks = Blocks(model, guide, data_plate, WHO)
    devices = [batches.device] if batches.device.type == "cuda" else []
    found = []
    with evaluating(model, guide), frozen_buffers(model, guide), torch.random.fork_rng(devices):
        for first_row, batch_args, batch_kwargs in batches:
            torch.manual_seed(derived_seed(seed, first_row))
            one = blocks.start(batch_args, batch_kwargs, first_row)
            rows = None if batches.rows is None else min(batches.size, batches.rows - first_row)
            batches.check_plate(one, rows, WHO)
            latent = _only(one)
            grid, log_weights, border = _grid(latent, low, high, points)
            with pyro.validation_enabled(False):
                mean, _ = centre(latent.posterior, blocks.draws(DRAWS).values[latent.name])
                if mean is None:
                    raise ValueError(f"{WHO}: site '{latent.name}' has no mean: it is discrete.")
                log_joint = _log_joint(blocks, latent, grid, one.plate.size, chunk)
            log_joint = log_joint.double() + log_weights[:, None]
            share = log_joint.softmax(0)  # [K, B]
            found.append(
                PosteriorMeans(
                    mean.reshape(-1, grid.shape[1]).expand(one.plate.size, -1),
                    (share.T @ grid.double()).to(mean.dtype),
                    log_joint.logsumexp(0).to(mean.dtype),
                    share[border].sum(0),
                    share.amax(0),
                )
            )
    result = PosteriorMeans(*(torch.cat(parts) for parts in zip(*map(_parts, found), strict=True)))
    _warn(result)
    return result


def _parts(means: PosteriorMeans) -> tuple[Tensor, ...]:
    return tuple(vars(means).values())


def _only(terms: Terms) -> Latent:
    """The single latent site, of one or two units."""
    sites = {n: latent for n, latent in terms.latents.items() if latent.prior is not None}
    units = {
        name: latent.value.numel() // (latent.value.shape[0] * terms.plate.size)
        for name, latent in sites.items()
    }
    if len(terms.latents) != 1 or len(sites) != 1 or max(units.values()) > 2:
        raise ValueError(
            f"{WHO}: latent sites and their units: {units or 'none'}. Expected: a single site of "
            f"one or two units, and no auxiliary draws; a grid in more dimensions has too many "
            f"points. Try: pv.log_evidence, or a model with latent=2."
        )
    return next(iter(sites.values()))


def _grid(latent: Latent, low: Any, high: Any, points: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Points `[K, D]`, logs of their trapezoidal weights `[K]`, and whether at the border."""
    units = latent.value[0].numel() // latent._layout.plate.size
    axes, weights = [], []
    for a, b, k in zip(*(_each(value, units) for value in (low, high, points)), strict=True):
        if not (isinstance(k, int) and k >= 3 and a < b):
            raise ValueError(
                f"{WHO}: a grid from {a} to {b} with {k} points. Expected: low below high, "
                f"at least 3 points in each dimension."
            )
        axes.append(torch.linspace(a, b, k, dtype=torch.float64))
        weight = torch.full((k,), (b - a) / (k - 1), dtype=torch.float64)
        weight[[0, -1]] /= 2
        weights.append(weight.log())
    grid = torch.cartesian_prod(*axes).reshape(-1, units)
    log_weights = torch.cartesian_prod(*weights).reshape(-1, units).sum(1)
    ends = torch.stack([(grid[:, i] == x[0]) | (grid[:, i] == x[-1]) for i, x in enumerate(axes)])
    device = latent.value.device
    return grid.to(device), log_weights.to(device), ends.any(0).to(device)


def _each(value: Any, units: int) -> Sequence[Any]:
    if not isinstance(value, Sequence):
        return [value] * units
    if len(value) != units:
        raise ValueError(
            f"{WHO}: low, high and points are one number, or one for each of the {units} "
            f"dimension(s) of z; got {list(value)}."
        )
    return value


def _log_joint(blocks: Blocks, latent: Latent, grid: Tensor, rows: int, chunk: int) -> Tensor:
    """Log p(x, z) of every datum at every point, `[K, B]`, nats."""
    fn, count = latent.posterior, len(grid)
    batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
    values = grid.to(latent.value.dtype).reshape(count, *(1,) * len(batch), *event)
    draws = Draws({latent.name: values.expand(count, *batch, *event)}, count)
    blocks.guard_all()  # the grid may leave the prior's support, where the guide's draws may not
    step = max(2, chunk // rows)
    found = []
    for start in range(0, count, step):
        scored = blocks.score(draws, start, min(start + step, count))
        log_joint = scored.terms.log_likelihood + scored.terms.latents[latent.name].log_prior
        for outside in scored.outside.values():
            log_joint = log_joint.masked_fill(outside, -torch.inf)
        found.append(log_joint)
    return torch.cat(found)


def _warn(means: PosteriorMeans) -> None:
    # not a number where no point has any density
    outside = (~(means.at_border <= OUTSIDE)).nonzero().flatten().tolist()
    coarse = (means.at_point > COARSE).nonzero().flatten().tolist()
    for rows, what, remedy in (
        (outside, "reaches beyond the grid", "low= and high= further out"),
        (coarse, "is narrower than the grid is fine", "more points="),
    ):
        if rows:
            warnings.warn(
                f"{WHO}: p(z|x) of {len(rows)} of {len(means.log_px)} data (row {rows[0]}, ...) "
                f"{what}; their means are not to be trusted. Try: {remedy}.",
                stacklevel=3,
            )
