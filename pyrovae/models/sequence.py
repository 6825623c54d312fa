r"""The LSTM VAE for text: one latent z a sequence, and a decoder strong enough to ignore it.

He, Spokoyny, Neubig and Berg-Kirkpatrick (2019, arXiv:1901.05534), after Bowman et al. (2016,
arXiv:1511.06349). A datum is a sequence of tokens :math:`x_1 \dots x_L`, ids below V:

.. math::

    z \sim p(z), \qquad p_\theta(x \mid z) = \prod_{t=1}^{L} p_\theta(x_t \mid x_{<t}, z),
    \qquad x_t \sim \mathrm{Categorical}(\mathrm{softmax}(A h_t)),

    h_t, c_t = \mathrm{LSTM}\big([e(x_{t-1}); z],\, h_{t-1}, c_{t-1}\big), \qquad
    c_0 = W z, \quad h_0 = \tanh(c_0),

where :math:`x_0` is a start symbol of the decoder's own. The posterior's parameters are a linear
function of an LSTM's state after :math:`x_L`. Each step sees all tokens before it, so the decoder
can do without z: this is where posteriors collapse.

Sequences of unequal lengths come padded, `tokens` `[B, T]` with `lengths` `[B]`. What stands
beyond a sequence's length is not read: neither its likelihood nor its posterior depends on it. If
sequences end by themselves, their last token is an end symbol from the vocabulary, predicted like
any other; without one p(x | z) is that of L tokens given L.

Sites are `"z"` and `"x"` inside `pyro.plate("data", B)`; `"x"` is one observed site a sequence,
the sum of its tokens' log-probabilities. Values of z may carry particles on the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, TorchDistribution, is_validation_enabled
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import cross_entropy

from pyrovae.datasets import check_support
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
from pyrovae.nn import OnCircle, as_shape, is_circle
from pyrovae.traces.terms import is_captured

__all__ = ["SequenceVAE", "Sequences"]

_LOGITS = 10_000_000  # logits computed at once where no gradient is kept
_UNREAD = -100  # target of a position beyond a sequence's length


class SequenceVAE(nn.Module):
    r"""An LSTM VAE over sequences of tokens, any posterior family, any prior.

    The defaults are the network of He et al. (2019) for text; theirs for synthetic data is
    `SequenceVAE(1000, 2, embedding=50, hidden=50)`.

    Args:
        vocabulary: V, the number of token ids, an end symbol included.
        latent: shape of one latent z, usually one integer.
        embedding: width of a token's embedding; encoder and decoder have one each.
        hidden: width of both LSTMs.
        dropout: of the decoder's embeddings and of its LSTM's output.
        posterior: class of q(z | x), or its name, as in :class:`pyrovae.models.VAE`.
        prior: p(z), as in :class:`pyrovae.models.VAE`.
        end: the id that ends a sequence; generation stops there. None: it goes on to `size`.
        init: "uniform", all weights U(-0.01, 0.01) and embeddings U(-0.1, 0.1), as He et al. have
            them; or "torch", torch's own.

    Raises:
        ValueError: sizes below 1, unknown names, a prior that does not fit.

    >>> vae = SequenceVAE(27, 8, embedding=16, hidden=32, end=0)
    >>> tokens, lengths = torch.tensor([[5, 13, 13, 1, 0], [1, 22, 1, 0, 0]]), torch.tensor([5, 4])
    >>> pyro.poutine.trace(vae.model).get_trace(tokens, lengths).nodes["x"]["fn"].event_shape
    torch.Size([5])
    """

    def __init__(
        self,
        vocabulary: int,
        latent: int | Sequence[int] = 32,
        embedding: int = 512,
        hidden: int = 1024,
        dropout: float = 0.5,
        posterior: Any = Normal,
        prior: Any = None,
        *,
        end: int | None = None,
        init: str = "uniform",
    ) -> None:
        super().__init__()
        self.latent_shape = as_shape(latent)
        _check_sizes(vocabulary, self.latent_shape, embedding, hidden, dropout, end, init)
        self.vocabulary, self.end = vocabulary, end
        of_latent = latent_config("SequenceVAE", posterior, prior)
        self.config = of_latent and {
            "vocabulary": vocabulary,
            "latent": list(self.latent_shape),
            "embedding": embedding,
            "hidden": hidden,
            "dropout": dropout,
            "end": end,
            "init": init,
            **of_latent,
        }
        family, fixed = family_of("SequenceVAE", posterior)
        self.posterior = family
        if isinstance(prior, str):
            prior = prior_by_name(prior, self.latent_shape)
        self.encoder = _Encoder(
            vocabulary,
            embedding,
            hidden,
            posterior_head(hidden, family, fixed, self.latent_shape, prior),
        )
        reads_angles = is_circle(getattr(family, "support", None))
        self.decoder = _Decoder(
            vocabulary, embedding, hidden, self.latent_shape, dropout, reads_angles
        )
        if init == "uniform":
            _start_uniform(self.encoder)
            _start_uniform(self.decoder)
        self.prior_net, self._prior = prior_of(
            "SequenceVAE", prior, family, fixed, self.latent_shape
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SequenceVAE:
        """Build one, untrained, from the JSON-ready `config` of another."""
        arguments = dict(config)
        family = family_named(arguments.pop("posterior"))
        return cls(posterior=partial(family, **arguments.pop("posterior_args")), **arguments)

    # -- the two programs -------------------------------------------------------------------------

    def model(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        r"""Run the generative program: :math:`z \sim p(z)`, tokens given, scored by p(x | z).

        Args:
            tokens: ids `[B, T]`, padded with any known id.
            lengths: how many of them count, `[B]`, from 1 to T; all of them by default.
        """
        self._check(tokens, lengths)
        pyro.module("decoder", self.decoder)
        if self.prior_net is not None:
            pyro.module("prior", self.prior_net)
        with pyro.plate("data", tokens.shape[0]):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z, tokens.shape[1], lengths), obs=tokens)

    def guide(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        r"""Run the amortized posterior: :math:`z \sim q_\phi(z \mid x)`; arguments as the model's.

        Args:
            tokens: ids `[B, T]`.
            lengths: how many of them count, `[B]`.
        """
        self._check(tokens, lengths)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", tokens.shape[0]):
            return pyro.sample("z", self.encode(tokens, lengths))

    # -- their parts ------------------------------------------------------------------------------

    def prior(self) -> Any:
        """Return p(z), event shape `latent`."""
        if self.prior_net is not None:
            return fit_prior("SequenceVAE", self.prior_net(), self.latent_shape, trained=True)
        return self._prior

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Any:
        """Return q(z | x) for tokens `[..., T]`."""
        d = self.encoder(tokens, lengths)
        return as_distribution("SequenceVAE", "encoder", d, self.latent_shape)

    def decode(self, z: Tensor, size: int, lengths: Tensor | None = None) -> Sequences:
        """Return p(x | z), a law of `size` tokens of which `lengths` count, z `[..., *latent]`."""
        return Sequences(self.decoder, z, size, lengths)

    # -- what is asked of a trained one -----------------------------------------------------------

    @torch.no_grad()
    def generate(
        self, z: Tensor, size: int = 100, *, greedy: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Write one sequence for each z `[n, *latent]`, in evaluation mode.

        Args:
            z: latents.
            size: the most tokens.
            greedy: take the likeliest token at each step instead of drawing one.
            temperature: logits are divided by it before a draw.

        Returns:
            Tokens `[n, T]` and lengths `[n]` as the programs read them, T at most `size`. A
            sequence ends with its first `end`, and is padded with it.
        """
        if size < 1 or not temperature > 0:
            raise ValueError(
                f"SequenceVAE: size must be at least 1 and temperature positive, got {size} and "
                f"{temperature}; greedy=True is the limit of low temperatures"
            )

        def choose(logits: Tensor) -> Tensor:
            return logits.argmax(-1) if greedy else _draw(logits / temperature)

        with _evaluation(self):
            tokens = self.decoder.write(z, size, choose, self.end)
        return _cut_at(tokens, self.end)

    @torch.no_grad()
    def sample(
        self, n: int, size: int = 100, *, greedy: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Draw n sequences from the model; arguments and result as :meth:`generate`.

        As text: ``vocabulary.decode(*vae.sample(5))``, with the vocabulary of the data set, that
        of ``pyrovae.datasets.names()`` for example.
        """
        z = self.prior().sample((n,))
        return self.generate(z, size, greedy=greedy, temperature=temperature)

    @torch.no_grad()
    def reconstruct(
        self, tokens: Tensor, lengths: Tensor | None = None, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write, greedily, from the centre of q(z | x) (its mean, mode, or a draw)."""
        self._check(tokens, lengths)
        with _evaluation(self):
            z = centre(self.encode(tokens, lengths))
        return self.generate(z, tokens.shape[1] if size is None else size, greedy=True)

    # -- checks -----------------------------------------------------------------------------------

    def _check(self, tokens: Tensor, lengths: Tensor | None) -> None:
        """Raise if this cannot be a batch; values are read only where Pyro validates."""
        _check_ids('SequenceVAE, site "x": tokens', tokens, "[B, T]", 2)
        if lengths is not None:
            _check_ids("SequenceVAE: lengths", lengths, "[B]", 1)
            if lengths.shape[0] != tokens.shape[0]:
                raise ValueError(
                    f"SequenceVAE: {lengths.shape[0]} lengths for {tokens.shape[0]} sequences; "
                    "expected one a row of tokens"
                )
        weight = self.decoder.out.weight
        for name, given in (("tokens", tokens), ("lengths", lengths)):
            if given is not None and given.device != weight.device:
                raise ValueError(
                    f"SequenceVAE: {name} are on {given.device}, the networks on {weight.device}; "
                    f'use vae.to("{given.device}") or {name}.to("{weight.device}")'
                )
        if is_validation_enabled() and not is_captured():
            what = f'SequenceVAE, site "x": tokens (vocabulary={self.vocabulary})'
            check_support(tokens, _ids(self.vocabulary), what)
            _check_lengths(lengths, tokens.shape[1])
            if lengths is None and self.end is not None:
                _warn_of_padding(tokens, self.end)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SequenceVAE:
        """Move the prior along with the networks in `.to`, `.double`, `.cuda`."""
        super()._apply(fn, recurse)
        if self._prior is not None:
            self._prior = map_tensors(self._prior, fn)
        return self


class Sequences(TorchDistribution):
    r"""The law of padded sequences given z: :math:`\sum_{t \le L} \log p(x_t | x_{<t}, z)`, nats.

    One draw is `[T]`; tokens beyond the length are not read, and 0 in a draw.

    Args:
        decoder: the decoder of a :class:`SequenceVAE`.
        z: latents `[..., *latent]`.
        size: T.
        lengths: how many tokens count, `[...]`, broadcast against z from the right; T by default.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        decoder: _Decoder,
        z: Tensor,
        size: int,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.decoder, self.z, self.lengths = decoder, z, lengths
        batch = z.shape[: z.dim() - len(decoder.latent_shape)]
        if lengths is not None:
            batch = torch.broadcast_shapes(batch, lengths.shape)
        super().__init__(batch, torch.Size((size,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Token ids below the vocabulary's size, padding included."""
        return constraints.independent(_ids(self.decoder.vocabulary), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Sequences:
        """Return the same law in a larger batch."""
        z = self.z.expand(torch.Size(batch_shape) + self.decoder.latent_shape)
        return Sequences(self.decoder, z, self.event_shape[0], self.lengths, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of tokens `[..., T]`, broadcast against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        size, latent, lengths = self.event_shape[0], self.decoder.latent_shape, self.lengths
        rows = value.shape[:-1]
        if lengths is not None:
            rows = torch.broadcast_shapes(rows, lengths.shape)
        shape = torch.broadcast_shapes(self.batch_shape, rows)
        if shape[len(shape) - len(rows) :] != rows:
            rows = shape
        tokens = value.expand(rows + (size,)).reshape(-1, size)
        if lengths is not None:
            lengths = lengths.expand(rows).reshape(-1)
        z = self.z.expand(shape + latent).reshape(-1, *latent)
        return self.decoder.score(z, tokens, lengths).reshape(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw tokens one after the other, `[*sample_shape, ..., T]`."""
        shape, size = torch.Size(sample_shape) + self.batch_shape, self.event_shape[0]
        latent = self.decoder.latent_shape
        z = self.z.expand(shape + latent).reshape(-1, *latent)
        tokens = self.decoder.write(z, size, _draw).reshape(shape + (size,))
        if self.lengths is None:
            return tokens
        return tokens.masked_fill(_beyond(self.lengths, size), 0)


# -- networks -------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """Tokens `[..., T]` to q(z | x): the LSTM's state after the last token, and a linear layer."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, head: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = head
        self.head.linear.register_parameter("bias", None)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Any:
        lead = tokens.shape[:-1]
        tokens = tokens.long().reshape(-1, tokens.shape[-1])
        if lengths is None:
            last = self.lstm(self.embed(tokens))[1][0][0]
        else:
            lengths = lengths.expand(lead).reshape(-1)
            states = self.lstm(self.embed(tokens[:, : _longest(lengths, tokens)]))[0]
            at = (lengths.long() - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
            last = states.gather(1, at).squeeze(1)
        return self.head(last.reshape(*lead, last.shape[-1]))


class _Decoder(nn.Module):
    """z and the tokens so far to the next token's logits."""

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: int,
        latent_shape: tuple[int, ...],
        dropout: float,
        reads_angles: bool,
    ) -> None:
        super().__init__()
        self.vocabulary, self.latent_shape = vocabulary, latent_shape
        self.read = OnCircle() if reads_angles else nn.Identity()
        features = prod(latent_shape) * (2 if reads_angles else 1)
        self.embed = nn.Embedding(vocabulary + 1, embedding)  # the last one starts a sequence
        self.lstm = nn.LSTM(embedding + features, hidden, batch_first=True)
        self.to_cell = nn.Linear(features, hidden, bias=False)
        self.out = nn.Linear(hidden, vocabulary, bias=False)
        self.dropout = nn.Dropout(dropout)

    def score(self, z: Tensor, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Return log p(x | z) `[R]` for z `[R, *latent]`, R a multiple K * B of the B sequences.

        The whole padded batch goes through the LSTM at once. Where no gradient is kept, rows are
        taken in parts, so that memory is bounded whatever the vocabulary and the particles.
        """
        tokens = tokens[:, : _longest(lengths, tokens)].long()
        n, (data, size) = z.shape[0], tokens.shape
        targets = tokens
        if lengths is not None:
            targets = tokens.masked_fill(_beyond(lengths, size), _UNREAD)
        start = tokens.new_full((data, 1), self.vocabulary)
        seen = self.dropout(self.embed(torch.cat([start, tokens[:, :-1]], 1)))  # [B, T, E]
        z = self._features(z)
        part = max(1, _LOGITS // (size * self.vocabulary))
        if torch.is_grad_enabled() or n <= part:
            many = n // data
            if many > 1:
                seen, targets = seen.repeat(many, 1, 1), targets.repeat(many, 1)
            return self._score(z, seen, targets)
        parts = torch.arange(n, device=z.device).split(part)
        return torch.cat([self._score(z[i], seen[i % data], targets[i % data]) for i in parts])

    def _score(self, z: Tensor, seen: Tensor, targets: Tensor) -> Tensor:
        states, _ = self.lstm(_with(seen, z), self._first_state(z))
        logits = self.out(self.dropout(states))
        losses = cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=_UNREAD, reduction="none"
        )
        return -losses.reshape(targets.shape).sum(-1)

    def write(
        self, z: Tensor, size: int, choose: Callable[[Tensor], Tensor], end: int | None = None
    ) -> Tensor:
        """Return tokens `[R, T]` for z `[R, *latent]`, each chosen from its logits `[R, V]`."""
        z = self._features(z)
        state, tokens = self._first_state(z), []
        last = torch.full((z.shape[0],), self.vocabulary, device=z.device)
        ended = torch.zeros_like(last, dtype=torch.bool)
        for _ in range(size):
            states, state = self.lstm(_with(self.embed(last).unsqueeze(1), z), state)
            last = choose(self.out(states.squeeze(1)))
            tokens.append(last)
            ended |= last == (self.vocabulary if end is None else end)
            if end is not None and bool(ended.all()):
                break
        return torch.stack(tokens, 1)

    def _features(self, z: Tensor) -> Tensor:
        return self.read(z).reshape(z.shape[0], -1)

    def _first_state(self, z: Tensor) -> tuple[Tensor, Tensor]:
        cell = self.to_cell(z).unsqueeze(0)
        return cell.tanh(), cell


def _with(seen: Tensor, z: Tensor) -> Tensor:
    """Put z `[R, D]` beside the features of every step `[R, T, E]`."""
    return torch.cat([seen, z.unsqueeze(1).expand(-1, seen.shape[1], -1)], -1)


@torch.no_grad()
def _start_uniform(net: nn.Module) -> None:
    """Start all weights at U(-0.01, 0.01), embeddings at U(-0.1, 0.1), as He et al. (2019)."""
    for parameter in net.parameters():
        parameter.uniform_(-0.01, 0.01)
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            module.weight.uniform_(-0.1, 0.1)


# -- sequences ------------------------------------------------------------------------------------


def _ids(vocabulary: int) -> Any:
    return constraints.integer_interval(0, vocabulary - 1)


def _beyond(lengths: Tensor, size: int) -> Tensor:
    """Whether a position lies beyond the sequence, `[..., T]`."""
    return torch.arange(size, device=lengths.device) >= lengths.unsqueeze(-1)


def _longest(lengths: Tensor | None, tokens: Tensor) -> int:
    """Return how many steps have to be run; all of them where looking would cost or break."""
    if lengths is None or lengths.device.type != "cpu" or is_captured():
        return tokens.shape[1]
    return int(lengths.max())


def _draw(logits: Tensor) -> Tensor:
    return Categorical(logits=logits, validate_args=False).sample()


def _cut_at(tokens: Tensor, end: int | None) -> tuple[Tensor, Tensor]:
    """Give each sequence the length up to its first end symbol, and pad it with that symbol."""
    n, size = tokens.shape
    if end is None:
        return tokens, torch.full((n,), size, device=tokens.device)
    ended = (tokens == end).long()
    lengths = torch.where(ended.any(1), ended.argmax(1) + 1, size)
    return tokens.masked_fill(_beyond(lengths, size), end), lengths


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


# -- checks ---------------------------------------------------------------------------------------


def _check_sizes(
    vocabulary: int,
    latent: tuple[int, ...],
    embedding: int,
    hidden: int,
    dropout: float,
    end: int | None,
    init: str,
) -> None:
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden}
    for name, size in (*sizes.items(), ("latent", min(latent, default=0))):
        if size < 1:
            raise ValueError(f"SequenceVAE: {name} must be at least 1, got {size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"SequenceVAE: dropout must lie in [0, 1), got {dropout}")
    if end is not None and not 0 <= end < vocabulary:
        raise ValueError(
            f"SequenceVAE: end={end} is not one of the {vocabulary} token ids; count the end "
            "symbol in vocabulary, or leave end out where sequences have none"
        )
    if init not in ("uniform", "torch"):
        raise ValueError(f'SequenceVAE: init must be "uniform" or "torch", got {init!r}')


def _check_ids(what: str, given: Any, form: str, dims: int) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{what}: expected a tensor, got {type(given).__name__}; text becomes ids through a "
            "vocabulary (pyrovae.datasets.Vocabulary)"
        )
    if given.dim() != dims or given.numel() == 0:
        raise ValueError(
            f"{what}: expected shape {form}, none of them 0, got {list(given.shape)}"
            + ("; one sequence is a batch of one, tokens[None]" if dims == 2 else "")
        )
    if given.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{what}: expected integers, int64 or int32, got {given.dtype}; use .long()"
        )


def _warn_of_padding(tokens: Tensor, end: int) -> None:
    """Without lengths every token counts: padding after the end symbol, too."""
    padded = int((tokens[:, -2:] == end).all(-1).sum()) if tokens.shape[1] > 1 else 0
    if padded:
        warnings.warn(
            f"SequenceVAE: {padded} of {len(tokens)} sequences end in several end symbols, and "
            f"without lengths each of them counts in log p(x). Try: model(tokens, lengths), the "
            f"data (tokens, lengths).",
            stacklevel=4,
        )


def _check_lengths(lengths: Tensor | None, size: int) -> None:
    if lengths is None:
        return
    bad = (lengths < 1) | (lengths > size)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"SequenceVAE: lengths: {int(lengths[row])} at row {row} ({int(bad.sum())} such). "
            f"Expected 1 to {size}, the width of tokens. Try: leave empty sequences out; give "
            "every sequence an end symbol, which counts."
        )
