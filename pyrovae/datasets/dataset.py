"""Data as tensors on a device, minibatches as index tensors, binarization by choice."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import constraints

from pyrovae.datasets.checks import check_choice, check_support, check_values
from pyrovae.datasets.vocabulary import Vocabulary

__all__ = ["Binarize", "Dataset", "minibatches"]

Binarize = Literal["dynamic", "fixed"] | None


class Dataset:
    r"""The arguments of a model, one row per datum, and how to draw minibatches of them.

    With intensities :math:`p_{nd} \in [0, 1]` in the first argument, binarization is

    .. math:: x_{nd} = 1[u_{nd} < p_{nd}], \qquad u_{nd} \sim U[0, 1),

    with new :math:`u` in every `take` (`"dynamic"`), with one :math:`u` drawn at construction from
    `seed` (`"fixed"`), or not at all (`None`).

    Args:
        args: the model's positional arguments, each `[N, *]`.
        kwargs: its keyword arguments, each `[N, *]`.
        name: what reports call it.
        likelihood: a hint, `"bernoulli"`, `"binomial"`, `"normal"` or None.
        likelihood_args: what that likelihood needs besides, such as `{"total_count": 16}`.
        binarize: `"dynamic"`, `"fixed"` or None; the first argument must then lie in [0, 1].
        seed: the seed of `"fixed"`.
        labels: `[N]`, carried along and never given to the model.
        vocabulary: what the ids of a text mean, carried along.

    Raises:
        ValueError: no data, unequal lengths, mixed devices, NaN or inf, intensities outside
            [0, 1].
        TypeError: what is not a tensor, or images of integers.

    Example:
        >>> ds = Dataset((torch.full((6, 4), 0.5),), binarize="dynamic")
        >>> (x,), _ = ds.take(torch.tensor([0, 2]), torch.Generator().manual_seed(0))
        >>> x.shape, x.unique().tolist()
        (torch.Size([2, 4]), [0.0, 1.0])

    Source: dynamic binarization is that of Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """

    def __init__(
        self,
        args: Sequence[Tensor] = (),
        kwargs: Mapping[str, Tensor] | None = None,
        *,
        name: str = "data",
        likelihood: Literal["bernoulli", "binomial", "normal"] | None = None,
        likelihood_args: Mapping[str, Any] | None = None,
        binarize: Binarize = None,
        seed: int = 0,
        labels: Tensor | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        check_choice(f"{name}: binarize", binarize, ["dynamic", "fixed", None])
        self.args: tuple[Tensor, ...] = tuple(args)
        self.kwargs: dict[str, Tensor] = dict(kwargs or {})
        self.name = name
        self.likelihood = "bernoulli" if binarize and likelihood is None else likelihood
        self.likelihood_args = dict(likelihood_args or {})
        self.binarize = binarize
        self.seed = seed
        self.labels = labels
        self.vocabulary = vocabulary
        self._check()
        if binarize == "fixed":
            self.args = (_bernoulli(self.args[0], seed), *self.args[1:])

    def __len__(self) -> int:
        return len(self._arrays()[0][1])

    def __repr__(self) -> str:
        drawn = f", binarize={self.binarize!r}" if self.binarize else ""
        return f"Dataset({self.name!r}, {len(self)} x {self.data_shape}{drawn})"

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one datum: that of the first argument without its first dimension."""
        return tuple(self._arrays()[0][1].shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self._arrays()[0][1].device

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on `device`."""
        return self._map(lambda x: x.to(device))

    def subset(self, index: Tensor | Sequence[int]) -> Dataset:
        """The data of `index`, row numbers `[M]` or a mask `[N]`; what is fixed stays as drawn."""
        index = torch.as_tensor(index, device=self.device)
        rows = index.nonzero().squeeze(-1) if index.dtype == torch.bool else index.long()
        if rows.numel() == 0:
            raise ValueError(
                f"{self.name}: subset: no rows; expected at least one of {len(self)}."
            )
        return self._map(lambda x: x.index_select(0, rows.to(x.device)))

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """`(train, held_out)`, disjoint, by a permutation of the seed; `fraction` is held out.

        Raises:
            ValueError: one of the two would be empty.
        """
        held = round(len(self) * fraction)
        if not 0 < held < len(self):
            raise ValueError(
                f"{self.name}: split: holding out {fraction} of {len(self)} data leaves one side "
                "empty. Expected a fraction between 0 and 1 that leaves both sides a datum."
            )
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(self)))
        return self.subset(order[held:].sort().values), self.subset(order[:held].sort().values)

    def take(
        self, index: Tensor, generator: Generator | None = None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The model's arguments for the rows `index` `[B]`, each `[B, *]`, on the data's device.

        Args:
            index: row numbers, an integer tensor; moved to the data's device.
            generator: the source of dynamic binarization; torch's global one by default. A CPU
                generator serves data on any device, with the same draws.
        """
        index = index.to(self.device)
        args = tuple(x.index_select(0, index) for x in self.args)
        if self.binarize == "dynamic":
            where = args[0].device if generator is None else generator.device
            noise = torch.rand(
                args[0].shape, generator=generator, dtype=args[0].dtype, device=where
            )
            args = ((noise.to(self.device) < args[0]).to(args[0].dtype), *args[1:])
        return args, {k: x.index_select(0, index) for k, x in self.kwargs.items()}

    def realize(self, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """All the data as the model's arguments; dynamic binarization is drawn once, from `seed`.

        `mnist(binarize="dynamic").realize(s)` is the data of `mnist(binarize="fixed", seed=s)`.
        """
        args = self.args
        if self.binarize == "dynamic":
            args = (_bernoulli(args[0], seed), *args[1:])
        return args, dict(self.kwargs)

    def describe(self) -> dict[str, Any]:
        """What identifies the data, ready for JSON; `sha256` is over every argument's bytes."""
        digest = hashlib.sha256()
        for _, x in self._arrays():
            digest.update(x.detach().cpu().contiguous().view(torch.uint8).numpy())
        return {
            "name": self.name,
            "size": len(self),
            "shape": list(self.data_shape),
            "dtype": str(self._arrays()[0][1].dtype).removeprefix("torch."),
            "binarize": self.binarize,
            "seed": self.seed,
            "sha256": digest.hexdigest(),
        }

    def _arrays(self) -> list[tuple[str, Tensor]]:
        positional = [(f"argument {i}", x) for i, x in enumerate(self.args)]
        return positional + [(f"argument {k!r}", x) for k, x in self.kwargs.items()]

    def _map(self, change: Any) -> Dataset:
        other = copy.copy(self)
        other.args = tuple(change(x) for x in self.args)
        other.kwargs = {k: change(x) for k, x in self.kwargs.items()}
        other.labels = None if self.labels is None else change(self.labels)
        return other

    def _check(self) -> None:
        arrays = self._arrays()
        if not arrays:
            raise ValueError(f"{self.name}: no data: neither arguments nor keyword arguments.")
        for which, x in arrays:
            _check_tensor(f"{self.name}, {which}", x)
        if self.labels is not None:
            arrays = [*arrays, ("labels", self.labels)]
        lengths = {which: len(x) for which, x in arrays}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{which} has {n}" for which, n in lengths.items())
            raise ValueError(
                f"{self.name}: unequal numbers of rows: {listed}. Expected the same first "
                "dimension everywhere, one row per datum. Try: a constant of the model belongs in "
                "the model (functools.partial), not in the data."
            )
        devices = {which: str(x.device) for which, x in arrays}
        if len(set(devices.values())) > 1:
            listed = ", ".join(f"{which} on {device}" for which, device in devices.items())
            raise ValueError(f"{self.name}: mixed devices: {listed}. Try: x.to(one device) first.")
        check_values(self.args, self.kwargs, where=self.name)
        if self.binarize:
            if not self.args or not self.args[0].is_floating_point():
                raise TypeError(
                    f"{self.name}: binarize={self.binarize!r} draws from the first positional "
                    "argument, which must be a floating tensor of intensities in [0, 1]."
                )
            check_support(
                self.args[0],
                constraints.unit_interval,
                f"{self.name}: binarize={self.binarize!r} reads intensities",
            )


def minibatches(
    n: int,
    batch_size: int,
    generator: Generator | None = None,
    *,
    shuffle: bool = True,
    drop_last: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Index tensors `[batch_size]` that go once through `n` data; the last one may be shorter.

    Args:
        n: how many data.
        batch_size: how many in a batch.
        generator: a CPU generator for the order; torch's global one by default.
        shuffle: a new order at each call, or 0, 1, 2, ...
        drop_last: leave the shorter last batch out.
        device: where the index tensors are put; the whole order is moved at once.

    Raises:
        ValueError: no data, no batch size, or `drop_last` with no full batch.

    Example:
        >>> [len(index) for index in minibatches(10, 4)]
        [4, 4, 2]
    """
    if n < 1 or batch_size < 1 or (drop_last and batch_size > n):
        raise ValueError(
            f"minibatches: no batch of {batch_size} in {n} data (drop_last={drop_last}). "
            "Expected at least one; try a smaller batch_size, or drop_last=False."
        )
    order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
    batches = order.to(device).split(batch_size)
    return iter(batches[:-1] if drop_last and n % batch_size else batches)


def _bernoulli(p: Tensor, seed: int) -> Tensor:
    """One binarization of `p`, the same on every machine, device and precision.

    The stream of numpy's RandomState is frozen (NEP 19); intensities are rounded to float32.
    """
    noise = torch.from_numpy(np.random.RandomState(seed).random_sample(tuple(p.shape)))
    return (noise < p.detach().cpu().float()).to(p)


def _check_tensor(which: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{which}: expected a tensor, got {type(x).__name__}. "
            "Try: torch.as_tensor(x), or pyrovae.datasets.as_dataset(x)."
        )
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(
            f"{which}: empty data of shape {tuple(x.shape)}; expected [N, *], N >= 1."
        )
    image = (x.dtype == torch.uint8 and x.dim() >= 2) or x.dim() >= 3
    if image and not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool:
        raise TypeError(
            f"{which}: {str(x.dtype).removeprefix('torch.')} images, values {int(x.min())} to "
            f"{int(x.max())}. Expected floating-point data on a scale of your choice. Try: "
            "x.float() / 255 for intensities in [0, 1], with binarize='dynamic' for a Bernoulli; "
            "or x.float() with a binomial likelihood, total_count=255."
        )
