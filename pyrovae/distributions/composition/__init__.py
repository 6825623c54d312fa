"""Families composed of several draws: Gamma and what is made of Gammas and Normals.

Each subclasses Pyro's class of the same name (Erlang: Gamma), takes its arguments, and adds both
tails, exact implicit gradients, draws that do not pile up at small concentrations (`log_rsample`
gives log z, `Beta.rsample_logit` and `StudentT.signed_log_rsample` both ends), and densities that
keep their digits at large ones.
"""

from pyrovae.distributions.composition.betas import Beta, Dirichlet, FisherSnedecor
from pyrovae.distributions.composition.gammas import Chi2, Erlang, Gamma
from pyrovae.distributions.composition.reals import LogNormal, StudentT

__all__ = [
    "Beta",
    "Chi2",
    "Dirichlet",
    "Erlang",
    "FisherSnedecor",
    "Gamma",
    "LogNormal",
    "StudentT",
]
