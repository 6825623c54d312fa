r"""Variational autoencoders as ordinary Pyro programs, and honest numbers about them.

A model p(x, z) and a guide q(z|x) are two Pyro programs; everything here works on any such pair.

Floors, each importing from lower ones only::

    1  bounds         functions of log-weights [K, B] -> [B]
       nn             networks: features -> features, features -> distribution
       datasets       named data, local files, minibatches on the device
       distributions  reparameterizable families
       kl_control     annealing, free bits, capacity, controllers of the KL
       checkpoint     states on disk: safetensors + JSON
    2  traces         running a model and a guide: the one place that imports Pyro's handlers
    3  models         Pyro programs and nothing else
       objectives     losses: each a bound of Terms
    4  evidence       log p(x)
       collapse       is z in use?
    5  em             which parameters step when
       run            what training leaves behind
    6  fit            the loop
    7  cli            the `pyrovae` command
       testing        the contract test of a distribution, for users' classes too

Notation: ``log_weights`` log p(x, z) - log q(z|x) `[K, B]`; K ``particles``, B data of N;
``posterior`` q(z|x) as a distribution; ``log_evidence`` log p(x); nats everywhere.
"""

from pyrovae import bounds, datasets, distributions, kl_control, models, nn, testing, traces
from pyrovae.collapse import (
    CollapseMonitor,
    CollapseReport,
    CollapseWarning,
    collapse_report,
    posterior_means_on_grid,
)
from pyrovae.em import (
    EM,
    Aggressive,
    Alternating,
    Converge,
    GradientMStep,
    Joint,
    SemiAmortized,
    VariationalEM,
    adam,
)
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.fit import fit
from pyrovae.objectives import ELBO, IWAE, Renyi
from pyrovae.run import Run, load_run
from pyrovae.traces import Terms, terms

__version__ = "0.1.0"

__all__ = [
    "Aggressive",
    "Alternating",
    "CollapseMonitor",
    "CollapseReport",
    "CollapseWarning",
    "Converge",
    "ELBO",
    "EM",
    "Evidence",
    "GradientMStep",
    "IWAE",
    "Joint",
    "Renyi",
    "Run",
    "SemiAmortized",
    "Terms",
    "VariationalEM",
    "adam",
    "bounds",
    "collapse_report",
    "datasets",
    "distributions",
    "fit",
    "kl_control",
    "load_run",
    "log_evidence",
    "models",
    "nn",
    "posterior_means_on_grid",
    "terms",
    "testing",
    "traces",
]
