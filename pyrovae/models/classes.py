r"""A latent class under a network: the simplest generative model with a deep p(x | z).

.. math::

    z \sim \mathrm{Categorical}(\pi_1 \dots \pi_k), \qquad
    x \sim p\big(x \mid \mathrm{MLP}(e_z)\big),

with an embedding :math:`e_j` for each class. There is no closed form of the parameters, but with
k classes there is one of the posterior: :math:`p(z = j \mid x) \propto \pi_j\, p(x \mid z = j)`
takes k passes through the network. So the E-step of EM stays exact, and the M-step becomes steps
of a gradient (generalized EM, Dempster, Laird & Rubin 1977): `pv.EM(model,
m_step=pv.GradientMStep())`. A continuous z ends this: the sum over classes becomes an integral
over a network, and :class:`pyrovae.models.VAE` begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyrovae.datasets import check_support
from pyrovae.models.checks import as_count, check_batch, check_finite, check_initial
from pyrovae.models.likelihoods import likelihood_head
from pyrovae.models.tables import LatentClass
from pyrovae.nn import MLP, as_shape

__all__ = ["NeuralMixture"]


class NeuralMixture(LatentClass):
    r"""A mixture of `classes` components whose parameters a network makes of their embeddings.

    The posterior over classes is a sum away, so `guide` is exact, without parameters of its own
    and not differentiated; with Pyro's `TraceEnum_ELBO`, in `SVI` or :func:`pyrovae.fit`, the loss
    is minus log p(x) and its gradient is exact.

    Args:
        data_shape: shape of one datum, `64` or `(8, 8)`.
        classes: k.
        hidden: widths of the network's hidden layers, one integer or several.
        likelihood: name of p(x | z), one of :func:`pyrovae.models.likelihood_names`.
        embedding: width of a class's embedding.
        uniform: p(z) stays uniform; otherwise it is learned.
        likelihood_args: arguments of the likelihood, `{"total_count": 16}`.
        activation: class of the nonlinearity.
        data_mean: mean of the data; the network's output starts there.

    Raises:
        ValueError: counts below 1, unknown names, shapes that do not fit.

    >>> mixture = NeuralMixture((8, 8), classes=10, hidden=32)
    >>> mixture.e_step(torch.zeros(5, 8, 8)).probs.shape  # responsibilities
    torch.Size([5, 10])
    """

    def __init__(
        self,
        data_shape: int | Sequence[int],
        classes: int,
        hidden: int | Sequence[int] = 128,
        likelihood: str = "bernoulli",
        embedding: int = 16,
        *,
        uniform: bool = False,
        likelihood_args: Mapping[str, Any] | None = None,
        activation: Callable[[], nn.Module] = nn.Tanh,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.classes = as_count("NeuralMixture", "classes", classes)
        as_count("NeuralMixture", "embedding", embedding)
        self.data_shape = as_shape(data_shape)
        self._again = {
            "data_shape": data_shape,
            "classes": classes,
            "hidden": hidden,
            "likelihood": likelihood,
            "embedding": embedding,
            "uniform": uniform,
            "likelihood_args": likelihood_args,
            "activation": activation,
            "data_mean": data_mean,
        }
        logits = torch.zeros(classes)
        if uniform:
            self.register_buffer("logits", logits)
        else:
            self.logits = nn.Parameter(logits)
        self.embedding = nn.Parameter(torch.randn(classes, embedding))
        net = MLP(embedding, as_shape(hidden), activation=activation)
        head = likelihood_head(
            likelihood, net.out_features, self.data_shape, likelihood_args, data_mean=data_mean
        )
        self.decoder = nn.Sequential(net, head)

    # -- their parts ------------------------------------------------------------------------------

    def given(self, z: Tensor) -> Any:
        return self.decode(z)

    def decode(self, z: Tensor) -> Any:
        """Return p(x | z) for classes z of any shape."""
        return self.decoder(self.embedding[z])

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n data from the model, `[n, *data_shape]`."""
        return self.decode(Categorical(logits=self.logits).sample((n,))).sample()

    @torch.no_grad()
    def initialize(self, x: Tensor, how: str = "random", seed: int = 0) -> None:
        """Start anew from random weights, in place.

        Args:
            x: the data `[N, *data_shape]`; only looked at for what a model cannot take.
            how: "random".
            seed: of the weights.

        Raises:
            ValueError: NaN in the data, an unknown start.
        """
        check_initial("NeuralMixture", how, ("random",))
        self.check(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.load_state_dict(NeuralMixture(**self._again).state_dict())

    def check(self, x: Tensor) -> None:
        """Raise unless EM can be run on x: finite data inside the likelihood's support."""
        self._check(x)
        check_finite("NeuralMixture", x)
        first = self.decode(torch.zeros((), dtype=torch.long, device=x.device))
        check_support(x, first.support, f'NeuralMixture, site "x" ({self._again["likelihood"]})')

    def _check(self, x: Tensor) -> None:
        check_batch("NeuralMixture", x, self.data_shape, self.embedding)
