"""Models: Pyro programs and their networks, without losses and without loops.

Every model here is an ordinary pair of callables, `model(x)` and `guide(x)`, with no privilege
over a user's own. Those whose posterior is known have their closed forms too: `e_step`, `m_step`
and `log_px`, which :class:`pyrovae.EM` climbs with.
"""

from pyrovae.models.autoencoder import AutoEncoder, CodeModel
from pyrovae.models.classes import NeuralMixture
from pyrovae.models.likelihoods import likelihood_names
from pyrovae.models.linear import FactorAnalysis, LinearGuide, ProbabilisticPCA
from pyrovae.models.mixture import GaussianMixture
from pyrovae.models.sequence import SequenceVAE
from pyrovae.models.vae import VAE

__all__ = [
    "AutoEncoder",
    "CodeModel",
    "FactorAnalysis",
    "GaussianMixture",
    "LinearGuide",
    "NeuralMixture",
    "ProbabilisticPCA",
    "SequenceVAE",
    "VAE",
    "likelihood_names",
]
