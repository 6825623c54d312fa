"""Named data sets: handwritten digits, embedded (8x8) and downloaded (MNIST); the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from pyrovae.datasets.checks import check_choice
from pyrovae.datasets.dataset import Binarize, Dataset
from pyrovae.datasets.fetch import fetch_gzip, read_idx
from pyrovae.datasets.lagging import lagging_synthetic
from pyrovae.datasets.omniglot import omniglot
from pyrovae.datasets.text import names, shakespeare

__all__ = ["NAMES", "digits", "load", "mnist"]

_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_FILES = {  # sha256 of the uncompressed bytes: images, labels
    "train": (
        "train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test": (
        "t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def digits(
    split: Literal["train", "test", "all"] = "train", binarize: Binarize = None, seed: int = 0
) -> Dataset:
    """Handwritten digits of scikit-learn: 1,797 images of 8x8, embedded, no download.

    A pixel counts the inked points of a 4x4 block, an integer 0..16, so that the likelihood
    Binomial(16) is exact in kind. With `binarize`, pixel/16 is the intensity of a Bernoulli.

    Args:
        split: `"train"` (1,437) or `"test"` (360), by one fixed permutation, or `"all"` (1,797).
        binarize: `"dynamic"`, `"fixed"` or None, as in :class:`Dataset`.
        seed: the seed of `"fixed"`; the split does not depend on it.

    Returns:
        One argument `[N, 8, 8]` in torch's default dtype, with `labels` `[N]`.

    Example:
        >>> x = digits("test").args[0]
        >>> x.shape, x.min().item(), x.max().item()
        (torch.Size([360, 8, 8]), 0.0, 16.0)

    Source: Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """
    from sklearn.datasets import load_digits

    check_choice("digits: split", split, ["train", "test", "all"])
    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(images))
    rows = {"train": np.sort(order[360:]), "test": np.sort(order[:360]), "all": slice(None)}[split]
    x = torch.from_numpy(images[rows].reshape(-1, 8, 8)).to(torch.get_default_dtype())
    return Dataset(
        (x / 16 if binarize else x,),
        name=f"digits-{split}",
        likelihood="bernoulli" if binarize else "binomial",
        likelihood_args={} if binarize else {"total_count": 16},
        binarize=binarize,
        seed=seed,
        labels=torch.from_numpy(labels[rows]).long(),
    )


def mnist(
    split: Literal["train", "test", "all"] = "train",
    binarize: Binarize = "dynamic",
    seed: int = 0,
) -> Dataset:
    """MNIST: images of 28x28, intensities byte/255, dynamically binarized by default.

    Read from `PYROVAE_DATA/mnist/*.gz` where that exists, else downloaded once and kept in the
    system's cache folder; either way the uncompressed bytes are checked. `"fixed"` is our own
    binarization from a seed, not Larochelle's static one: numbers on the two are not comparable.

    Args:
        split: `"train"` (60,000), `"test"` (10,000) or `"all"` (70,000, train first). For a
            validation set, `mnist("train").split(1 / 6)`.
        binarize: `"dynamic"`, `"fixed"`, or None for grey values in [0, 1].
        seed: the seed of `"fixed"`.

    Returns:
        One argument `[N, 28, 28]` in torch's default dtype, with `labels` `[N]`.

    Raises:
        ConnectionError: no local copy and no network; says what to do.

    Source: LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning.
    """
    check_choice("mnist: split", split, ["train", "test", "all"])
    parts = [_mnist_part(part) for part in (["train", "test"] if split == "all" else [split])]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset(
        (torch.from_numpy(images).to(torch.get_default_dtype()) / 255,),
        name=f"mnist-{split}",
        likelihood="bernoulli" if binarize else "normal",
        binarize=binarize,
        seed=seed,
        labels=torch.from_numpy(labels).long(),
    )


NAMES: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": digits,
        "mnist": mnist,
        "omniglot": omniglot,
        "names": names,
        "shakespeare": shakespeare,
        "lagging_synthetic": lagging_synthetic,
    }
)


def load(name: str, **options: Any) -> Dataset:
    """The data set called `name`; `options` are those of its function.

    Raises:
        ValueError: an unknown name; says the nearest known one.

    Example:
        >>> load("digits", split="test")
        Dataset('digits-test', 360 x (8, 8))
    """
    check_choice("data set", name, NAMES)
    return NAMES[name](**options)


def _mnist_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    images, images_sha256, labels, labels_sha256 = _MNIST_FILES[part]
    return (
        read_idx(fetch_gzip(f"mnist/{images}", _MNIST_MIRRORS, images_sha256)),
        read_idx(fetch_gzip(f"mnist/{labels}", _MNIST_MIRRORS, labels_sha256)),
    )
