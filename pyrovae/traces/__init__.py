"""Everything known about running a model and a guide.

It is the one place that imports Pyro's handlers.
"""

from pyrovae.traces.handlers import with_data_scale
from pyrovae.traces.params import (
    ParamScope,
    Scoped,
    evaluating,
    frozen_buffers,
    modules_of,
)
from pyrovae.traces.recorder import Recorder, Site, draw, nesting, record
from pyrovae.traces.terms import (
    DataPlate,
    Latent,
    Observed,
    Plan,
    Terms,
    assemble,
    data_plate_of,
    probe,
    replayed,
    terms,
)

__all__ = [
    "DataPlate",
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
    "probe",
    "record",
    "replayed",
    "terms",
    "with_data_scale",
]
