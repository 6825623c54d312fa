"""Where data and particles stand in a log-density.

A Pyro site's log-density has one dimension for each plate around it, counted from the right, and
the particles, if any, to the left of them all. The *data plate* is the outermost plate that holds
every observed site, unless the caller names another. :class:`Layout` sums over everything else,
which leaves ``[K, B]``; its factor N/B is kept apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.traces.errors import no_data_plate, not_a_plate, unexpected_dims
from pyrovae.traces.recorder import Recorder, Site

__all__ = ["DataPlate", "Layout", "data_plate_of"]


@dataclass(frozen=True)
class DataPlate:
    """The plate whose elements are data: its name, its dimension, B elements of N."""

    name: str
    dim: int
    size: int
    full_size: int

    @property
    def scale(self) -> float:
        """N/B."""
        return self.full_size / self.size


@dataclass
class Layout:
    """Where particles and data stand in the batch shape of a site's log-density."""

    particles: int
    nesting: int
    plate: DataPlate

    def reduce(self, log_prob: Tensor, site: Site) -> Tensor:
        """Sum a site's log-density over inner plates: ``[K, B]``, or ``[K]`` for a global site.

        The particle axis has length 1 where the term does not depend on a draw.
        """
        log_prob = scale_and_mask(log_prob, mask=site.mask)
        plates = {frame.dim for frame in site.plates}
        rank = log_prob.dim()
        has_particles = rank == self.nesting + 1 and log_prob.shape[0] in (1, self.particles)
        own_rank = self.nesting if has_particles else rank
        keep = self.plate.dim if self.is_local(site) else 0  # another plate may share its dim
        drop = []
        for dim in range(-own_rank, 0):
            if dim == keep:
                continue
            if dim not in plates and log_prob.shape[dim] != 1:
                raise unexpected_dims(site, log_prob.shape, dim)
            drop.append(dim)
        if own_rank > self.nesting:
            raise unexpected_dims(site, log_prob.shape, -rank)
        if drop:
            log_prob = log_prob.sum(drop)
        return log_prob if has_particles else log_prob.unsqueeze(0)

    def by_unit(self, values: Tensor, site: Site) -> Tensor:
        """One number a unit, `[K, plates..., *event]`, as `[K or 1, B, D]` (B = 1: global site).

        D counts the elements of the event and of plates inside the data plate.
        """
        event = len(site.fn.event_shape)
        rank = self.nesting + event
        mask = site.mask
        if isinstance(mask, Tensor):
            mask = mask[(..., *(None,) * event)]
        values = scale_and_mask(values, mask=mask)
        if event:
            values = values.expand((*values.shape[:-event], *site.fn.event_shape))
        if values.dim() <= rank:
            values = values.reshape((1,) * (rank + 1 - values.dim()) + tuple(values.shape))
        if not self.is_local(site):
            return values.flatten(1).unsqueeze(1)
        values = values.movedim(self.plate.dim - event, 1)
        values = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
        return values.expand(-1, self.plate.size, -1)

    def is_local(self, site: Site) -> bool:
        """Whether the site stands in the data plate."""
        return any(frame.name == self.plate.name for frame in site.plates)

    def fill(self, log_prob: Tensor, site: Site, local: bool) -> Tensor:
        """:meth:`reduce`, repeated along axes that the term does not depend on."""
        reduced = self.reduce(log_prob, site)
        shape = (self.particles, self.plate.size) if local else (self.particles,)
        return reduced if reduced.shape == shape else reduced.expand(shape)

    def weight(self, site: Site) -> float | Tensor:
        """The site's scale without the data plate's N/B: a number, or one a datum `[B]`.

        Raises:
            ValueError: An elementwise ``poutine.scale`` that is not along the data plate alone.
        """
        scale = site.scale
        if self.is_local(site):
            scale = scale / self.plate.scale
        if isinstance(scale, Tensor):
            along_data = self.is_local(site) and self.plate.dim == -1
            if scale.dim() > 1 or (scale.dim() == 1 and not along_data):
                raise ValueError(
                    f"site '{site.name}': poutine.scale of shape {tuple(scale.shape)}. "
                    f"Expected: a number, or one weight a datum along the data plate "
                    f"'{self.plate.name}' (dim {self.plate.dim}). Try: a number; poutine.mask for "
                    f"elements that do not count."
                )
            return scale
        return 1.0 if math.isclose(scale, 1.0, rel_tol=1e-9) else scale

    def inner_scale(self, site: Site) -> float:
        """What subsampling plates other than the data plate multiply the site's density with."""
        scale = 1.0
        for frame in site.frames:
            if frame.name != self.plate.name and frame.full_size not in (None, frame.size):
                scale *= frame.full_size / frame.size
        return scale

    def subsampled(self, site: Site) -> str | None:
        """The name of a subsampled plate other than the data plate, if the site is in one."""
        for frame in site.frames:  # a plate as a Python loop may be subsampled too
            size = frame.full_size or frame.size
            if frame.name != self.plate.name and size != frame.size:
                return frame.name
        return None


def data_plate_of(modelled: Recorder, wanted: str | None = None) -> DataPlate:
    """The outermost plate around every observed site of a recorded model, or the `wanted` one."""
    sites = [s for s in modelled.sites.values() if s.is_observed]
    data = [s for s in sites if not isinstance(s.fn, Unit)]  # pyro.factor is not data
    if wanted is not None:
        data = [s for s in data if wanted in {frame.name for frame in s.plates}]
        if not data:
            raise not_a_plate(wanted, sites)
    common = [
        frame
        for frame in (data[0].plates if data else ())
        if all(frame.name in {f.name for f in s.plates} for s in data)
        and wanted in (None, frame.name)
    ]
    if not common:
        raise no_data_plate(sites)
    frame = common[0]
    return DataPlate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)
