r"""The variational autoencoder: a model and a guide, nothing more.

Kingma and Welling (2014, arXiv 1312.6114). A latent z per datum, a prior p(z), a likelihood whose
parameters a network computes from z, and a posterior whose parameters a network computes from x:

.. math::

    z \sim p(z), \quad x \sim p_\theta(x \mid z) \quad \text{(model)}, \qquad
    z \sim q_\phi(z \mid x) \quad \text{(guide)},

.. math::

    \log p_\theta(x) \ge E_{q_\phi(z \mid x)}\big[\log p_\theta(x \mid z)\big]
    - \mathrm{KL}\big(q_\phi(z \mid x) \,\|\, p(z)\big).

This file holds the two programs and their networks. It has no loss and no loop: `vae.model` and
`vae.guide` go into :func:`pyrovae.fit`, into `pyro.infer.SVI` with any of Pyro's losses, or into
any tool that takes a pair. Sites are `"z"` and `"x"` inside `pyro.plate("data", B)`; networks are
registered as `encoder`, `decoder` (and `prior`, where it is learned). Neither program branches on
a tensor's value, so both can be traced into a graph. Values of z may carry particle dimensions on
the left, `[K, B, *latent]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.distributions import Normal, map_tensors, prior_by_name
from pyrovae.models.latents import (
    as_distribution,
    centre,
    family_named,
    family_of,
    fit_prior,
    latent_config,
    posterior_head,
    prior_of,
)
from pyrovae.models.likelihoods import likelihood_head
from pyrovae.nn import MLP, OnCircle, as_shape, is_circle

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A VAE: any posterior family, any prior, a likelihood of :mod:`pyrovae.models.likelihoods`.

    The encoder is MLP and head, :math:`q(z \mid x) = \mathcal D(c(W\,\mathrm{MLP}(x) + b))`; the
    decoder mirrors it with the hidden widths reversed. The network of Burda et al. (2016),
    784-200-200-50, is `VAE(784, 50, hidden=(200, 200))`; that of Kingma and Welling is
    `VAE(784, 20, hidden=500)`.

    Args:
        data_shape: shape of one datum, `784` or `(28, 28)`.
        latent: shape of one latent z, usually one integer.
        hidden: widths of the encoder's hidden layers, one integer or several.
        likelihood: name of p(x | z).
        posterior: class of q(z | x), or its name; `functools.partial(StudentT, df=5.0)` or
            `"student-t(df=5)"` fixes a parameter, `"mixture(normal, 3)"` is a mixture of three.
        prior: p(z): a distribution of event shape `latent` and empty batch shape (scalars are
            broadcast), its name and numbers, `"gamma(0.3, 0.3)"`
            (:func:`pyrovae.distributions.prior_by_name`), or a module that returns one when called
            (a learned prior). None takes the one that fits the posterior's support and tails,
            :func:`pyrovae.distributions.default_prior`.
        activation: class of the nonlinearity.
        likelihood_args: arguments of the likelihood, `{"total_count": 16}`.
        encoder: a module `[..., *data_shape]` to a distribution of z, instead of the MLP; end it
            with :class:`pyrovae.nn.Head`.
        decoder: a module `[..., *latent]` to a distribution of x, instead of the MLP. The MLP
            reads angles (a VonMises latent) through :class:`pyrovae.nn.OnCircle`; so should this.
        data_mean: mean of the data; the decoder's output starts there.
        init: "glorot" or "normal" (N(0, 0.01), as Kingma and Welling).

    Raises:
        ValueError: unknown names, shapes that do not fit, a prior that is not one.

    >>> vae = VAE((28, 28), 20)
    >>> vae.decode(torch.zeros(7, 3, 20)).event_shape
    torch.Size([28, 28])
    """

    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent: int | Sequence[int],
        hidden: int | Sequence[int] = 500,
        likelihood: str = "bernoulli",
        posterior: Any = Normal,
        prior: Any = None,
        activation: Callable[[], nn.Module] = nn.Tanh,
        *,
        likelihood_args: Mapping[str, Any] | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data_mean: Tensor | None = None,
        init: str = "glorot",
    ) -> None:
        super().__init__()
        custom = encoder is not None or decoder is not None
        self.config = (
            None
            if custom
            else _config(
                data_shape,
                latent,
                hidden,
                likelihood,
                posterior,
                prior,
                activation,
                likelihood_args,
                init,
            )
        )
        self.data_shape = as_shape(data_shape)
        self.latent_shape = as_shape(latent)
        if min(self.data_shape, default=0) < 1 or min(self.latent_shape, default=0) < 1:
            raise ValueError(
                f"VAE: data_shape {self.data_shape} and latent {self.latent_shape} need at least "
                "one dimension, each of size 1 or more"
            )
        self.likelihood = likelihood
        self.likelihood_args = dict(likelihood_args or {})
        family, fixed = family_of("VAE", posterior)
        self.posterior = family
        widths = as_shape(hidden)
        if isinstance(prior, str):
            prior = prior_by_name(prior, self.latent_shape)
        if encoder is None:
            scale = 1.0 / self.likelihood_args.get("total_count", 1)
            net = MLP(self.data_shape, widths, activation=activation, init=init, input_scale=scale)
            head = posterior_head(net.out_features, family, fixed, self.latent_shape, prior, init)
            encoder = nn.Sequential(net, head)
        if decoder is None:
            *lead, last = self.latent_shape
            angles = is_circle(getattr(family, "support", None))  # read as points, not as numbers
            seen = (*lead, 2 * last) if angles else self.latent_shape
            net = MLP(seen, widths[::-1], activation=activation, init=init)
            decoder = nn.Sequential(
                *([OnCircle()] if angles else []),
                net,
                likelihood_head(
                    likelihood,
                    net.out_features,
                    self.data_shape,
                    self.likelihood_args,
                    init=init,
                    data_mean=data_mean,
                ),
            )
        self.encoder = encoder
        self.decoder = decoder
        self.prior_net, self._prior = prior_of("VAE", prior, family, fixed, self.latent_shape)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VAE:
        """Build a VAE, untrained, from the JSON-ready `config` of another."""
        arguments = dict(config)
        family = family_named(arguments.pop("posterior"))
        fixed = arguments.pop("posterior_args")
        activation = getattr(nn, arguments.pop("activation"))
        return cls(posterior=partial(family, **fixed), activation=activation, **arguments)

    # -- the two programs -------------------------------------------------------------------------

    def model(self, x: Tensor) -> Tensor:
        r"""Run the generative program: :math:`z \sim p(z)`, x given, scored by p(x | z).

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("decoder", self.decoder)
        if self.prior_net is not None:
            pyro.module("prior", self.prior_net)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        r"""Run the amortized posterior: :math:`z \sim q_\phi(z \mid x)`.

        Args:
            x: a batch of data, `[B, *data_shape]`.
        """
        self._check(x)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.encode(x))

    # -- their parts ------------------------------------------------------------------------------

    def prior(self) -> Any:
        """Return p(z), event shape `latent`."""
        if self.prior_net is not None:
            return fit_prior("VAE", self.prior_net(), self.latent_shape, trained=True)
        return self._prior

    def encode(self, x: Tensor) -> Any:
        """Return q(z | x) for data `[..., *data_shape]`."""
        return as_distribution("VAE", "encoder", self.encoder(x), self.latent_shape)

    def decode(self, z: Tensor) -> Any:
        """Return p(x | z) for latents `[..., *latent]`, any number of leading dimensions."""
        return as_distribution("VAE", "decoder", self.decoder(z), self.data_shape)

    # -- what is asked of a trained one -----------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n data from the model, `[n, *data_shape]`."""
        return self.decode(self.prior().sample((n,))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x | z) at the centre of q(z | x), `[..., *data_shape]`.

        The centre is the posterior's mean; its mode where no mean exists (Cauchy) or it lies
        outside of the support (unit vectors); a draw where neither does. Where the likelihood has
        no mean in closed form (`made`), a draw of x stands in.
        """
        self._check(x)
        likelihood = self.decode(centre(self.encode(x)))
        try:
            return likelihood.mean
        except NotImplementedError:
            return likelihood.sample()

    # -- checks -----------------------------------------------------------------------------------

    def _check(self, x: Tensor) -> None:
        """Raise if x cannot be a batch for these networks; no value is read."""
        if not isinstance(x, Tensor):
            raise TypeError(
                f'VAE, site "x": expected a tensor, got {type(x).__name__}; use torch.as_tensor(x)'
            )
        if x.dim() != len(self.data_shape) + 1 or tuple(x.shape[1:]) != self.data_shape:
            wanted = ", ".join(["B", *map(str, self.data_shape)])
            raise ValueError(
                f'VAE, site "x": expected a batch of shape [{wanted}], got {list(x.shape)}; '
                f"build VAE(data_shape={tuple(x.shape[1:])}, ...), reshape the data, or add the "
                "batch dimension with x[None]"
            )
        if x.shape[0] == 0:
            raise ValueError('VAE, site "x": the batch is empty; give at least one datum')
        weight = next(self.parameters(), None)
        if weight is None:
            return
        if x.dtype != weight.dtype:
            raise ValueError(
                f'VAE, site "x": the data are {x.dtype}, the networks {weight.dtype}; '
                f"use x.to({weight.dtype}), or vae.to(dtype) for other networks"
                + (
                    " (8-bit pixels: choose a likelihood and scale or binarize them first)"
                    if x.dtype == torch.uint8
                    else ""
                )
            )
        if x.device != weight.device:
            raise ValueError(
                f'VAE, site "x": the data are on {x.device}, the networks on {weight.device}; '
                f'use vae.to("{x.device}") or x.to("{weight.device}")'
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VAE:
        """Move the prior along with the networks in `.to`, `.double`, `.cuda`."""
        super()._apply(fn, recurse)
        if self._prior is not None:
            self._prior = map_tensors(self._prior, fn)
        return self


def _config(
    data_shape: Any,
    latent: Any,
    hidden: Any,
    likelihood: str,
    posterior: Any,
    prior: Any,
    activation: Any,
    likelihood_args: Mapping[str, Any] | None,
    init: str,
) -> dict[str, Any] | None:
    """Return the arguments of a VAE as JSON, or None where one has no name there."""
    of_latent, act = latent_config("VAE", posterior, prior), getattr(activation, "__name__", "")
    plain = all(isinstance(v, (bool, int, float, str)) for v in (likelihood_args or {}).values())
    if of_latent is None or getattr(nn, act, None) is not activation or not plain:
        return None
    return {
        "data_shape": list(as_shape(data_shape)),
        "latent": list(as_shape(latent)),
        "hidden": list(as_shape(hidden)),
        "likelihood": likelihood,
        **of_latent,
        "activation": act,
        "likelihood_args": dict(likelihood_args or {}),
        "init": init,
    }
