"""Everything known about running a model and a guide.

It is the one place that imports Pyro's handlers.
"""

from pyrovae.traces.handlers import with_data_scale
from pyrovae.traces.held import Held, uses
from pyrovae.traces.params import (
    ParamScope,
    Scoped,
    evaluating,
    frozen_buffers,
    modules_of,
)
from pyrovae.traces.plates import DataPlate, data_plate_of
from pyrovae.traces.recorder import Recorder, Site, draw, nesting, record, replayed
from pyrovae.traces.running import Plan, plan_particles, probe, terms
from pyrovae.traces.terms import Latent, Observed, Terms, assemble, same

__all__ = [
    "DataPlate",
    "Held",
    "Latent",
    "Observed",
    "ParamScope",
    "Plan",
    "Recorder",
    "Scoped",
    "Site",
    "Terms",
    "assemble",
    "data_plate_of",
    "draw",
    "evaluating",
    "frozen_buffers",
    "modules_of",
    "nesting",
    "plan_particles",
    "probe",
    "record",
    "replayed",
    "same",
    "terms",
    "uses",
    "with_data_scale",
]
