r"""The plain autoencoder, and what it takes to make a generative model of one.

A VAE climbs :math:`E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))`; an autoencoder

.. math:: \log p_\theta\big(x \mid z = e_\phi(x)\big),

the first term at a single point. Among latent-variable models it is the degenerate one: its
posterior is a point mass at the *code* :math:`e_\phi(x)`, and it has no prior at all, which is a
flat one of density 1, that no distribution has. :class:`AutoEncoder` says just that: its model
draws z from `ImproperUniform`, its guide from `Delta`. Objectives take the pair as any other, the
"ELBO" they report is the objective above and no bound of anything; `log_evidence` refuses it, and
there is nothing to sample z from.

**Generation needs a density of the codes**, fitted afterwards. :class:`CodeModel` takes a Gaussian
or a mixture of Gaussians for :math:`p(z)` (Ghosh et al. 2020, arXiv:1903.12436) and has then all
that a VAE has: :math:`p(z)\,p(x \mid z)` can be sampled, and :math:`\log p(x)` is a number,

.. math:: \log p(x) = \log \int p(z)\, p_\theta(x \mid z)\, dz,

which is estimated with a posterior around the code,
:math:`q(z \mid x) = \mathcal N(e(x) + s(e(x)),\, L L^\top(e(x)))`, trained while the decoder stays
as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions import (
    Categorical,
    Delta,
    ImproperUniform,
    MixtureSameFamily,
    constraints,
)
from torch import Tensor, nn

from pyrovae.distributions import MultivariateNormal, Normal
from pyrovae.models.checks import check_batch
from pyrovae.models.latents import as_distribution
from pyrovae.models.likelihoods import SharedScale, likelihood_head
from pyrovae.nn import MLP, Head, as_shape
from pyrovae.traces import evaluating

__all__ = ["AutoEncoder", "CodeModel"]


class AutoEncoder(nn.Module):
    r"""An autoencoder: :math:`\max_{\theta, \phi} \sum_n \log p_\theta(x_n \mid e_\phi(x_n))`.

    The networks are those of a :class:`pyrovae.models.VAE` of the same sizes; only the encoder's
    last layer gives one number a latent instead of the parameters of a distribution.

    Args:
        data_shape: shape of one datum, `784` or `(28, 28)`.
        latent: length of a code.
        hidden: widths of the encoder's hidden layers; the decoder has them reversed.
        likelihood: name of p(x | z) (:mod:`pyrovae.models.likelihoods`). `"normal_fixed"` makes
            the objective a squared error.
        activation: class of the nonlinearity.
        likelihood_args: arguments of the likelihood, `{"scale": 1.0}`.
        encoder: a module `[..., *data_shape]` to `[..., latent]`, instead of the MLP.
        decoder: a module `[..., latent]` to a distribution of x, instead of the MLP.
        data_mean: mean of the data; the decoder's output starts there.
        init: "glorot" or "normal".

    Raises:
        ValueError: unknown names, sizes below 1.

    >>> ae = AutoEncoder((28, 28), 20)
    >>> ae.encode(torch.zeros(7, 28, 28)).shape
    torch.Size([7, 20])
    """

    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent: int,
        hidden: int | Sequence[int] = 500,
        likelihood: str = "bernoulli",
        activation: Callable[[], nn.Module] = nn.Tanh,
        *,
        likelihood_args: Mapping[str, Any] | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data_mean: Tensor | None = None,
        init: str = "glorot",
    ) -> None:
        super().__init__()
        self.data_shape, self.latent = as_shape(data_shape), int(latent)
        if min(self.data_shape, default=0) < 1 or self.latent < 1:
            raise ValueError(
                f"AutoEncoder: data_shape {self.data_shape} and latent {latent} must be at least 1"
            )
        widths, arguments = as_shape(hidden), dict(likelihood_args or {})
        self.config = None
        if encoder is None and decoder is None and getattr(nn, activation.__name__, 0):
            self.config = {
                "data_shape": list(self.data_shape),
                "latent": self.latent,
                "hidden": list(widths),
                "likelihood": likelihood,
                "activation": activation.__name__,
                "likelihood_args": arguments,
                "init": init,
            }
        if encoder is None:
            scale = 1.0 / arguments.get("total_count", 1)
            encoder = MLP(
                self.data_shape, widths, self.latent, activation, init=init, input_scale=scale
            )
        if decoder is None:
            net = MLP(self.latent, widths[::-1], activation=activation, init=init)
            head = likelihood_head(
                likelihood,
                net.out_features,
                self.data_shape,
                arguments,
                init=init,
                data_mean=data_mean,
            )
            decoder = nn.Sequential(net, head)
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AutoEncoder:
        """Build an autoencoder, untrained, from the JSON-ready `config` of another."""
        return cls(**{**config, "activation": getattr(nn, config["activation"])})

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        """Score x by p(x | z), for a z without a prior; it must come from a guide.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            flat = ImproperUniform(constraints.real_vector, (), (self.latent,))
            z = pyro.sample("z", flat)
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Put z at the code of x: a point mass.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", Delta(self.encode(x), event_dim=1))

    # -- their parts, and what is asked of a trained one ------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes `[..., latent]` of data `[..., *data_shape]`."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Any:
        """Return p(x | z) for codes `[..., latent]`, any number of leading dimensions."""
        return as_distribution("AutoEncoder", "decoder", self.decoder(z), self.data_shape)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x | z) at the code of x, `[..., *data_shape]`."""
        self._check(x)
        return self.decode(self.encode(x)).mean

    def with_density(self, x: Tensor, components: int = 1, **options: Any) -> CodeModel:
        """Fit a density to the codes of x and return the generative model, :class:`CodeModel`.

        Args:
            x: training data, `[N, *data_shape]`.
            components: how many Gaussians.
            **options: further arguments of :class:`CodeModel`.
        """
        self._check(x)
        return CodeModel(self, x, components, **options)

    def sample(self, n: int) -> Tensor:
        """Raise: an autoencoder has no p(z)."""
        raise NotImplementedError(
            "AutoEncoder: there is no p(z) to draw a code from; training has only ever asked for "
            "reconstructions. Try: a density fitted to the codes, "
            "autoencoder.with_density(x_train, components=50).sample(n); or a VAE."
        )

    def _check(self, x: Tensor) -> None:
        check_batch("AutoEncoder", x, self.data_shape, next(self.parameters()))


class CodeModel(nn.Module):
    r"""An autoencoder's decoder under a density of its codes: a latent-variable model.

    .. math::

        z \sim \sum_c \pi_c\, \mathcal N(\mu_c, \Sigma_c), \quad x \sim p_\theta(x \mid z), \qquad
        q(z \mid x) = \mathcal N\big(e(x) + s(e(x)),\, L L^\top(e(x))\big).

    The mixture is fitted to the codes of the data by scikit-learn's EM, once, on construction.
    Encoder and decoder are frozen copies. What is left to train are s and L, small networks of the
    code, and the observation noise if there is one:
    `pv.fit(codes.model, codes.guide, data)`, a long E-step. The better it is done, the closer
    `log_evidence` comes to log p(x) from below.

    Args:
        autoencoder: a trained one.
        x: training data, `[N, *data_shape]`.
        components: how many Gaussians.
        observation: "own", the autoencoder's likelihood, or "normal",
            :math:`x \sim \mathcal N(\text{mean of } p_\theta(x \mid z),\, \sigma^2 I)`, with
            :math:`\sigma` learned, from the root mean square of the residuals on.
        hidden: width of the network of s and L.
        seed: of scikit-learn's initialization.

    Raises:
        ValueError: fewer data than components, codes that are not finite, a likelihood without a
            mean under `observation="normal"`.

    Source: Ghosh, Sajjadi, Vergari, Black & Schölkopf (2020), arXiv:1903.12436.
    """

    def __init__(
        self,
        autoencoder: AutoEncoder,
        x: Tensor,
        components: int = 1,
        observation: Literal["own", "normal"] = "own",
        *,
        hidden: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with evaluating(autoencoder):
            codes = autoencoder.encode(x)
        self._build(autoencoder, components, observation, hidden, codes)
        self._fit_density(codes, seed)
        self._start_posterior(codes)
        if self.noise is not None:
            with evaluating(autoencoder):
                residuals = (x - autoencoder.reconstruct(x)).square().mean().sqrt()
                self.noise.raw.copy_(SharedScale(residuals.clamp(1e-4, 1e4).item()).raw)

    def _build(
        self, ae: AutoEncoder, components: int, observation: str, hidden: int, like: Tensor
    ) -> None:
        """Lay out networks and buffers, the density's and the posterior's not yet set."""
        counted = isinstance(components, int) and components >= 1
        if not counted or observation not in ("own", "normal"):
            raise ValueError(
                f"CodeModel: components must be at least 1, an integer, and observation "
                f'"own" or "normal", got {components!r} and {observation!r}'
            )
        self.data_shape, self.latent = ae.data_shape, ae.latent
        self.config = None
        if ae.config is not None:
            self.config = {
                "autoencoder": ae.config,
                "components": components,
                "observation": observation,
                "hidden": hidden,
            }
        self.encoder, self.decoder = _frozen(ae.encoder), _frozen(ae.decoder)
        self.noise = SharedScale().to(like) if observation == "normal" else None
        if self.noise is not None:
            self._check_mean(like)
        net = MLP(self.latent, hidden)
        self.posterior = nn.Sequential(net, Head(hidden, MultivariateNormal, self.latent)).to(like)
        d = self.latent
        self.register_buffer("weights", like.new_full((components,), 1 / components))
        self.register_buffer("locs", like.new_zeros(components, d))
        self.register_buffer("scale_trils", torch.eye(d).to(like).repeat(components, 1, 1))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CodeModel:
        """Build one, unfitted, from the JSON-ready `config` of another."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        autoencoder = AutoEncoder.from_config(config["autoencoder"])
        sizes = (config["components"], config["observation"], config["hidden"])
        self._build(autoencoder, *sizes, like=torch.zeros(1, autoencoder.latent))
        return self

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        """Run the generative program: z from the density of codes, x scored by p(x | z).

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        check_batch("CodeModel", x, self.data_shape, self.weights)
        if self.noise is not None:
            pyro.module("noise", self.noise)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Draw z from a Gaussian about the code of x.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        check_batch("CodeModel", x, self.data_shape, self.weights)
        pyro.module("posterior", self.posterior)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.encode(x))

    # -- their parts ------------------------------------------------------------------------------

    def prior(self) -> Any:
        """Return p(z), the density of the codes."""
        if len(self.weights) == 1:
            return MultivariateNormal(self.locs[0], scale_tril=self.scale_trils[0])
        parts = MultivariateNormal(self.locs, scale_tril=self.scale_trils)
        return MixtureSameFamily(Categorical(self.weights), parts)

    def encode(self, x: Tensor) -> Any:
        """Return q(z | x) for data `[..., *data_shape]`."""
        code = self.encoder(x)
        about = self.posterior(code)
        return MultivariateNormal(code + about.loc, scale_tril=about.scale_tril)

    def decode(self, z: Tensor) -> Any:
        """Return p(x | z) for codes `[..., latent]`."""
        d = as_distribution("CodeModel", "decoder", self.decoder(z), self.data_shape)
        if self.noise is None:
            return d
        return Normal(d.mean, self.noise()).to_event(len(self.data_shape))

    def train(self, mode: bool = True) -> CodeModel:
        """Set the mode of what is trained; encoder and decoder stay in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        self.decoder.eval()
        return self

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n data from the model, `[n, *data_shape]`."""
        return self.decode(self.prior().sample((n,))).sample()

    # -- construction -----------------------------------------------------------------------------

    def _check_mean(self, like: Tensor) -> None:
        try:
            with torch.no_grad():
                self.decoder(like[:1]).mean  # noqa: B018
        except NotImplementedError as error:
            raise ValueError(
                f'CodeModel: observation="normal" needs the mean of the likelihood: {error} '
                'Or: observation="own".'
            ) from None

    def _fit_density(self, codes: Tensor, seed: int) -> None:
        from sklearn.mixture import GaussianMixture

        components = len(self.weights)
        if len(codes) < max(components, 2) or not bool(codes.isfinite().all()):
            raise ValueError(
                f"CodeModel: {components} Gaussian(s) need at least {max(components, 2)} finite "
                f"codes, got {len(codes)}, {int((~codes.isfinite()).any(-1).sum())} of them not "
                "finite; give more data, or fewer components"
            )
        mixture = GaussianMixture(components, random_state=seed)
        mixture.fit(codes.double().cpu().numpy())
        found = (mixture.weights_, mixture.means_, np.linalg.cholesky(mixture.covariances_))
        for buffer, value in zip((self.weights, self.locs, self.scale_trils), found, strict=True):
            buffer.copy_(torch.from_numpy(value))

    @torch.no_grad()
    def _start_posterior(self, codes: Tensor) -> None:
        """Start q at the code itself, a tenth as wide as all codes together."""
        head = self.posterior[1]
        nn.init.zeros_(head.linear.weight)
        nn.init.zeros_(head.linear.bias)
        width = (0.1 * codes.std(0)).clamp(1e-3, 1e3).log()
        raw = codes.new_zeros(self.latent * (self.latent + 1) // 2)
        raw[: self.latent] = 10 * (width / 10).atanh()  # the inverse of bounded_positive
        head.set_bias("scale_tril", raw)


def _frozen(module: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers: kept with a state, moved by `.to`, never trained.

    It is in evaluation mode, where BatchNorm and dropout do nothing new.
    """
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach().clone())
    return module
