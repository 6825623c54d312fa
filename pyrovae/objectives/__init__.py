r"""Losses for ``pyro.infer.SVI`` and for ``fit``, a few lines each.

All of them are functions of :class:`~pyrovae.traces.Terms`.

The two SGVB estimators of the ELBO (Kingma & Welling 2014, arXiv:1312.6114, eq. 6 and 7),

.. math::
    \text{A:}\quad & \tfrac1K \sum_k \log p(x|z_k) + \log p(z_k) - \log q(z_k|x) \\
    \text{B:}\quad & \tfrac1K \sum_k \log p(x|z_k) - \mathrm{KL}(q(z|x) \,\|\, p(z)),

and the importance-weighted bound :math:`\log \tfrac1K \sum_k w_k` (Burda et al. 2016,
arXiv:1509.00519).

An objective offers three views of itself:

* ``per_datum(model, guide, *args) -> [B]``: the true bound in nats, higher is better, free of KL
  weights, free bits, ``poutine.scale`` and N/B;
* ``surrogate(model, guide, *args)``: the scalar that is *maximized*, a sum over the data plate
  times N/B;
* Pyro's interface (``loss``, ``differentiable_loss``, ``loss_and_grads``): minus the surrogate.
"""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.multisample import IWAE, Renyi

__all__ = ["ELBO", "IWAE", "Objective", "Renyi"]
