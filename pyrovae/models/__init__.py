"""Models: Pyro programs and their networks, without losses and without loops.

Every model here is an ordinary pair of callables, `model(x)` and `guide(x)`, with no privilege
over a user's own.
"""

from pyrovae.models.likelihoods import likelihood_names
from pyrovae.models.sequence import SequenceVAE
from pyrovae.models.vae import VAE

__all__ = ["SequenceVAE", "VAE", "likelihood_names"]
