r"""Networks: features to features, and features to a distribution.

An amortized posterior :math:`q_\phi(z \mid x)` and a likelihood :math:`p_\theta(x \mid z)` are
the same kind of object: a network that reads an array and ends in the parameters of a
distribution. It has two parts here,

.. math::

    h = \mathrm{MLP}(x), \qquad
    \lambda = c(W h + b), \qquad
    q(\cdot \mid x) = \mathcal D(\lambda).

:class:`MLP` is the first part. :class:`Head` is the second: it asks the class :math:`\mathcal D`
for its `arg_constraints`, decides from them how many numbers :math:`W h + b` must have and which
map :math:`c` sends each of them into its domain (:mod:`pyrovae.nn.maps`).

**Leading dimensions fold.** An array `[K, B, *event]` (K particles, B data) goes through a network
as `K * B` rows; only the trailing event dimensions are read. A network from elsewhere gets the
same manners by :class:`Fold`.

Where a datum's own entries explain each other, :class:`MADE` gives the logits of all of them, each
from all before it and a context; :class:`CausalWindow`, for images, each from its neighbours
before it and a context.
"""

from pyrovae.nn.head import Head
from pyrovae.nn.made import MADE
from pyrovae.nn.maps import bounded_positive, is_circle, squash, unit_vector
from pyrovae.nn.networks import MLP, Fold, OnCircle, as_shape, linear
from pyrovae.nn.window import CausalWindow

__all__ = [
    "MADE",
    "MLP",
    "CausalWindow",
    "Fold",
    "Head",
    "OnCircle",
    "as_shape",
    "bounded_positive",
    "is_circle",
    "linear",
    "squash",
    "unit_vector",
]
