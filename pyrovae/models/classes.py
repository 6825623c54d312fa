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

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyrovae.datasets import check_support
from pyrovae.models.checks import as_count, check_batch, check_finite, check_initial
from pyrovae.models.likelihoods import likelihood_head
from pyrovae.models.tables import log_table, mean_over_classes
from pyrovae.nn import MLP, as_shape

__all__ = ["NeuralMixture"]


class NeuralMixture(nn.Module):
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

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        """Run the generative program: draw a class, then score x by what the network makes of it.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("mixture", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", Categorical(logits=self.logits), infer=_SUMMED_OUT)
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Run the exact posterior: z from the responsibilities of x.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        posterior = self.e_step(x)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", posterior, infer=_SUMMED_OUT)

    def decode(self, z: Tensor) -> Any:
        """Return p(x | z) for classes z of any shape."""
        return self.decoder(self.embedding[z])

    @property
    def weights(self) -> Tensor:
        r"""The probabilities :math:`\pi` of the classes, `[k]`."""
        return self.logits.softmax(-1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n data from the model, `[n, *data_shape]`."""
        return self.decode(Categorical(logits=self.logits).sample((n,))).sample()

    # -- closed forms -----------------------------------------------------------------------------

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, z = j) for every datum and class, `[N, k]`."""
        self._check(x)
        each = self.decode(torch.arange(self.classes, device=x.device))
        return log_table(each, x) + self.logits.log_softmax(-1)

    def log_px(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, `[N]`, nats: the exact sum over classes."""
        return self.log_joint(x).logsumexp(-1)

    @torch.no_grad()
    def e_step(self, x: Tensor) -> Categorical:
        """Return p(z | x), a Categorical of batch shape `[N]`: `.probs` are responsibilities."""
        return Categorical(logits=self.log_joint(x))

    def expected_log_joint(self, x: Tensor, posterior: Categorical) -> Tensor:
        """Return E log p(x, z) under any posterior over classes, `[N]`, nats; differentiable."""
        return mean_over_classes(posterior.probs, self.log_joint(x))

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


_SUMMED_OUT = {"enumerate": "parallel"}
