r"""log p(x) by importance weighting: the guide proposes, the joint density weighs.

.. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k | x)},
    \qquad z_k \sim q(z|x).

The weights' mean is unbiased for p(x); its logarithm is low by about half the squared standard
error. How good the number is depends on q alone, hence standard error, effective sample size and
Pareto k-hat *per datum*, and the support check: what q cannot reach, no number of particles finds.

How it is computed. Data come in batches; for a batch the guide runs once, draws come in *noise
blocks*, each with a seed of its own made from (seed, first row, block number), and the model is
evaluated on as many particles at a time as memory (``chunk``) allows. Since the noise belongs to
the block, ``chunk`` cannot change the answer; since sums are streamed
(:class:`~pyrovae.evidence.stream.Stream`), memory does not grow with the particles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.evidence.result import Evidence
from pyrovae.evidence.stream import Stream
from pyrovae.traces import Terms, evaluating, frozen_buffers
from pyrovae.traces.batches import Batches, derived_seed
from pyrovae.traces.blocks import Blocks

__all__ = ["log_evidence"]

_ELEMENTS = 800_000  # data elements a model call by default: about 1000 rows of MNIST
_NOISE = 500_000  # latent elements a noise block


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    particles: int = 5000,
    method: str = "importance",
    tolerance: float | None = None,
    chunk: int | None = None,
    seed: int | None = None,
    data_plate: str | None = None,
    batch_size: int = 100,
    progress: bool | None = None,
    **kwargs: Any,
) -> Evidence:
    r"""Estimate log p(x) of each datum, with its error.

    Networks are put in evaluation mode for the duration; no weight, buffer or random state of the
    caller moves.

    Args:
        model: A Pyro program p(x, z) whose sites all stand in a plate over data.
        guide: A Pyro program q(z|x).
        *args: Arguments of both programs, for all data (or a :class:`pyrovae.datasets.Dataset`).
            Every tensor as long as the first one is cut into batches along its first dimension.
        particles: K, draws a datum.
        method: "importance".
        tolerance: Not available yet.
        chunk: Rows (particles times data) given to the model in one call; bounds memory, does not
            change the answer.
        seed: Seed of all noise; by default drawn from torch's generator, and kept in the result.
        data_plate: Name of the plate over data; by default the outermost plate that holds every
            observed site.
        batch_size: Data a batch. Changes the noise, and so the answer within its standard error.
        progress: Show a bar; by default after ten seconds, in a terminal.
        **kwargs: Keyword arguments of both programs.

    Returns:
        An :class:`Evidence` with tensors `[B]` in float64 and nats.

    Raises:
        ValueError: No data plate, global latents, subsampled plates, a point-mass guide, data
            outside the likelihood's support, or a NaN weight (site and datum named).
        NotImplementedError: ``method="ais"`` or a ``tolerance``.

    Source: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519; Vehtari et al. (2024),
        arXiv:1507.02646.

    Example:
        >>> import torch, pyro, pyrovae as pv, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> found = pv.log_evidence(model, guide, torch.tensor([0.5]), particles=10)
        >>> found.log_px  # log N(0.5; 0, 2), whatever the draws
        tensor([-1.3280], dtype=torch.float64)
    """
    _check_options(particles, method, tolerance, chunk)
    batches = Batches(args, kwargs, batch_size, "log_evidence")
    if seed is None:
        seed = int(torch.randint(2**48, ()))
    blocks = Blocks(model, guide, data_plate, "log_evidence")
    results: list[dict[str, Tensor]] = []
    devices = [batches.device] if batches.device.type == "cuda" else []
    bar = tqdm(
        total=batches.rows,
        desc="log p(x)",
        unit=" data",
        disable=None if progress is None else not progress,
        delay=0 if progress else 10,
        leave=bool(progress),
    )
    with (
        evaluating(model, guide),
        frozen_buffers(model, guide),
        torch.random.fork_rng(devices),
        bar,
    ):
        for first_row, batch_args, batch_kwargs in batches:
            torch.manual_seed(derived_seed(seed, first_row, -1))
            one = blocks.start(batch_args, batch_kwargs, first_row)
            rows = None if batches.rows is None else min(batches.size, batches.rows - first_row)
            batches.check_plate(one, rows, "log_evidence")
            with pyro.validation_enabled(False):
                results.append(_batch(blocks, one, particles, chunk, (seed, first_row)))
            bar.update(one.plate.size)
    return _collect(results, blocks, particles, seed)


def _check_options(
    particles: int, method: str, tolerance: float | None, chunk: int | None
) -> None:
    if method != "importance" or tolerance is not None:
        if method not in ("importance", "ais"):
            raise ValueError(f'log_evidence: method must be "importance", got {method!r}.')
        what = f"tolerance={tolerance}" if method == "importance" else f"method={method!r}"
        raise NotImplementedError(
            f"log_evidence: {what} is not available in this version. "
            f'Expected: a fixed number of particles, method="importance". '
            f"Try: particles=50_000 and a look at .std_error and .khat."
        )
    if particles < 1:
        raise ValueError(f"log_evidence: particles must be at least 1, got {particles}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"log_evidence: chunk must be at least 1 row, got {chunk}.")


def _batch(
    blocks: Blocks, one: Terms, particles: int, chunk: int | None, seeds: tuple[int, int]
) -> dict[str, Tensor]:
    """All particles of one batch of data."""
    data = one.plate.size
    default_rows = _rows_per_call(one)
    step = max(1, (chunk or default_rows) // data)  # particles a model call
    size = _noise_block(one, default_rows, blocks.is_frozen, particles)
    device = next(iter(one.latents.values())).value.device if one.latents else torch.device("cpu")
    stream = Stream(particles, data, device)
    for number, done in enumerate(range(0, particles, size)):
        torch.manual_seed(derived_seed(*seeds, number))
        draws = blocks.draws(min(size, particles - done))
        parts = []
        for start in range(0, draws.particles, step):
            scored = blocks.score(draws, start, min(start + step, draws.particles))
            parts.append(scored.log_weights)
            if not bool((parts[-1] < torch.inf).all()):
                _refuse(scored.terms, parts[-1], seeds[1])
        stream.add(torch.cat(parts))
    return stream.result()


def _rows_per_call(one: Terms) -> int:
    elements = sum(s.value.numel() for s in one.observed.values() if isinstance(s.value, Tensor))
    return min(max(_ELEMENTS * one.plate.size // max(elements, 1), 64), 10_000)


def _noise_block(one: Terms, default_rows: int, is_frozen: bool, particles: int) -> int:
    """Particles a noise block: set by the shapes of data and latents, never by the chunk."""
    data = one.plate.size
    latents = sum(latent.value.numel() for latent in one.latents.values())  # of one particle
    size = min(_NOISE // max(latents, 1), 20_000 // data) if is_frozen else default_rows // data
    return min(max(size, 1), particles)


def _refuse(terms: Terms, log_weights: Tensor, first_row: int) -> None:
    """Name the site and the datum of a weight that is NaN or infinite."""
    bad = (~(log_weights < torch.inf)).any(0)
    row = int(bad.nonzero()[0])
    named: list[tuple[str, Tensor]] = [
        (f"observed site '{s.name}'", s.log_prob) for s in terms.observed.values()
    ]
    for latent in terms.latents.values():
        named.append((f"site '{latent.name}' in the model", latent.log_prior))
        named.append((f"site '{latent.name}' in the guide", -latent.log_posterior))
    for where, log_prob in named:
        value = log_prob[:, row]
        value = value[~(value < torch.inf)]
        if value.numel():
            kind = "NaN" if bool(value.isnan().any()) else "infinite"
            raise ValueError(
                f"log_evidence: the log-density of {where} is {kind} for datum {first_row + row}. "
                f"Expected: finite numbers, or -inf in the model for what is impossible. "
                f"Try: look for NaN in the datum, scales that underflow to 0, "
                f"or a network that overflows (float64 tells)."
            )
    raise ValueError(f"log_evidence: the log-weight of datum {first_row + row} is not a number.")


def _collect(
    results: list[dict[str, Tensor]], blocks: Blocks, particles: int, seed: int
) -> Evidence:
    columns = {name: torch.cat([r[name] for r in results]) for name in results[0]}
    relations = blocks.relations
    narrow = [name for name, relation in relations.items() if relation.is_lower_bound]
    if any(relation.is_infinite and relation.everywhere for relation in relations.values()):
        columns["elbo"] = torch.full_like(columns["elbo"], -torch.inf)
        columns["elbo_std_error"] = torch.full_like(columns["elbo"], torch.nan)
    if narrow:
        warnings.warn(
            f"log_evidence: site '{narrow[0]}': the guide's support is narrower "
            f"than the prior's, so this is only a lower bound of log p(x), "
            f"and neither its standard error nor k-hat can see that. "
            f"To mend it, choose a posterior whose support covers the prior's (Normal for Normal, "
            f"Gamma or LogNormal for Gamma), or a prior that lies within the posterior's support, "
            f"or transform the latent.",
            stacklevel=3,
        )
    return Evidence(
        **columns,
        particles=particles,
        seed=seed,
        support={name: relation.label for name, relation in relations.items()},
        lower_bound=bool(narrow),
    )
